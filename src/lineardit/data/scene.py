"""What one picture shows, written down."""

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from lineardit.data.emoji_layout import Arrangement, Relation, Size, place_of

Kind = Literal["single", "pair", "count", "group"]


@dataclass(frozen=True)
class PlacedObject:
    """One object in a scene; centre and side are fractions of the canvas."""

    name: str
    size: Size
    x: float
    y: float
    side: float
    """Over the shorter side of the canvas."""


@dataclass(frozen=True)
class Scene:
    """One picture: what it is drawn from and measured against."""

    background: str
    objects: tuple[PlacedObject, ...]
    kind: Kind
    relation: Relation | None = None
    """Of a pair: the first object is this the second."""
    arrangement: Arrangement | None = None
    """Of a count or a group: the pattern that the objects form, from left to right and top to bottom."""

    def truth(self) -> dict[str, Any]:
        """The same as plain JSON, with what follows from it: counts, and the place of each object."""
        return {
            "kind": self.kind,
            "background": self.background,
            "relation": self.relation,
            "arrangement": self.arrangement,
            "counts": dict(Counter(each.name for each in self.objects)),
            "objects": [
                {
                    "name": each.name,
                    "size": each.size,
                    "x": each.x,
                    "y": each.y,
                    "side": each.side,
                    "place": place_of(each.x, each.y),
                }
                for each in self.objects
            ],
        }
