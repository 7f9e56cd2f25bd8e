"""Sentences for scenes: templates, synonyms and word order, always true, some of them kept from training."""

import re
from collections.abc import Sequence
from functools import cache
from typing import Literal

from lineardit.data.backgrounds import BACKGROUNDS, Background
from lineardit.data.draws import Draws
from lineardit.data.emoji_layout import Place, Relation, place_of
from lineardit.data.emoji_objects import EmojiObject, Noun, emoji_objects, objects_by_name
from lineardit.data.scene import PlacedObject, Scene
from lineardit.errors import InputError

Phrasing = Literal["train", "unseen", "unseen_templates", "unseen_words"]

# Every table below has the sentences of training first and, under "unseen", those that training never has.
# A sentence that stands several times is that much more common.
_PREFIXES = {
    "train": (
        "a picture of ",
        "a picture of ",
        "an image of ",
        "a drawing of ",
        "an illustration of ",
        "a photo of ",
        "a scene with ",
        "draw ",
    ),
    "unseen": ("a painting of ", "please show me ", "generate ", "an artwork of ", "a rendering of "),
}
_SINGLE = {
    "train": ("{a}",),
    "unseen": ("just {a}", "only {a}", "nothing but {a}", "{a}, alone"),
}
_SIDE_BY_SIDE = {
    "train": (
        *("{a} left of {b}",) * 3,
        *("{a} to the left of {b}",) * 3,
        *("{b} right of {a}",) * 3,
        *("{b} to the right of {a}",) * 3,
        *("{a} on the left and {b} on the right",) * 2,
        "{a} on the left, {b} on the right",
        "{b} on the right and {a} on the left",
        "{a} next to {b}",
        "{b} beside {a}",
        "{a} and {b}",
        "{b} and {a}",
        "{b} with {a}",
    ),
    "unseen": (
        "{a} with {b} to its right",
        "{b} with {a} to its left",
        "left: {a}, right: {b}",
        "{a}, and to the right of it {b}",
        "to the left of {b} there is {a}",
        "{a} placed left of {b}",
        "on the left {a} and on the right {b}",
    ),
}
_STACKED = {
    "train": (
        *("{a} above {b}",) * 4,
        *("{a} over {b}",) * 2,
        *("{b} below {a}",) * 4,
        *("{b} under {a}",) * 2,
        *("{a} at the top and {b} at the bottom",) * 2,
        "{b} at the bottom and {a} at the top",
        "{a} above and {b} below",
        "{a} and {b}",
        "{b} and {a}",
        "{a} with {b}",
    ),
    "unseen": (
        "{b} beneath {a}",
        "{b} underneath {a}",
        "{a} with {b} below it",
        "top: {a}, bottom: {b}",
        "above {b} there is {a}",
        "{b} placed below {a}",
        "at the top {a} and at the bottom {b}",
    ),
}
_COUNTS = {
    "train": {
        2: ("two {s}", "two {s}", "2 {s}", "a pair of {s}", "a couple of {s}"),
        3: ("three {s}", "three {s}", "3 {s}", "a group of three {s}"),
        4: ("four {s}", "four {s}", "4 {s}", "a group of four {s}"),
    },
    "unseen": {
        2: ("exactly two {s}", "{s}, two of them", "a duo of {s}", "a set of 2 {s}"),
        3: ("exactly three {s}", "{s}, three of them", "a trio of {s}", "a set of 3 {s}"),
        4: ("exactly four {s}", "{s}, four of them", "a quartet of {s}", "a set of 4 {s}"),
    },
}
_ARRANGEMENTS = {
    "train": {
        "row": ("in a row", "side by side", "next to each other"),
        "column": ("in a column", "one above the other"),
        "diagonal": ("in a diagonal line", "placed diagonally"),
        "triangle": ("in a triangle", "forming a triangle"),
        "square": ("in a square", "forming a square"),
    },
    "unseen": {
        "row": ("lined up from left to right",),
        "column": ("stacked from top to bottom",),
        "diagonal": ("along a diagonal",),
        "triangle": ("arranged as a triangle",),
        "square": ("arranged as a square",),
    },
}
_LISTS = {
    "train": ("{list}",),
    "unseen": ("all of these: {list}", "{list} together", "a collection of {list}"),
}
_IN_ORDER = {
    "train": {
        "row": ("from left to right: {list}", "{list} in a row", "{list} side by side", "{list} from left to right"),
        "column": ("from top to bottom: {list}", "{list} in a column", "{list} from top to bottom"),
    },
    "unseen": {
        "row": ("left to right, {list}", "lined up: {list}"),
        "column": ("top to bottom, {list}", "stacked up: {list}"),
    },
}
_BETWEEN = {"train": ("{b} between {a} and {c}",), "unseen": ("{a} and {c} with {b} in the middle",)}
_PLACES: dict[str, dict[Place, tuple[str, ...]]] = {
    "train": {
        "centre": ("in the centre", "in the center", "in the middle"),
        "left": ("on the left", "on the left side"),
        "right": ("on the right", "on the right side"),
        "top": ("at the top",),
        "bottom": ("at the bottom",),
        "top left": ("in the top left corner", "at the top left", "in the top left"),
        "top right": ("in the top right corner", "at the top right", "in the top right"),
        "bottom left": ("in the bottom left corner", "at the bottom left", "in the bottom left"),
        "bottom right": ("in the bottom right corner", "at the bottom right", "in the bottom right"),
    },
    "unseen": {
        "centre": ("right in the center", "centred"),
        "left": ("at the left edge",),
        "right": ("at the right edge",),
        "top": ("near the top",),
        "bottom": ("near the bottom",),
        "top left": ("in the upper left corner", "in the upper left"),
        "top right": ("in the upper right corner", "in the upper right"),
        "bottom left": ("in the lower left corner", "in the lower left"),
        "bottom right": ("in the lower right corner", "in the lower right"),
    },
}
_ON_PLAIN = {
    "train": (
        *("{core} on {a_c} background",) * 7,
        *("{core} on {c}",) * 2,
        "{core} against {a_c} background",
        "{core} in front of {a_c} background",
        *("{core} with {a_c} background",) * 2,
        *("{core}, {c} background",) * 2,
        *("{core}, on {a_c} background",) * 3,
        "on {a_c} background, {core}",
        "{a_c} background with {core}",
    ),
    "unseen": (
        "{core} set against {c}",
        "{core} over {a_c} backdrop",
        "{core}, the background is {c}",
        "{core}, background: {c}",
        "in front of {a_c} backdrop, {core}",
    ),
}
_OF_PLAIN = "{core} of {a_c} background"
"""After a place: a cat in the centre of a white background."""
_ON_GRADED = {
    "train": (
        *("{core} in front of {w}",) * 3,
        *("{core} against {w}",) * 2,
        *("{core} with {w} in the background",) * 2,
        *("{core} on {a_bare} background",) * 2,
        "{core}, {bare} background",
        "{w} with {core}",
    ),
    "unseen": ("{core} set against {w}", "{core}, behind it {w}", "{core} before {w}", "{w} behind {core}"),
}
_NUMERALS = {2: "two", 3: "three", 4: "four"}
_SIZES = {
    "train": {"small": ("small", "small", "little"), "large": ("large", "large", "big")},
    "unseen": {"small": ("tiny",), "large": ("huge",)},
}


class Captions:
    """Writes captions in one phrasing: as in training, or with templates or words that training never has."""

    def __init__(self, phrasing: Phrasing = "train") -> None:
        known = ("train", "unseen", "unseen_templates", "unseen_words")
        if phrasing not in known:
            raise InputError(f"phrasing={phrasing!r} is none of {', '.join(known)}.")
        self.templates = "unseen" if phrasing in ("unseen", "unseen_templates") else "train"
        self.words = "unseen" if phrasing in ("unseen", "unseen_words") else "train"
        self._objects = objects_by_name()
        self._backgrounds = {each.name: each for each in BACKGROUNDS}

    def write(self, scene: Scene, draws: Draws) -> str:
        """One caption. What it says is in the picture; about three in four name the background."""
        core, placed = self._core(scene, draws)
        if draws.chance(0.75):
            return self._with_background(scene, core, placed, draws)
        return self._with_prefix(core, draws)

    def _core(self, scene: Scene, draws: Draws) -> tuple[str, bool]:
        if scene.kind == "single":
            return self._single(scene, draws)
        if scene.kind == "pair":
            return self._pair(scene, draws), False
        if scene.kind == "count":
            return self._count(scene, draws), False
        return self._group(scene, draws)

    def _single(self, scene: Scene, draws: Draws) -> tuple[str, bool]:
        each = scene.objects[0]
        thing = self._thing(each, scene, draws, bare=draws.chance(0.06))
        core = draws.one_of(_SINGLE[self.templates]).format(a=thing)
        place = place_of(each.x, each.y)
        said = place is not None and draws.chance(0.3 if place == "centre" else 0.75)
        if said and place is not None:
            core = f"{core} {draws.one_of(_PLACES[self.templates][place])}"
        return core, said

    def _pair(self, scene: Scene, draws: Draws) -> str:
        first, second = scene.objects
        if scene.relation in ("right of", "below"):
            first, second = second, first
        table = _SIDE_BY_SIDE if scene.relation in ("left of", "right of") else _STACKED
        bare = draws.chance(0.04)
        a, b = self._thing(first, scene, draws, bare), self._thing(second, scene, draws, bare)
        return draws.one_of(table[self.templates]).format(a=a, b=b)

    def _count(self, scene: Scene, draws: Draws) -> str:
        plural = self._thing(scene.objects[0], scene, draws, plural=True)
        templates = _COUNTS[self.templates][len(scene.objects)]
        core = draws.one_of(templates)
        if "pair" in plural and ("pair" in core or "couple" in core or "duo" in core):
            core = templates[0]
        core = core.format(s=plural)
        if scene.arrangement and draws.chance(0.35):
            core = f"{core} {draws.one_of(_ARRANGEMENTS[self.templates][scene.arrangement])}"
        return core

    def _group(self, scene: Scene, draws: Draws) -> tuple[str, bool]:
        in_order = [self._thing(each, scene, draws) for each in scene.objects]
        places = [place_of(each.x, each.y) for each in scene.objects]
        manner = draws.unit()
        ordered = _IN_ORDER[self.templates].get(scene.arrangement or "")
        if manner < 0.4 and ordered:
            if scene.arrangement == "row" and len(in_order) == 3 and draws.chance(0.35):
                a, b, c = in_order
                return draws.one_of(_BETWEEN[self.templates]).format(a=a, b=b, c=c), False
            return draws.one_of(ordered).format(list=_listed(in_order, draws)), False
        if manner < 0.4 and all(places):
            table = _PLACES[self.templates]
            placed = [f"{thing} {draws.one_of(table[place])}" for thing, place in zip(in_order, places) if place]
            return _listed(draws.shuffled(placed), draws), False
        things = _listed(draws.shuffled(in_order), draws)
        return draws.one_of(_LISTS[self.templates]).format(list=things), False

    def _thing(
        self, each: PlacedObject, scene: Scene, draws: Draws, bare: bool = False, plural: bool = False
    ) -> str:
        known = self._objects[each.name]
        noun, colour = self._noun(known, scene, draws)
        size = _SIZES[self.templates].get(each.size)
        words = [
            draws.one_of(size) if size and draws.chance(0.4) else "",
            colour,
            noun.plural if plural else noun.singular,
        ]
        phrase = " ".join(filter(None, words))
        return phrase if bare or plural else f"{article(phrase)} {phrase}"

    def _noun(self, known: EmojiObject, scene: Scene, draws: Draws) -> tuple[Noun, str]:
        others = {each.name for each in scene.objects} - {known.name}
        if any(self._objects[other].head == known.head for other in others):
            return known.nouns[0], known.colour
        colour = known.colour if draws.chance(0.35) else ""
        if self.words == "unseen" and known.reserved:
            return draws.one_of(known.reserved), colour
        return (known.nouns[0] if draws.chance(0.6) else draws.one_of(known.nouns)), colour

    def _with_background(self, scene: Scene, core: str, placed: bool, draws: Draws) -> str:
        background = self._backgrounds[scene.background]
        words = background.words
        if self.words == "unseen" and background.reserved:
            words = background.reserved
        word = words[0] if draws.chance(0.6) else draws.one_of(words)
        if not background.plain:
            return self._with_landscape(background, core, word, draws)
        template = draws.one_of(_ON_PLAIN[self.templates])
        if placed and self.templates == "train" and draws.chance(0.35):
            template = _OF_PLAIN
        core = self._prefixed(core, template, draws)
        return template.format(core=core, c=word, a_c=f"{article(word)} {word}")

    def _with_landscape(self, background: Background, core: str, word: str, draws: Draws) -> str:
        if self.templates == "train" and background.places and draws.chance(0.3):
            return f"{self._with_prefix(core, draws)} {draws.one_of(background.places)}"
        template = draws.one_of(_ON_GRADED[self.templates])
        bare = re.sub(r"^(an?|the) ", "", word)
        core = self._prefixed(core, template, draws)
        return template.format(core=core, w=word, a_bare=f"{article(bare)} {bare}", bare=bare)

    def _prefixed(self, core: str, template: str, draws: Draws) -> str:
        return self._with_prefix(core, draws) if template.startswith("{core}") else core

    def _with_prefix(self, core: str, draws: Draws) -> str:
        return draws.one_of(_PREFIXES[self.templates]) + core if draws.chance(0.22) else core


def article(phrase: str) -> str:
    """`a` or `an`, by the sound of the first word.

    >>> article("umbrella"), article("unicorn"), article("ufo")
    ('an', 'a', 'a')
    """
    if phrase.startswith(("uni", "ufo", "euro", "one")):
        return "a"
    return "an" if phrase[0] in "aeiou" else "a"


def _listed(things: Sequence[str], draws: Draws) -> str:
    if len(things) == 2:
        return f"{things[0]} and {things[1]}"
    manner = draws.unit()
    joint = " and " if manner < 0.6 else ", and " if manner < 0.85 else ", "
    return ", ".join(things[:-1]) + joint + things[-1]
