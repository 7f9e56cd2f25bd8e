"""`lineardit bench`: measurements that anyone can repeat, each under the machine's stamp."""

from pathlib import Path
from typing import Annotated

import typer

from lineardit.errors import InputError, OutputError

WHAT = ("image",)


def bench(
    what: Annotated[str, typer.Argument(help="image: one picture from a cold start, by part.")],
    model: Annotated[
        str | None, typer.Option(help="Folder of a model; the bundled one unless given.")
    ] = None,
    num_inference_steps: Annotated[int, typer.Option(help="Denoising steps.")] = 20,
    runs: Annotated[int, typer.Option(help="Fresh processes; the median counts.")] = 5,
    threads: Annotated[int, typer.Option(help="Of torch; 0 leaves it to torch.")] = 0,
    dtype: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Also write the table as Markdown.")
    ] = None,
) -> None:
    """Measure speed on this machine."""
    if what not in WHAT:
        raise InputError(f"unknown measurement {what!r}. Use one of {', '.join(WHAT)}.")
    if runs < 1:
        raise InputError(f"runs={runs} is not a positive number. Use 5.")
    import torch

    from lineardit.bench.image import PARTS, measure_cold_split
    from lineardit.bench.stamp import hardware_stamp, stamp_line

    if threads:
        torch.set_num_threads(threads)
    split = measure_cold_split(
        "a red apple left of a cat on a sky blue background",
        model=model,
        steps=num_inference_steps,
        runs=runs,
        threads=threads,
        dtype=dtype,
    )
    lines = [
        "# One picture from a cold start",
        "",
        f"{stamp_line(hardware_stamp())}; {dtype}, {num_inference_steps} guided steps, "
        f"median of {runs} processes.",
        "",
        "| part | seconds |",
        "|---|---|",
        *(f"| {part} | {split.parts[part]:.2f} |" for part in PARTS),
        f"| **process, start to end** | **{split.whole:.2f}** |",
        "",
    ]
    typer.echo("\n".join(lines))
    if output is not None:
        try:
            output.write_text("\n".join(lines), "utf-8")
        except OSError as error:
            raise OutputError(f"{output} was not written: {error.strerror}.") from None
