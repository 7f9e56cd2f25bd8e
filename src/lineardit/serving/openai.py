"""OpenAI's calls: `/v1/images/generations`, `/v1/images/edits`, `/v1/models`, as its clients know them."""

import json
import time
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import FastAPI, Request, Response

from lineardit.serving.device import Facts
from lineardit.serving.engine import Engine
from lineardit.serving.failures import Failure
from lineardit.serving.metrics import Metrics
from lineardit.serving.replies import EventStream, accepted, datum, encoded, json_reply, while_connected
from lineardit.serving.schema import EditRequest, ImageRequest, PictureFormat, openai_wish
from lineardit.serving.ticket import Finished, Note, Partial, Progress, Ticket, Waiting


def add_openai(app: FastAPI, engine: Engine, metrics: Metrics) -> None:
    """Put the routes into the application."""

    @app.get("/v1/models")
    async def models() -> Response:
        """The models, each with what it takes beside OpenAI's fields."""
        return json_reply({"object": "list", "data": [_model(engine, facts) for facts in engine.models]})

    @app.get("/v1/models/{name}")
    async def model(name: str) -> Response:
        """The model of this name."""
        return json_reply(_model(engine, engine.model(name)))

    @app.post("/v1/images/generations")
    async def generate(wanted: ImageRequest, request: Request) -> Response:
        """Pictures from a prompt, in base64; with `stream`, one event after the other."""
        return await answered(wanted, request, None)

    @app.post("/v1/images/edits")
    async def edit(wanted: EditRequest, request: Request) -> Response:
        """The same from a picture to start from."""
        return await answered(wanted, request, wanted.images[0].image_url)

    async def answered(wanted: ImageRequest, request: Request, initial: str | None) -> Response:
        progress = bool(wanted.stream and wanted.progress)
        picture_format: PictureFormat = wanted.output_format or "png"
        ticket = await accepted(
            engine, openai_wish(wanted), initial, partials=wanted.partial_images or 0, previews=progress
        )
        if wanted.stream:
            kind = "image_generation" if initial is None else "image_edit"
            events = _openai_events(ticket, kind, picture_format, wanted.output_compression, progress)
            return EventStream(_kept(events, request, ticket, engine, metrics))
        found: dict[int, dict[str, Any]] = {}
        notes = []
        async with while_connected(request, ticket, engine, metrics):
            async for event in ticket:
                if isinstance(event, Finished):
                    found[event.index] = await datum(
                        ticket.pictures[event.index], event.pixels, picture_format, wanted.output_compression
                    )
                elif isinstance(event, Note):
                    notes.append(event.text)
        first = ticket.pictures[0].settings
        return json_reply(
            {
                "created": int(time.time()),
                "data": [found[index] for index in sorted(found)],
                "output_format": picture_format,
                "size": f"{first['width']}x{first['height']}",
                "background": "opaque",
                "notes": notes,
            }
        )


async def _openai_events(
    ticket: Ticket, kind: str, picture_format: PictureFormat, quality: int | None, progress: bool
) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
    """What happens to a request, as OpenAI's events, and as ours where `progress` asks for them."""
    try:
        async for event in ticket:
            match event:
                case Waiting() if progress:
                    yield "lineardit.waiting", {"position": event.position}
                case Progress() if progress:
                    told = {"index": event.index, "step": event.step, "total": event.total}
                    preview = None if event.preview is None else await encoded(event.preview)
                    yield "lineardit.progress", {**told, "preview": preview}
                case Note() if progress:
                    yield "lineardit.note", {"index": event.index, "text": event.text}
                case Partial() | Finished():
                    picture = ticket.pictures[event.index]
                    made = await datum(picture, event.pixels, picture_format, quality)
                    size = f"{event.pixels.width}x{event.pixels.height}"
                    about = {"created_at": int(time.time()), "size": size, "quality": "auto"}
                    about |= {"output_format": picture_format, "background": "opaque", "index": event.index}
                    if isinstance(event, Partial):
                        about["partial_image_index"] = event.number
                        yield f"{kind}.partial_image", {**made, **about}
                    else:
                        yield f"{kind}.completed", {**made, **about, "usage": _usage()}
    except Failure as failure:
        yield "error", failure.body()


async def _kept(
    events: AsyncGenerator[tuple[str, dict[str, Any]], None],
    request: Request,
    ticket: Ticket,
    engine: Engine,
    metrics: Metrics,
) -> AsyncGenerator[bytes, None]:
    """Events as a browser reads them, for as long as somebody does."""
    async with while_connected(request, ticket, engine, metrics):
        async for name, data in events:
            yield f"event: {name}\ndata: {json.dumps({'type': name, **data})}\n\n".encode()


def _model(engine: Engine, facts: Facts) -> dict[str, Any]:
    limits = engine.config.limits
    takes = {
        "unit": facts.unit,
        "size": facts.size,
        "num_inference_steps": facts.num_inference_steps,
        "guidance_scale": facts.guidance_scale,
        "sampler": facts.sampler,
        "samplers": list(facts.samplers),
        "limits": limits.model_dump(include={"pictures", "pixels", "steps", "work", "prompt"}),
    }
    return {"id": facts.name, "object": "model", "created": 0, "owned_by": "lineardit", "takes": takes}


def _usage() -> dict[str, Any]:
    """OpenAI's events must have it; nothing is counted in tokens here."""
    none = {"image_tokens": 0, "text_tokens": 0}
    return {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0, "input_tokens_details": none}
