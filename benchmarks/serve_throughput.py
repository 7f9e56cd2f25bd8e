"""Pictures a second and latency of the server, beside what one would write around a pipeline.

    python benchmarks/serve_throughput.py --seconds 60

Three servers on loopback draw the same requests with the same weights, one after the other:

    lineardit serve       the server of this package
    lineardit, locked     a FastAPI handler with a lock around `lineardit.Pipeline`: one request at a time
    diffusers, locked     the same around diffusers' SanaPipeline, from the weights under its names; prompts
                          are read by our text encoder, which diffusers does not have

The first picture of the first two is equal to the bit; that of diffusers has its own noise. Nothing else may
run on the machine. `--record` keeps the table in docs/reliability.md.
"""

import argparse
import base64
import io
import json
import random
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from record import Rows, report
from serve_client import GENERATE, Server, everybody, percentiles, request, serving_options

NAMES = {"serve": "lineardit serve", "pipeline": "lineardit, locked", "diffusers": "diffusers, locked"}
Draw = Callable[[str, int, int], Any]
"""Prompt, seed and steps to a PIL picture."""


def pipeline_draw(options: argparse.Namespace) -> Draw:
    """By this package, with the kernels that the server takes."""
    from lineardit.kernels import native
    from lineardit.kernels.allocator import keep_freed_memory
    from lineardit.pipeline import Pipeline

    keep_freed_memory()
    native.use("auto")
    pipe = Pipeline.from_pretrained(options.model, device=options.device, dtype=options.dtype)
    return lambda prompt, seed, steps: pipe(prompt, seed=seed, num_inference_steps=steps).images[0]


def diffusers_draw(options: argparse.Namespace) -> Draw:
    """By diffusers, from the same weights."""
    import torch
    from diffusers import SanaPipeline

    from lineardit.interop.bundled import bundled_folder
    from lineardit.interop.export import export
    from lineardit.interop.places import open_place
    from lineardit.pipeline import Pipeline

    ours = Pipeline.from_pretrained(options.model, device=options.device, dtype=options.dtype)
    place = open_place(options.model or bundled_folder())
    networks = {name: place.networks[name] for name in ("transformer", "autoencoder")}
    coder, plain = networks["autoencoder"], {"latent_scale": (1.0,), "latent_shift": (0.0,)}
    # diffusers knows one scale for all channels: a user would do what ours does beside it.
    networks["autoencoder"] = replace(coder, config=coder.config.model_copy(update=plain))
    with tempfile.TemporaryDirectory() as folder:
        export(replace(place, networks=networks), Path(folder) / "model", "diffusers")
        pipe = SanaPipeline.from_pretrained(
            Path(folder) / "model", text_encoder=None, tokenizer=None, torch_dtype=ours.dtype
        ).to(ours.device)
    pipe.set_progress_bar_config(disable=True)
    size, scale = ours.sampling.size, ours.sampling.guidance_scale
    scales, shifts = ours.autoencoder.scale, ours.autoencoder.shift

    def draw(prompt: str, seed: int, steps: int) -> Any:
        text = ours.embed(ours.plan(prompt))
        without, wanted = text.embeddings.chunk(2)
        hidden, shown = text.mask.chunk(2)
        latents = pipe(
            negative_prompt=None, prompt_embeds=wanted, prompt_attention_mask=shown.long(),
            negative_prompt_embeds=without, negative_prompt_attention_mask=hidden.long(),
            num_inference_steps=steps, guidance_scale=scale,
            height=size, width=size, use_resolution_binning=False,
            generator=torch.Generator(ours.device).manual_seed(seed), output_type="latent",
        ).images  # fmt: skip
        with torch.no_grad():
            decoded = pipe.vae.decode(latents.to(pipe.vae.dtype) / scales + shifts).sample
        return pipe.image_processor.postprocess(decoded)[0]

    return draw


def locked(draw: Draw) -> Any:
    """What one would write: a handler, and a lock so that the pipeline is used by one at a time."""
    from fastapi import FastAPI

    app, lock = FastAPI(), threading.Lock()

    @app.get("/readyz")
    def readyz() -> dict[str, str]:
        return {"status": "ready"}

    @app.post(GENERATE)
    def generate(body: dict[str, Any]) -> dict[str, Any]:
        with lock:
            picture = draw(body["prompt"], body["seed"], body["num_inference_steps"])
        file = io.BytesIO()
        picture.save(file, "PNG")
        return {"data": [{"b64_json": base64.b64encode(file.getvalue()).decode()}]}

    return app


def run_locked(options: argparse.Namespace) -> None:
    """Be one of the two other servers."""
    import uvicorn

    draw = {"pipeline": pipeline_draw, "diffusers": diffusers_draw}[options.be](options)
    draw("a cat", 0, 1)
    config = uvicorn.Config(locked(draw), log_level="error")
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    sys.stderr.write(f"http://127.0.0.1:{listener.getsockname()[1]}\n")
    sys.stderr.flush()
    server.run(sockets=[listener])


@contextmanager
def started(kind: str, options: argparse.Namespace) -> Iterator[Server]:
    """One of the three."""
    server = Server(options, command=None if kind == "serve" else own_command(kind, options))
    try:
        yield server
    finally:
        server.stop()


def own_command(kind: str, options: argparse.Namespace) -> list[str]:
    command = [sys.executable, __file__, "--be", kind, "--device", options.device, "--dtype", options.dtype]
    return [*command, *(["--model", options.model] if options.model else [])]


def measure(server: Server, clients: int, options: argparse.Namespace) -> tuple[float, list[list[str]], int]:
    """Pictures a second, percentiles and failures of so many clients that ask one request after the other."""
    seconds: list[float] = []
    failures: list[int] = []
    begun = time.monotonic()
    end = begun + options.seconds

    def client(number: int) -> None:
        chance = random.Random(number)
        while time.monotonic() < end:
            wanted = request({"unit": 1, "size": 1}, chance, options.steps)
            del wanted["size"]
            asked = time.monotonic()
            status = server.ask("POST", GENERATE, wanted)[0]
            if status == 200:
                seconds.append(time.monotonic() - asked)
            else:
                failures.append(status)

    everybody(clients, client)
    return len(seconds) / (time.monotonic() - begun), percentiles(seconds), len(failures)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    serving_options(parser)
    parser.add_argument("--clients", default="1,4,16")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--kind", choices=list(NAMES), action="append", help="only these servers")
    parser.add_argument("--be", choices=["pipeline", "diffusers"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.be:
        run_locked(options)
        return 0
    rows: Rows = []
    kept, first = True, {}
    for kind in options.kind or NAMES:
        with started(kind, options) as server:
            wanted = {"prompt": "a red apple left of a cat", "seed": 7, "num_inference_steps": options.steps}
            first[kind] = pixels(server.ask("POST", GENERATE, wanted)[1])
            for clients in map(int, options.clients.split(",")):
                speed, found, failures = measure(server, clients, options)
                cells = [value for _, value in found]
                rows.append([NAMES[kind], str(clients), f"{speed:.2f}", *(cells * 2)[:2], str(failures)])
                kept = kept and not failures and speed > 0
    kept = kept and len({first[kind] for kind in ("serve", "pipeline") if kind in first}) <= 1
    header = ["server", "clients", "pictures a second", "p50, s", "p99, s", "failures"]
    return report("throughput", rows, kept, header, record=options.record)


def pixels(body: bytes) -> bytes:
    """Of the picture in an answer."""
    from PIL import Image

    with Image.open(io.BytesIO(base64.b64decode(json.loads(body)["data"][0]["b64_json"]))) as picture:
        return picture.convert("RGB").tobytes()


if __name__ == "__main__":
    sys.exit(main())
