"""Emoji scenes: an endless, indexable source of pictures with captions and with the truth about them."""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from lineardit.config.scenes import SceneConfig
from lineardit.data.backgrounds import BACKGROUND_NAMES, background_rows
from lineardit.data.composition import Composition
from lineardit.data.draws import Draws
from lineardit.data.emoji_atlas import Atlas
from lineardit.data.emoji_captions import Captions, Phrasing, check_choice, vocabulary
from lineardit.data.emoji_layout import OPPOSITE, Layout, Spot
from lineardit.data.emoji_objects import emoji_objects
from lineardit.data.scene import Kind, PlacedObject, Scene
from lineardit.errors import ConfigError, InputError

__all__ = ["VERSION", "Atlas", "EmojiScenes", "PlacedObject", "Scene", "SceneBatch", "Split", "vocabulary"]

Split = Literal["train", "held_out"]

VERSION = 1
"""Grows whenever the same seed and index begin to give another scene or caption."""
_KINDS: tuple[tuple[Kind, float, int], ...] = (
    ("single", 0.35, 1),
    ("pair", 0.30, 2),
    ("count", 0.20, 2),
    ("group", 0.15, 2),
)
"""Kind, its share, and the fewest objects that it needs."""


class SceneBatch(NamedTuple):
    """Scenes drawn together."""

    pixels: Float[Tensor, "b 3 H W"]
    """In [-1, 1]."""
    captions: list[str]
    scenes: list[Scene]


class EmojiScenes:
    """Scene, caption and picture of any index: each a function of (seed, split, index) and of nothing else.

    In the split `train` no held-out pair ever occurs; in `held_out` every scene has at least one. Only
    drawing needs the glyphs: without an `atlas` they are rendered from the font at the first picture.
    """

    def __init__(
        self,
        config: SceneConfig,
        seed: int = 0,
        split: Split = "train",
        atlas: Atlas | None = None,
        phrasing: Phrasing = "train",
    ) -> None:
        listed = emoji_objects()
        if config.objects > len(listed):
            raise ConfigError(
                f"objects={config.objects}: the list has {len(listed)}. Use {len(listed)} or less."
            )
        check_choice("split", split, get_args(Split))
        self.config = config
        self.seed = seed
        self.split = split
        self.phrasing = phrasing
        self.names = tuple(each.name for each in listed[: config.objects])
        self.composition = Composition(listed[: config.objects], config.held_out_share)
        self._layout = Layout(config)
        self._captions = Captions(phrasing)
        self._kinds = [kind for kind in _KINDS if kind[2] <= config.max_objects]
        if atlas is not None:
            _check(atlas, self.names)
            self.atlas = atlas
        self._resized: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}

    @cached_property
    def atlas(self) -> Atlas:
        """The glyphs. Raises: MissingFontError when they have to be rendered and the font is missing."""
        return Atlas.from_font(self.names)

    def scene(self, index: int) -> Scene:
        """What picture number `index` (0, 1, ...) shows."""
        draws = Draws("scene", self.seed, self.split, index)
        kind = self._kind(draws)
        if kind == "single":
            return self._placed(kind, draws, 1, [self._layout.single(draws)])
        if kind == "pair":
            relation = draws.one_of(tuple(OPPOSITE))
            return self._placed(kind, draws, 2, list(self._layout.pair(draws, relation)), relation=relation)
        count = draws.one_of((2, 3, 3, 4) if kind == "group" else (2, 3, 4))
        count = min(count, self.config.max_objects)
        arrangement, spots = self._layout.arranged(draws, count)
        return self._placed(kind, draws, count if kind == "group" else 1, spots, arrangement=arrangement)

    def captions(self, scene: Scene, index: int, count: int = 1) -> list[str]:
        """`count` phrasings of the scene; the first ones do not depend on how many are asked for."""
        draws = Draws("caption", self.seed, self.split, self.phrasing, index)
        return [self._captions.write(scene, draws) for _ in range(count)]

    def captions_only(self, start: int, count: int) -> Iterator[str]:
        """The captions of `count` scenes from `start`, without a font and without drawing."""
        for index in range(start, start + count):
            yield self.captions(self.scene(index), index)[0]

    def __getitem__(self, index: int) -> tuple[Scene, str]:
        if index < 0:
            raise InputError(f"index={index}: scenes are numbered from 0 upwards and never end.")
        scene = self.scene(index)
        return scene, self.captions(scene, index)[0]

    def batch(
        self, start: int, count: int, *, size: int | tuple[int, int] | None = None, device: str = "cpu"
    ) -> SceneBatch:
        """Pictures, captions and scenes of `count` indices from `start`."""
        scenes, captions = zip(*(self[index] for index in range(start, start + count)), strict=True)
        return SceneBatch(self.draw(scenes, size=size, device=device), list(captions), list(scenes))

    @torch.no_grad()
    def draw(
        self,
        scenes: Sequence[Scene],
        *,
        size: int | tuple[int, int] | None = None,
        device: str | torch.device = "cpu",
    ) -> Float[Tensor, "b 3 H W"]:
        """Compose scenes at `size` (pixels, or height and width), in [-1, 1].

        Objects do not overlap, so all of one size are laid on all pictures at once, and each picture is
        the same whichever others are drawn with it.
        """
        height, width = (size, size) if isinstance(size, int) else size or (self.config.size,) * 2
        device = torch.device(device)
        rows = background_rows(height).to(device)
        which = torch.tensor([BACKGROUND_NAMES.index(scene.background) for scene in scenes], device=device)
        canvas = rows[which, :, :, None].expand(-1, -1, -1, width).contiguous()
        for side, placed in _by_side(scenes, height, width).items():
            self._lay(canvas, side, placed)
        return canvas

    def description(self) -> dict[str, Any]:
        """What decides every picture and caption of this source, as JSON."""
        return {
            "source": "emoji scenes",
            "version": VERSION,
            "config": self.config.model_dump(mode="json"),
            "seed": self.seed,
            "split": self.split,
            "phrasing": self.phrasing,
            "objects": list(self.names),
            "backgrounds": list(BACKGROUND_NAMES),
        }

    @property
    def digest(self) -> str:
        """A short name of `description`, by which a resumed run knows its scenes again."""
        return hashlib.sha256(str(self.description()).encode()).hexdigest()

    def _kind(self, draws: Draws) -> Kind:
        left = draws.unit() * sum(share for _, share, _ in self._kinds)
        for kind, share, _ in self._kinds:
            left -= share
            if left < 0:
                return kind
        return self._kinds[-1][0]

    def _placed(self, kind: Kind, draws: Draws, different: int, spots: list[Spot], **relations: Any) -> Scene:
        background, names = self.composition.draw(draws, different, self.split == "held_out")
        if different < len(spots):
            names = names * len(spots)
        canvas = self.config.size
        objects = tuple(
            PlacedObject(name, spot.size, spot.x / canvas, spot.y / canvas, self.config.side(spot.size))
            for name, spot in zip(names, spots, strict=True)
        )
        return Scene(background, objects, kind, **relations)

    def _lay(self, canvas: Tensor, side: int, placed: list[tuple[int, str, int, int]]) -> None:
        """Lay objects of one size on the canvas: ink + keep * canvas in each one's window."""
        ink, keep = self._glyphs(side, canvas.device)
        position = self.atlas.index
        pictures, names, tops, lefts = zip(*placed, strict=True)
        glyphs = [position[name] for name in names]
        picture, top, left, glyph = torch.tensor([pictures, tops, lefts, glyphs], device=canvas.device)
        # A view of every window of that size; no two objects share a pixel, so none is written twice.
        windows = canvas.unfold(2, side, 1).unfold(3, side, 1)
        windows[picture, :, top, left] = ink[glyph] + keep[glyph] * windows[picture, :, top, left]

    def _glyphs(self, side: int, device: torch.device) -> tuple[Tensor, Tensor]:
        key = (side, device)
        if key not in self._resized:
            glyphs = self.atlas.resized(side)
            colour, alpha = glyphs[:, :3], glyphs[:, 3:]
            self._resized[key] = ((2 * colour - alpha).to(device), (1 - alpha).to(device))
        return self._resized[key]


def _by_side(scenes: Sequence[Scene], height: int, width: int) -> dict[int, list[tuple[int, str, int, int]]]:
    """Picture, name, top and left of every object, by its side in pixels."""
    groups: dict[int, list[tuple[int, str, int, int]]] = {}
    for picture, scene in enumerate(scenes):
        for each in scene.objects:
            side = max(1, round(each.side * min(height, width)))
            top = min(max(round(each.y * height - side / 2), 0), height - side)
            left = min(max(round(each.x * width - side / 2), 0), width - side)
            groups.setdefault(side, []).append((picture, each.name, top, left))
    return groups


def _check(atlas: Atlas, names: Sequence[str]) -> None:
    missing = [name for name in names if name not in atlas.index]
    if missing:
        raise InputError(
            f"the atlas lacks {len(missing)} of {len(names)} objects, such as {missing[0]!r}: render one "
            "with Atlas.from_font(names), or lower the number of objects."
        )
