"""`lineardit convert`: a model, or one network of it, in another format."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lineardit.cli.options import AutoencoderPlace, TextEncoderPlace

if TYPE_CHECKING:
    from lineardit.interop.export import Written


def convert(
    source: Annotated[str, typer.Argument(metavar="IN", help="A folder, a file or a hub id.")],
    out: Annotated[
        Path,
        typer.Argument(help="A new folder; for one network in the official format, a .pth or .safetensors."),
    ],
    to: Annotated[
        Literal["native", "diffusers", "official"],
        typer.Option("--format", help="What to write: our own folder, that of diffusers, or official names."),
    ] = "native",
    autoencoder: AutoencoderPlace = None,
    text_encoder: TextEncoderPlace = None,
    part: Annotated[
        str | None,
        typer.Option(
            help="Write this network alone: transformer, autoencoder, controlnet, or a text_encoder of ours.",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="fp32, bf16 or fp16; as it is stored unless given.", show_default=False)
    ] = None,
    variant: Annotated[
        str | None, typer.Option(help="Which weights of a diffusers folder: fp16, bf16.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a model that is there already.")] = False,
) -> None:
    """Rewrite a model under the names of another format, number for number; what does not fit is refused."""
    from lineardit.errors import InputError
    from lineardit.interop.export import check_free, export
    from lineardit.interop.places import open_place, with_parts
    from lineardit.kernels.select import DTYPES

    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"dtype={dtype!r} cannot be stored. Use one of {', '.join(DTYPES)}.")
    check_free(out, force)
    place = open_place(source, variant=variant)
    if autoencoder is not None or text_encoder is not None:
        place = with_parts(place, autoencoder, text_encoder, variant=variant)
    if part is not None:
        place = place.only(part)

    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("converting", total=sum(len(each.tensors) for each in place.networks.values()))
        written = export(place, out, to, dtype=dtype, force=force, on_tensor=lambda _: bar.advance(task))
    typer.echo("\n".join([f"{place.format} -> {to}: {out}", *map(_line, written)]))


def _line(part: "Written") -> str:
    if not part.class_name:
        return f"  {part.name}: not written, it has no place in this format"
    count = f", {part.tensors} tensors" if part.tensors else ", copied"
    rest = f"; left out: {', '.join(part.left_out)}" if part.left_out else ""
    return f"  {part.name}: {part.class_name}{count}{rest}"
