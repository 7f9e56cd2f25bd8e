"""The benchmark of whole networks as a page."""

from collections.abc import Sequence

from lineardit.bench.models import GUIDED, Row
from lineardit.bench.table import markdown_table, significant

HEADER = (
    "network",
    "pixels",
    "tokens",
    "parameters, M",
    "GFLOP a forward",
    "steps",
    "TFLOP an image",
    "of it decoder",
    "s a step",
    "s an image",
    "GB a step",
    "GB decoding",
    "left out",
)


def models_page(stamp: str, rows: Sequence[Row]) -> str:
    """One table in Markdown, under the stamp of the machine."""
    return "\n\n".join(
        (
            "# Whole networks, random weights",
            stamp,
            markdown_table(HEADER, [_cells(row) for row in rows]),
            "Operations are counted by torch over matrix products, convolutions and attention; a "
            f"multiply-add is two. A step is guided: {GUIDED} forward passes at once. An image is its steps, "
            "one after the other, and the decoder, without the text encoder: seconds are a step's times the "
            "steps, and the decoder's. GB are weights and activations in the process that ran it.\n",
        )
    )


def _cells(row: Row) -> list[str]:
    counted, timed = row
    image_seconds = None
    if timed.step_seconds is not None and timed.decode_seconds is not None:
        image_seconds = counted.steps * timed.step_seconds + timed.decode_seconds
    return [
        counted.name,
        f"{counted.pixels}",
        f"{counted.tokens:,}",
        f"{counted.parameters / 1e6:,.1f}",
        _number(counted.forward_flops, 1e9, 4),
        f"{counted.steps}",
        _number(counted.image_flops, 1e12),
        _number(counted.decoder_flops, 1e12),
        _number(timed.step_seconds, 1),
        _number(image_seconds, 1),
        _number(timed.step_peak, 1e9),
        _number(timed.decode_peak, 1e9),
        timed.left_out or "-",
    ]


def _number(value: int | float | None, unit: int | float, digits: int = 3) -> str:
    return "-" if value is None else significant(value / unit, digits)
