"""Tables in Markdown, and numbers as people read them."""

from collections.abc import Sequence

MIB = 2**20


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of one line per row. Every row is as long as the header."""
    lines = [header, ["---"] * len(header), *rows]
    if any(len(line) != len(header) for line in lines):
        raise AssertionError(f"rows of {sorted({len(line) for line in lines})} cells under {len(header)}")
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def significant(value: int | float, digits: int = 3) -> str:
    """`value` with that many significant digits, thousands apart, and no exponent."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    decimals = max(0, digits - 1 - int(f"{rounded:e}".partition("e")[2]))
    return f"{rounded:,.{decimals}f}"
