"""`lineardit serve`: a model on this machine, for programs and for people."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lineardit.cli.options import Compile, KeepFreed, Kernels, Memory, Quantize
from lineardit.cli.sizes import bytes_of
from lineardit.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from lineardit.serving.engine import Engine

KEY_VARIABLE = "LINEARDIT_API_KEY"


def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="A folder or a hub id; the bundled model, called emoji, unless given; can be repeated.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; one that others reach needs an API key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 lets the system choose.")] = 7860,
    name: Annotated[
        list[str] | None, typer.Option(help="A host name that requests may use; can be repeated.")
    ] = None,
    trusted_proxy: Annotated[
        list[str] | None,
        typer.Option(
            help="Address or network of a proxy whose X-Forwarded-For says who asks; can be repeated.",
            show_default=False,
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help=f"A file that holds the API key; else ${KEY_VARIABLE} counts.")
    ] = None,
    device: Annotated[
        list[str] | None, typer.Option(help="auto, cpu, cuda:0 ...; repeat it for one worker on each.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="fp32, bf16, fp16 or auto.")] = "fp32",
    memory: Memory = None,
    kernels: Kernels = "auto",
    compile: Compile = False,
    quantize: Quantize = None,
    keep_freed: KeepFreed = True,
    batch: Annotated[int, typer.Option(help="Pictures drawn together on a GPU.")] = 8,
    queue: Annotated[int, typer.Option(help="Pictures that may wait.")] = 64,
    max_pixels: Annotated[int, typer.Option(help="Of a picture: height times width.")] = 2048 * 2048,
    max_steps: Annotated[int, typer.Option(help="Of a picture.")] = 100,
    max_pictures: Annotated[int, typer.Option(help="Of a request.")] = 10,
    max_seconds: Annotated[float, typer.Option(help="Of a request, with its time in the queue.")] = 600.0,
    drain_seconds: Annotated[
        float, typer.Option(help="For accepted requests, after a signal to stop.")
    ] = 60.0,
    ray: Annotated[bool, typer.Option("--ray", help="Serve on a Ray cluster.")] = False,
    ray_address: Annotated[
        str | None,
        typer.Option(
            help="Of a running cluster, or auto; one is started here unless given.", show_default=False
        ),
    ] = None,
    replicas: Annotated[str, typer.Option(help="On Ray: a number, or LEAST:MOST by what waits.")] = "1",
    requests_per_replica: Annotated[
        float, typer.Option(help="On Ray: drawn and waiting on each; above it more replicas are started.")
    ] = 8.0,
    gpus_per_replica: Annotated[
        float | None,
        typer.Option(help="On Ray: 1 unless given where the cluster has any.", show_default=False),
    ] = None,
) -> None:
    """Serve a page, OpenAI's image API, the main calls of AUTOMATIC1111's, until Ctrl-C or SIGTERM."""
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        if find_spec(package) is None:
            raise MissingExtraError(package, "serve", "lineardit serve")
    from lineardit.config.serving import Limits, ServingConfig
    from lineardit.serving.server import serve as run

    config = ServingConfig(
        models=tuple(model or ()),
        host=host,
        port=port,
        names=tuple(name or ()),
        trusted_proxies=tuple(trusted_proxy or ()),
        devices=tuple(device or ("auto",)),
        dtype=dtype,
        kernels=kernels,
        compile=compile,
        quantize=quantize,
        memory=None if memory is None else bytes_of(memory),
        keep_freed=keep_freed,
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
    key = _key(api_key_file)
    if not ray:
        run(config, key, announce=_announce)
        return
    if find_spec("ray") is None:
        raise MissingExtraError("ray", "ray", "lineardit serve --ray")
    from lineardit.serving.cluster import Scale, serve_on_ray

    least, _, most = replicas.partition(":")
    try:
        scale = Scale(int(least), int(most or least), requests_per_replica, gpus_per_replica)
    except ValueError:
        raise InputError(
            f"--replicas {replicas} is neither a number nor LEAST:MOST. Use 2, or 1:4."
        ) from None
    serve_on_ray(config, key, scale, address=ray_address, announce=_announce_ray)


def _key(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get(KEY_VARIABLE) or None
    try:
        return file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise InputError(f"{file} cannot be read as a text. Give a file that holds the API key.") from None


def _announce_ray(url: str) -> None:
    typer.echo(f"{url}  on Ray; Ctrl-C stops", err=True)


def _announce(url: str, engine: "Engine") -> None:
    devices = ", ".join(device.facts[0].device for device in engine.devices)
    models = ", ".join(facts.name for facts in engine.models)
    typer.echo(f"{url}  model {models}, {engine.model().dtype}, on {devices}; Ctrl-C stops", err=True)
