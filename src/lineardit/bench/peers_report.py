"""The comparison with diffusers as a page."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lineardit.bench.peers import (
    AUTOENCODER,
    CONTENDERS,
    STEPS,
    TOKENS,
    TOLD,
    TRANSFORMER,
    LeftOut,
    Measured,
)
from lineardit.bench.table import markdown_table, significant

HEADER = (
    "pixels",
    "who",
    "seconds",
    "times the first",
    "of the limit",
    "first call, s",
    "peak, GB",
    "output apart",
)
PICTURES = ("pixels", "who", "seconds", "times the first", "peak, GB", "of the first's")


class Limit(NamedTuple):
    """What bounds the time of a call."""

    operations: Mapping[tuple[str, int], int]
    """By part and pixels."""
    rate: float
    """Operations a second, in products of large matrices."""

    def share(self, row: Measured) -> float | None:
        """Of the time that the call took, what its operations take at that rate; None for another dtype."""
        if CONTENDERS[row.contender].int8 and row.part == "step":
            return None
        return self.operations[row.part, row.pixels] / self.rate / row.seconds


def peers_page(stamp: str, rows: Sequence[Measured | LeftOut], limit: Limit) -> str:
    """A table for each part, and one for whole pictures, in Markdown, under the stamp of the machine."""
    measured = [row for row in rows if isinstance(row, Measured)]
    parts = [part for part in _TITLES if any(row.part == part for row in measured)]
    sections = [_part(part, [row for row in measured if row.part == part], limit) for part in parts]
    if len(parts) == len(_TITLES):
        sections.append(f"## A picture of {STEPS} guided steps, from these\n\n{_pictures(measured)}")
    left_out = [row for row in rows if isinstance(row, LeftOut)]
    if left_out:
        lines = [f"- {row.contender}, {row.part} at {row.pixels} pixels: {row.reason}" for row in left_out]
        sections.append("\n".join(["Left out:", "", *lines]))
    title = f"# {TRANSFORMER} and {AUTOENCODER} side by side with diffusers"
    rate = f"Matrices are multiplied at {limit.rate / 1e9:,.0f} GFLOP a second here."
    return "\n\n".join((title, stamp, f"{_EXPLAINED} {rate}", *sections)) + "\n"


_EXPLAINED = (
    "The same random weights and inputs; medians after a first call, each contender and size in a process of "
    "its own that holds the networks of all parts, one after the other. "
    f"Prompts of {TOLD[1]} and {TOLD[0]} tokens, padded to {TOKENS}. "
    "Outputs were compared to the first contender's (root mean square over deviation) before a speed was "
    "told. The limit is the time of the operations, counted for the tokens that are there, at the rate of "
    "large matrix products; convolutions and short prompts in fewer products than they say go beyond it. "
    "Peak is the most that the process held, weights included. Within a share of the memory weights are read "
    "from their files when they are at work: once a picture, and in every step those blocks that do not fit."
)
_TITLES = {"step": "A guided step of the transformer", "decode": "Decoding a picture"}


def _part(part: str, rows: Sequence[Measured], limit: Limit) -> str:
    cells = []
    for row in sorted(rows, key=lambda row: row.pixels):
        first = next(each for each in rows if each.pixels == row.pixels)
        share = limit.share(row)
        cells.append(
            [
                f"{row.pixels}",
                row.contender,
                significant(row.seconds),
                f"{first.seconds / row.seconds:.2f}",
                "-" if share is None else f"{share:.0%}",
                significant(row.first),
                _gigabytes(row.peak),
                f"{row.apart:.1e}",
            ]
        )
    return f"## {_TITLES[part]}\n\n{markdown_table(HEADER, cells)}"


def _pictures(rows: Sequence[Measured]) -> str:
    steps = {(row.pixels, row.contender): row for row in rows if row.part == "step"}
    decodes = {(row.pixels, row.contender): row for row in rows if row.part == "decode"}
    cells: list[list[str]] = []
    firsts: dict[int, tuple[float, int | None]] = {}
    for pixels, who in sorted(steps.keys() & decodes.keys(), key=lambda key: (key[0], [*steps].index(key))):
        step, decode = steps[pixels, who], decodes[pixels, who]
        own = picture_seconds(step, decode)
        peak = None if step.peak is None or decode.peak is None else max(step.peak, decode.peak)
        seconds, most = firsts.setdefault(pixels, (own, peak))
        share = "-" if peak is None or not most else f"{peak / most:.2f}"
        cells.append([f"{pixels}", who, significant(own), f"{seconds / own:.2f}", _gigabytes(peak), share])
    return markdown_table(PICTURES, cells)


def picture_seconds(step: Measured, decode: Measured) -> float:
    """Of what comes before the steps, all of them, and the decoder."""
    return step.once + STEPS * step.seconds + decode.seconds


def _gigabytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e9:.2f}"
