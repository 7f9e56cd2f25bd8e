"""Line plots as SVG, with nothing to install."""

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

from lineardit.errors import InputError

WIDTH, HEIGHT = 720, 440
LEFT, RIGHT, TOP, BOTTOM = 80, 44, 46, 56
# Told apart by people who see no red or no green (Okabe and Ito).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")

Points = Sequence[tuple[float, float]]


def line_plot(
    series: Mapping[str, Points],
    *,
    title: str,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    log_y: bool = False,
) -> str:
    """The lines through the points of each series, with axes, ticks and a legend: the text of an SVG file.

    Raises: InputError where there is nothing to draw, or a number that is not finite, or not positive on a
    logarithmic axis.
    """
    points = [point for line in series.values() for point in line]
    if not points:
        raise InputError(f"{title!r} has no points to draw.")
    x_axis = _Axis([x for x, _ in points], LEFT, WIDTH - RIGHT, logarithmic=log_x)
    y_axis = _Axis([y for _, y in points], HEIGHT - BOTTOM, TOP, logarithmic=log_y)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(LEFT, 22, title, size=15),
        *_grid(x_axis, y_axis),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, x_label, anchor="middle"),
        f'<g transform="translate(18 {(TOP + HEIGHT - BOTTOM) / 2:g}) rotate(-90)">'
        f"{_text(0, 0, y_label, anchor='middle')}</g>",
    ]
    for number, (name, line) in enumerate(series.items()):
        parts += _line(name, line, number, x_axis, y_axis)
    return "\n".join([*parts, "</svg>", ""])


class _Axis:
    """Values to pixels, and where the ticks stand."""

    def __init__(self, values: Sequence[float], start: int, end: int, *, logarithmic: bool) -> None:
        if not all(math.isfinite(value) and (value > 0 or not logarithmic) for value in values):
            raise InputError("a plot needs finite numbers, and positive ones on a logarithmic axis.")
        self.start, self.end, self.logarithmic = start, end, logarithmic
        low, high = min(values), max(values)
        if logarithmic:
            self.ticks = _powers(low, high)
        else:
            self.ticks = _round_steps(low, high)
        self.low, self.high = min(low, self.ticks[0]), max(high, self.ticks[-1])

    def place(self, value: float) -> float:
        """The pixel of a value."""
        scale = math.log if self.logarithmic else float
        share = (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))
        return self.start + share * (self.end - self.start)


def _powers(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    return [10.0**power for power in range(first, max(last, first + 1) + 1)]


def _round_steps(low: float, high: float) -> list[float]:
    span = (high - low) or abs(high) or 1.0
    magnitude = 10.0 ** math.floor(math.log10(span / 5))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if span / (factor * magnitude) <= 6)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [number * step for number in range(first, last + 1)]


def _grid(x_axis: _Axis, y_axis: _Axis) -> list[str]:
    parts = []
    for tick in x_axis.ticks:
        x = x_axis.place(tick)
        parts.append(f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#dddddd"/>')
        parts.append(_text(x, HEIGHT - BOTTOM + 18, f"{tick:,.10g}", anchor="middle"))
    for tick in y_axis.ticks:
        y = y_axis.place(tick)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#dddddd"/>')
        parts.append(_text(LEFT - 8, y + 4, f"{tick:,.10g}", anchor="end"))
    return parts


def _line(name: str, line: Points, number: int, x_axis: _Axis, y_axis: _Axis) -> list[str]:
    colour = COLOURS[number % len(COLOURS)]
    places = [(x_axis.place(x), y_axis.place(y)) for x, y in sorted(line)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    legend = TOP + 16 + 18 * number
    dots = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in places]
    return [
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>',
        *(dots if len(dots) <= 40 else []),
        f'<path d="M{LEFT + 10} {legend}h22" stroke="{colour}" stroke-width="3"/>',
        _text(LEFT + 38, legend + 4, name),
    ]


def _text(x: int | float, y: int | float, words: str, *, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(words)}</text>'
