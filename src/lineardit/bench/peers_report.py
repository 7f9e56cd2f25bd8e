"""The comparison with diffusers as a page."""

from collections.abc import Sequence

from lineardit.bench.peers import AUTOENCODER, STEPS, TOKENS, TOLD, TRANSFORMER, Measured
from lineardit.bench.table import markdown_table, significant

HEADER = ("pixels", "who", "seconds", "times the first", "first call, s", "peak, GB", "output apart")


def peers_page(stamp: str, rows: Sequence[Measured]) -> str:
    """A table for each part, and one for whole pictures, in Markdown, under the stamp of the machine."""
    parts = [part for part in ("step", "decode") if any(row.part == part for row in rows)]
    tables = [
        f"## {_TITLES[part]}\n\n{markdown_table(HEADER, _cells([row for row in rows if row.part == part]))}"
        for part in parts
    ]
    if len(parts) == 2:
        tables.append(f"## A picture of {STEPS} guided steps, from these\n\n{_pictures(rows)}")
    return (
        "\n\n".join(
            (
                f"# {TRANSFORMER} and {AUTOENCODER} side by side with diffusers",
                stamp,
                _EXPLAINED,
                *tables,
            )
        )
        + "\n"
    )


_EXPLAINED = (
    "The same random weights and inputs; medians after a first call, each contender in a process of its own, "
    f"one after the other. Prompts of {TOLD[1]} and {TOLD[0]} tokens, padded to {TOKENS}. "
    "Outputs were compared to the first contender's (root mean square over deviation) before a speed was "
    "told. Peak is what the process held at most, weights included."
)
_TITLES = {"step": "A guided step of the transformer", "decode": "Decoding a picture"}


def _cells(rows: Sequence[Measured]) -> list[list[str]]:
    cells = []
    for row in sorted(rows, key=lambda row: row.pixels):
        first = next(each for each in rows if each.pixels == row.pixels)
        cells.append(
            [
                f"{row.pixels}",
                row.contender,
                significant(row.seconds),
                f"{first.seconds / row.seconds:.2f}",
                significant(row.first),
                "-" if row.peak is None else f"{row.peak / 1e9:.2f}",
                f"{row.apart:.1e}",
            ]
        )
    return cells


def _pictures(rows: Sequence[Measured]) -> str:
    steps = {(row.pixels, row.contender): row for row in rows if row.part == "step"}
    decodes = {(row.pixels, row.contender): row for row in rows if row.part == "decode"}
    seconds = {
        key: STEPS * row.seconds + (row.once if "lineardit" in key[1] else 0.0) + decodes[key].seconds
        for key, row in steps.items()
        if key in decodes
    }
    cells = []
    for pixels, who in sorted(seconds, key=lambda key: key[0]):
        first = next(value for key, value in seconds.items() if key[0] == pixels)
        own = seconds[pixels, who]
        cells.append([f"{pixels}", who, significant(own), f"{first / own:.2f}"])
    return markdown_table(("pixels", "who", "seconds", "times the first"), cells)
