"""Where the objects of a scene stand: they do not overlap and leave no doubt about their relations."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from lineardit.config.scenes import SceneConfig
from lineardit.data.draws import Draws

Size = Literal["small", "medium", "large"]
Relation = Literal["left of", "right of", "above", "below"]
Arrangement = Literal["row", "column", "diagonal", "triangle", "square"]
Place = Literal[
    "centre", "left", "right", "top", "bottom", "top left", "top right", "bottom left", "bottom right"
]

SIZES: tuple[Size, ...] = ("small", "medium", "large")
OPPOSITE: dict[Relation, Relation] = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
}
GAP = 1 / 32
"""Least distance between the squares of two objects, over the side of the canvas; and to its edge, where
that leaves enough places."""
EDGE, CENTRE = 0.32, 0.06
"""An object is on the left up to this fraction of the width, and in the middle this close to it."""
LEAST_DISTANCE = 0.3
"""Least distance between the centres of a related pair, along the axis of the relation."""
MOST_OFFSET = 0.125
"""Largest offset of a related pair along the other axis."""

_PATTERNS: dict[int, tuple[tuple[Arrangement, tuple[tuple[int, int], ...]], ...]] = {
    2: (
        ("row", ((0, 0), (1, 0))),
        ("column", ((0, 0), (0, 1))),
        ("diagonal", ((0, 0), (1, 1))),
        ("diagonal", ((1, 0), (0, 1))),
    ),
    3: (
        ("row", ((0, 0), (1, 0), (2, 0))),
        ("column", ((0, 0), (0, 1), (0, 2))),
        ("diagonal", ((0, 0), (1, 1), (2, 2))),
        ("diagonal", ((2, 0), (1, 1), (0, 2))),
        ("triangle", ((1, 0), (0, 2), (2, 2))),
        ("triangle", ((0, 0), (2, 0), (1, 2))),
    ),
    4: (("square", ((0, 0), (1, 0), (0, 1), (1, 1))),),
}
_PAIRS: dict[tuple[Size, Size], int] = {
    ("medium", "medium"): 5,
    ("small", "medium"): 2,
    ("medium", "small"): 2,
    ("small", "small"): 2,
    ("small", "large"): 1,
    ("large", "small"): 1,
    ("medium", "large"): 1,
    ("large", "medium"): 1,
}
"""Sizes of a related pair, and how common they are; those that do not fit are left out."""
_SINGLES: tuple[Size, ...] = ("small", "medium", "medium", "large", "large")
_AROUND = tuple((across, down) for across in range(3) for down in range(3) if (across, down) != (1, 1))


class Spot(NamedTuple):
    """A size and the centre, in pixels of the canvas."""

    size: Size
    x: float
    y: float


def place_of(x: float, y: float) -> Place | None:
    """What people call this part of a picture; None where they would hesitate. Fractions of the canvas."""
    across = _third(x, "left", "right")
    down = _third(y, "top", "bottom")
    if across is None or down is None:
        return None
    return f"{down} {across}".strip() or "centre"  # type: ignore[return-value]


def _third(position: float, first: str, last: str) -> str | None:
    if position <= EDGE:
        return first
    if position >= 1 - EDGE:
        return last
    return "" if abs(position - 0.5) <= CENTRE else None


@dataclass(frozen=True)
class _Fit:
    """A pattern with objects of one size, and the spacings in steps at which it fits."""

    arrangement: Arrangement
    points: tuple[tuple[int, int], ...]
    size: Size
    low: int
    """Least centre, in steps from the edge."""
    spacings: tuple[int, ...]


class Layout:
    """Draws positions on the lattice of one configuration; everything is counted in its steps."""

    def __init__(self, config: SceneConfig) -> None:
        self.step = config.placement_step
        self.cells = config.size // config.placement_step
        self.side = {size: config.side(size) * self.cells for size in SIZES}
        self.gap = GAP * self.cells
        self.pairs = [
            pair for pair, weight in _PAIRS.items() if self._distances(*pair) for _ in range(weight)
        ]
        self.fits = {count: self._all_fits(count) for count in _PATTERNS}

    def single(self, draws: Draws) -> Spot:
        """Mostly in the centre, else at one of the eight places around it."""
        size = draws.one_of(_SINGLES)
        across, down = (1, 1) if draws.chance(0.55) else draws.one_of(_AROUND)
        return Spot(size, self._in_third(draws, size, across), self._in_third(draws, size, down))

    def pair(self, draws: Draws, relation: Relation) -> tuple[Spot, Spot]:
        """The first is `relation` the second: far enough apart along its axis, nearly level on the other."""
        first, second = draws.one_of(self.pairs)
        # Drawn as "left of"; the other relations are mirrored or turned.
        distance = draws.one_of(self._distances(first, second))
        low = self._low(first)
        near = draws.one_of(range(low, self.cells - self._low(second) - distance + 1))
        inner = max(self._low(first), self._low(second))
        reach = int(MOST_OFFSET * self.cells)
        level = self._middle_or_any(draws, inner, self.cells - inner)
        other = draws.one_of(range(max(inner, level - reach), min(self.cells - inner, level + reach) + 1))
        along = [near, near + distance]
        if relation in ("right of", "below"):
            along = [self.cells - each for each in along]
        if relation in ("left of", "right of"):
            return self._spot(first, along[0], level), self._spot(second, along[1], other)
        return self._spot(first, level, along[0]), self._spot(second, other, along[1])

    def arranged(self, draws: Draws, count: int) -> tuple[Arrangement, list[Spot]]:
        """That many objects of one size in a tidy pattern."""
        fit = draws.one_of(self.fits[count])
        spacing = draws.one_of(fit.spacings)
        low = fit.low
        width = spacing * max(x for x, _ in fit.points)
        height = spacing * max(y for _, y in fit.points)
        left = self._middle_or_any(draws, low, self.cells - low - width)
        top = self._middle_or_any(draws, low, self.cells - low - height)
        spots = [self._spot(fit.size, left + x * spacing, top + y * spacing) for x, y in fit.points]
        return fit.arrangement, spots

    def _all_fits(self, count: int) -> list[_Fit]:
        fits = []
        for arrangement, points in _PATTERNS[count]:
            closest = min(
                max(abs(a[0] - b[0]), abs(a[1] - b[1])) for i, a in enumerate(points) for b in points[:i]
            )
            extent = max(max(point) for point in points)
            for size in SIZES:
                least = math.ceil((self.side[size] + self.gap) / closest)
                for low in (self._low(size), self._flush(size)):
                    spacings = range(least, (self.cells - 2 * low) // extent + 1)
                    if spacings:
                        fits.append(_Fit(arrangement, points, size, low, tuple(spacings)))
                        break
        return fits

    def _distances(self, first: Size, second: Size) -> range:
        least = max(LEAST_DISTANCE * self.cells, (self.side[first] + self.side[second]) / 2 + self.gap)
        return range(math.ceil(least), self.cells - self._low(first) - self._low(second) + 1)

    def _low(self, size: Size) -> int:
        """Least centre: off the edge, unless the object would then stand nowhere near it."""
        low = math.ceil(self.side[size] / 2 + self.gap)
        return low if low <= EDGE * self.cells else self._flush(size)

    def _flush(self, size: Size) -> int:
        return math.ceil(self.side[size] / 2)

    def _middle_or_any(self, draws: Draws, low: int, high: int) -> int:
        return (low + high) // 2 if draws.chance(0.6) else draws.one_of(range(low, high + 1))

    def _in_third(self, draws: Draws, size: Size, third: int) -> float:
        low, edge, reach = self._low(size), int(EDGE * self.cells), int(CENTRE * self.cells)
        middle = self.cells // 2
        allowed = (range(low, edge + 1), range(middle - reach, middle + reach + 1))[min(third, 2 - third)]
        position = draws.one_of(allowed)
        return float((position if third < 2 else self.cells - position) * self.step)

    def _spot(self, size: Size, x: int, y: int) -> Spot:
        return Spot(size, float(x * self.step), float(y * self.step))
