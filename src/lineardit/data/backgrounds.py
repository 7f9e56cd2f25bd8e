"""What emoji scenes stand in front of: plain colours, and skies and landscapes made of graded bands."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Background:
    """A vertical gradient and the words for it."""

    name: str
    stops: tuple[tuple[float, str], ...]
    """Height (0 top, 1 bottom) and colour (rrggbb), downwards; in between it is interpolated."""
    words: tuple[str, ...]
    """Plain: the colour's adjectives. Graded: nouns with their article, such as `a sunset sky`."""
    reserved: tuple[str, ...] = ()
    """Words that no training caption has."""
    places: tuple[str, ...] = ()
    """Whole phrases such as `in the desert`, for graded ones."""

    @property
    def plain(self) -> bool:
        """One colour all over."""
        return len(self.stops) == 1

    def colours(self, height: int) -> Float[Tensor, "3 height"]:
        """The colour of each of `height` rows, in [0, 1], taken at the middle of the row."""
        heights = [position for position, _ in self.stops]
        stops = torch.tensor([_rgb(colour) for _, colour in self.stops], dtype=torch.float64) / 255
        rows = (torch.arange(height, dtype=torch.float64) + 0.5) / height
        if self.plain:
            return stops[0].float()[:, None].expand(3, height)
        above = torch.bucketize(rows, torch.tensor(heights, dtype=torch.float64)).clamp(1, len(heights) - 1)
        low, high = torch.tensor(heights).double()[above - 1], torch.tensor(heights).double()[above]
        mixed = torch.lerp(stops[above - 1], stops[above], ((rows - low) / (high - low)).clamp(0, 1)[:, None])
        return mixed.T.float()


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[:2], 16), int(colour[2:4], 16), int(colour[4:], 16)


def _plain(name: str, colour: str, *words: str, reserved: Sequence[str] = ()) -> Background:
    return Background(name, ((0.0, colour),), (name, *words), tuple(reserved))


BACKGROUNDS: tuple[Background, ...] = (
    _plain("white", "ffffff", reserved=["pure white"]),
    _plain("black", "000000", reserved=["pitch black"]),
    _plain("grey", "909090", "gray"),
    _plain("red", "d32020", reserved=["bright red"]),
    _plain("orange", "ff8c1a", reserved=["bright orange"]),
    _plain("yellow", "ffe135", reserved=["bright yellow"]),
    _plain("green", "2e9e3c", reserved=["grass green"]),
    _plain("teal", "0f8080", "blue-green"),
    _plain("sky blue", "87ceeb", "light blue", reserved=["pale blue"]),
    _plain("navy", "14235c", "dark blue", "navy blue", reserved=["deep blue"]),
    _plain("purple", "7a2f9e", "violet"),
    _plain("pink", "ff9ecb", "light pink", reserved=["rose pink"]),
    _plain("brown", "6b4226", "dark brown", reserved=["chocolate brown"]),
    _plain("beige", "ecdcb4", "cream", reserved=["sand"]),
    Background(
        "sunset sky",
        ((0.0, "5b2a86"), (0.5, "d8527c"), (1.0, "ffb13b")),
        ("a sunset sky", "a sunset"),
        ("an evening sky",),
        ("at sunset",),
    ),
    Background(
        "ocean",
        ((0.0, "5cc8e8"), (1.0, "08306b")),
        ("an ocean", "a blue ocean", "the sea"),
        ("deep water",),
        ("in the ocean", "in the sea"),
    ),
    Background(
        "meadow",
        ((0.0, "7cc4f5"), (0.56, "d5eefb"), (0.58, "5fbf4a"), (1.0, "3a8f2e")),
        ("a meadow", "a green meadow", "a green field"),
        ("a grassy field",),
        ("in a meadow", "on the grass"),
    ),
    Background(
        "night sky",
        ((0.0, "000008"), (1.0, "4a4aa8")),
        ("a night sky", "a dark night sky"),
        ("a midnight sky",),
        ("at night",),
    ),
    Background(
        "desert",
        ((0.0, "6fb7e6"), (0.53, "f6e2c0"), (0.55, "e3a857"), (1.0, "c27a2c")),
        ("a desert", "a sandy desert"),
        ("desert dunes",),
        ("in the desert",),
    ),
    Background(
        "beach",
        (
            *((0.0, "9adcf7"), (0.34, "c9eefb")),
            *((0.36, "1f8fc4"), (0.62, "39b4d6")),
            *((0.64, "f3dfae"), (1.0, "e8cb8a")),
        ),
        ("a beach", "a sandy beach"),
        ("the seaside",),
        ("on the beach", "at the beach"),
    ),
    Background(
        "snowy field",
        ((0.0, "8aa9c9"), (0.5, "c6d6e6"), (0.52, "f4f8ff"), (1.0, "ffffff")),
        ("a snowy field", "a snowy landscape"),
        ("a winter landscape",),
        ("in the snow",),
    ),
)

BACKGROUND_NAMES: tuple[str, ...] = tuple(each.name for each in BACKGROUNDS)


def background_rows(height: int) -> Float[Tensor, "g 3 height"]:
    """All backgrounds, one colour per row of pixels, in [-1, 1]."""
    return torch.stack([each.colours(height) for each in BACKGROUNDS]) * 2 - 1
