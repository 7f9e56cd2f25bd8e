"""Options that several verbs have in common."""

from typing import Annotated, Literal

import typer

from lineardit.errors import InputError

AutoencoderPlace = Annotated[
    str | None, typer.Option(help="Place of the autoencoder, where the model has none or another is wanted.")
]
TextEncoderPlace = Annotated[
    str | None, typer.Option(help="Place of the text encoder, likewise; a folder of Gemma-2 will do.")
]
GuidanceInterval = Annotated[
    str, typer.Option(help="Times in which guidance applies, 0 the picture, 1 noise; less is faster.")
]
StepCache = Annotated[
    float, typer.Option(help="Skip middle blocks while the first changes less; 0 is exact, 0.1 usual.")
]

Quantize = Annotated[
    Literal["int8"] | None,
    typer.Option(help="Round the transformer's layers: faster, nearly the same picture.", show_default=False),
]
Memory = Annotated[
    str | None,
    typer.Option(help="Draw within this much, as 2GB: the same picture in bands.", show_default=False),
]
Kernels = Annotated[str, typer.Option(help="auto, torch alone, or native: on a CPU C++, compiled once.")]
Compile = Annotated[
    bool, typer.Option("--compile", help="With torch.compile: slow at first, for many pictures on a GPU.")
]
KeepFreed = Annotated[
    bool,
    typer.Option(
        help="Let the C library keep large blocks that are freed: faster, and more memory. "
        "With --memory where there is room."
    ),
]


def interval(text: str) -> tuple[float, float]:
    """`0.1,0.9` as two times. Raises `InputError` for anything else."""
    try:
        lowest, highest = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--guidance-interval {text} is not two times. Use 0.1,0.9.") from None
    return lowest, highest
