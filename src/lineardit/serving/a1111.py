"""AUTOMATIC1111's calls that most scripts use: txt2img, img2img, progress, interrupt and png-info."""

import asyncio
import json

from fastapi import FastAPI, Request, Response

from lineardit.interop.png_text import parse_parameters
from lineardit.serving.engine import Engine
from lineardit.serving.failures import Failure
from lineardit.serving.metrics import Metrics
from lineardit.serving.pictures import read_settings
from lineardit.serving.replies import accepted, datum, encoded, json_reply, while_connected
from lineardit.serving.schema import ImageToImage, PngRequest, TextToImage, a1111_wish
from lineardit.serving.ticket import Finished, Progress, Ticket


class Tasks:
    """What each address asks for through AUTOMATIC1111's calls, where one client has one task."""

    def __init__(self) -> None:
        self._running: dict[str, list[tuple[Ticket, dict[int, Progress]]]] = {}

    def open(self, address: str, ticket: Ticket) -> dict[int, Progress]:
        """Note a task; what it says of its steps is put into the result."""
        steps: dict[int, Progress] = {}
        self._running.setdefault(address, []).append((ticket, steps))
        return steps

    def close(self, address: str, ticket: Ticket) -> None:
        """The task is over."""
        left = [task for task in self._running.get(address, []) if task[0] is not ticket]
        if left:
            self._running[address] = left
        else:
            self._running.pop(address, None)

    def of(self, address: str) -> list[tuple[Ticket, dict[int, Progress]]]:
        """The tasks of an address, the oldest first."""
        return self._running.get(address, [])


def add_a1111(app: FastAPI, engine: Engine, metrics: Metrics) -> None:
    """Put the routes into the application."""
    tasks = Tasks()

    @app.post("/sdapi/v1/txt2img")
    async def txt2img(wanted: TextToImage, request: Request) -> Response:
        """Pictures from a prompt. What was finished before an interruption is still answered."""
        return await answered(wanted, request, None)

    @app.post("/sdapi/v1/img2img")
    async def img2img(wanted: ImageToImage, request: Request) -> Response:
        """The same from a picture to start from."""
        return await answered(wanted, request, wanted.init_images[0])

    async def answered(wanted: TextToImage, request: Request, initial: str | None) -> Response:
        ticket = await accepted(engine, a1111_wish(wanted), initial, previews=True)
        address = _address(request)
        steps, found = tasks.open(address, ticket), {}
        try:
            async with while_connected(request, ticket, engine, metrics):
                async for event in ticket:
                    if isinstance(event, Progress):
                        steps[event.index] = event
                    elif isinstance(event, Finished):
                        picture = ticket.pictures[event.index]
                        found[event.index] = (await datum(picture, event.pixels, "png", None))["b64_json"]
        except Failure as failure:
            if failure.code != "interrupted":
                raise
        finally:
            tasks.close(address, ticket)
        finished = [ticket.pictures[index].settings for index in sorted(found)]
        first = ticket.pictures[0].settings
        info = {
            "prompt": wanted.prompt,
            "negative_prompt": wanted.negative_prompt or "",
            "seed": first["seed"],
            "all_seeds": [settings["seed"] for settings in finished],
            "width": first["width"],
            "height": first["height"],
            "steps": first["num_inference_steps"],
            "cfg_scale": first["guidance_scale"],
            "sampler_name": first["sampler"],
            "sd_model_name": first["model"],
            "denoising_strength": first["strength"],
        }
        images = [found[index] for index in sorted(found)] if wanted.send_images is not False else []
        parameters = wanted.model_dump(exclude_none=True, exclude={"init_images"})
        return json_reply({"images": images, "parameters": parameters, "info": json.dumps(info)})

    @app.get("/sdapi/v1/sd-models")
    async def sd_models() -> Response:
        """The names that `override_settings.sd_model_checkpoint` takes."""
        return json_reply([{"title": facts.name, "model_name": facts.name} for facts in engine.models])

    @app.get("/sdapi/v1/samplers")
    async def samplers() -> Response:
        """The samplers of any of the models."""
        names = dict.fromkeys(name for facts in engine.models for name in facts.samplers)
        return json_reply([{"name": name, "aliases": [], "options": {}} for name in names])

    @app.get("/sdapi/v1/progress")
    async def progress(request: Request, skip_current_image: bool = False) -> Response:
        """How far the oldest task of this address is."""
        running = tasks.of(_address(request))
        ticket, steps = running[0] if running else (None, {})
        done = total = current = 0
        preview: str | None = None
        if ticket is not None:
            each = ticket.pictures[0].steps
            total = each * len(ticket.pictures)
            for picture in ticket.pictures:
                seen = steps.get(picture.index)
                done += each if picture.finished else 0 if seen is None else seen.step
            active = [seen for seen in steps.values() if not ticket.pictures[seen.index].finished]
            current = active[-1].step if active else 0
            if active and active[-1].preview is not None and not skip_current_image:
                preview = await encoded(active[-1].preview)
        return json_reply(
            {
                "progress": done / total if total else 0.0,
                "eta_relative": 0.0,
                "state": {
                    "skipped": False,
                    "interrupted": False,
                    "job": "txt2img" if ticket is not None else "",
                    "job_count": len(running),
                    "job_no": 0,
                    "sampling_step": current,
                    "sampling_steps": total // len(ticket.pictures) if ticket is not None else 0,
                },
                "current_image": preview,
                "textinfo": None,
            }
        )

    @app.post("/sdapi/v1/interrupt")
    async def interrupt(request: Request) -> Response:
        """Stop every task of this address."""
        for ticket, _ in list(tasks.of(_address(request))):
            ticket.fail(Failure(200, "interrupted", "Stopped."))
        return json_reply({})

    @app.post("/sdapi/v1/png-info")
    async def png_info(wanted: PngRequest) -> Response:
        """What a PNG says of how it was made."""
        text = await asyncio.to_thread(read_settings, wanted.image, engine.config.limits)
        parameters = parse_parameters(text.parameters) if text.parameters is not None else {}
        items = {} if text.parameters is None else {"parameters": text.parameters}
        return json_reply(
            {
                "info": text.parameters or "",
                "items": items,
                "parameters": parameters,
                "lineardit": text.settings,
            }
        )


def _address(request: Request) -> str:
    return "" if request.client is None else request.client.host
