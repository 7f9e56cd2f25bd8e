"""`lineardit serve`: a model on this machine, for programs and for people."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lineardit.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from lineardit.serving.engine import Engine

KEY_VARIABLE = "LINEARDIT_API_KEY"


def serve(
    model: Annotated[
        str | None,
        typer.Option(help="A folder or a hub id; the bundled model unless given.", show_default=False),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; one that others reach needs an API key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 lets the system choose.")] = 7860,
    name: Annotated[
        list[str] | None, typer.Option(help="A host name that requests may use; can be repeated.")
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help=f"A file that holds the API key; else ${KEY_VARIABLE} counts.")
    ] = None,
    device: Annotated[
        list[str] | None, typer.Option(help="auto, cpu, cuda:0 ...; repeat it for one worker on each.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="fp32, bf16, fp16 or auto.")] = "fp32",
    batch: Annotated[int, typer.Option(help="Pictures drawn together on a GPU.")] = 8,
    queue: Annotated[int, typer.Option(help="Pictures that may wait.")] = 64,
    max_pixels: Annotated[int, typer.Option(help="Of a picture: height times width.")] = 2048 * 2048,
    max_steps: Annotated[int, typer.Option(help="Of a picture.")] = 100,
    max_pictures: Annotated[int, typer.Option(help="Of a request.")] = 10,
    max_seconds: Annotated[float, typer.Option(help="Of a request, with its time in the queue.")] = 600.0,
    drain_seconds: Annotated[
        float, typer.Option(help="For accepted requests, after a signal to stop.")
    ] = 60.0,
) -> None:
    """Serve a page, OpenAI's image API and the main calls of AUTOMATIC1111's, until Ctrl-C or SIGTERM."""
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        if find_spec(package) is None:
            raise MissingExtraError(package, "serve", "lineardit serve")
    from lineardit.config.serving import Limits, ServingConfig
    from lineardit.serving.server import serve as run

    config = ServingConfig(
        model=model,
        host=host,
        port=port,
        names=tuple(name or ()),
        devices=tuple(device or ("auto",)),
        dtype=dtype,
        batch=batch,
        drain_seconds=drain_seconds,
        limits=Limits(
            waiting=queue,
            pixels=max_pixels,
            steps=max_steps,
            pictures=max_pictures,
            seconds=max_seconds,
            work=max_pixels * max_steps,
        ),
    )
    run(config, _key(api_key_file), announce=_announce)


def _key(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get(KEY_VARIABLE) or None
    try:
        return file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise InputError(f"{file} cannot be read as a text. Give a file that holds the API key.") from None


def _announce(url: str, engine: "Engine") -> None:
    facts = engine.facts
    assert facts is not None
    devices = ", ".join(device.facts.device for device in engine.devices)
    typer.echo(f"{url}  model {facts.name}, {facts.dtype}, on {devices}; Ctrl-C stops", err=True)
