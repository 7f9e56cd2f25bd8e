"""Sentences for scenes: templates, synonyms and word order, always true, some of them kept from training."""

import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Literal, get_args

from lineardit.data.backgrounds import BACKGROUNDS, Background
from lineardit.data.draws import Draws
from lineardit.data.emoji_layout import place_of
from lineardit.data.emoji_objects import EmojiObject, Noun, emoji_objects, objects_by_name
from lineardit.data.emoji_phrases import (
    ARRANGEMENTS,
    BETWEEN,
    COUNTS,
    IN_ORDER,
    LISTS,
    OF_PLAIN,
    ON_GRADED,
    ON_PLAIN,
    OPENINGS,
    PLACES,
    PREFIXES,
    SIDE_BY_SIDE,
    SINGLE,
    SIZES,
    STACKED,
)
from lineardit.data.scene import PlacedObject, Scene
from lineardit.errors import InputError

Phrasing = Literal["train", "unseen", "unseen_templates", "unseen_words"]


class Captions:
    """Writes captions in one phrasing: as in training, or with templates or words that training never has."""

    def __init__(self, phrasing: Phrasing = "train") -> None:
        check_choice("phrasing", phrasing, get_args(Phrasing))
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
        core = draws.one_of(SINGLE[self.templates]).format(a=thing)
        place = place_of(each.x, each.y)
        said = place is not None and draws.chance(0.3 if place == "centre" else 0.75)
        if said and place is not None:
            core = f"{core} {draws.one_of(PLACES[self.templates][place])}"
        return core, said

    def _pair(self, scene: Scene, draws: Draws) -> str:
        first, second = scene.objects
        if scene.relation in ("right of", "below"):
            first, second = second, first
        table = SIDE_BY_SIDE if scene.relation in ("left of", "right of") else STACKED
        bare = draws.chance(0.04)
        a, b = self._thing(first, scene, draws, bare), self._thing(second, scene, draws, bare)
        return draws.one_of(table[self.templates]).format(a=a, b=b)

    def _count(self, scene: Scene, draws: Draws) -> str:
        plural = self._thing(scene.objects[0], scene, draws, plural=True)
        templates = COUNTS[self.templates][len(scene.objects)]
        core = draws.one_of(templates)
        if "pair" in plural and ("pair" in core or "couple" in core or "duo" in core):
            core = templates[0]
        core = core.format(s=plural)
        if scene.arrangement and draws.chance(0.35):
            core = f"{core} {draws.one_of(ARRANGEMENTS[self.templates][scene.arrangement])}"
        return core

    def _group(self, scene: Scene, draws: Draws) -> tuple[str, bool]:
        in_order = [self._thing(each, scene, draws) for each in scene.objects]
        places = [place_of(each.x, each.y) for each in scene.objects]
        manner = draws.unit()
        ordered = IN_ORDER[self.templates].get(scene.arrangement) if scene.arrangement else None
        if manner < 0.4 and ordered:
            if scene.arrangement == "row" and len(in_order) == 3 and draws.chance(0.35):
                a, b, c = in_order
                return draws.one_of(BETWEEN[self.templates]).format(a=a, b=b, c=c), False
            return draws.one_of(ordered).format(list=_listed(in_order, draws)), False
        if manner < 0.4 and all(places):
            table = PLACES[self.templates]
            pairs = zip(in_order, places, strict=True)
            placed = [f"{thing} {draws.one_of(table[place])}" for thing, place in pairs if place]
            return _listed(draws.shuffled(placed), draws), False
        things = _listed(draws.shuffled(in_order), draws)
        return draws.one_of(LISTS[self.templates]).format(list=things), False

    def _thing(
        self, each: PlacedObject, scene: Scene, draws: Draws, bare: bool = False, plural: bool = False
    ) -> str:
        known = self._objects[each.name]
        noun, colour = self._noun(known, scene, draws)
        size = SIZES[self.words].get(each.size)
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
        template = self._template(ON_PLAIN, core, draws)
        if placed and self.templates == "train" and draws.chance(0.35):
            template = OF_PLAIN
        core = self._prefixed(core, template, draws)
        return template.format(core=core, c=word, a_c=f"{article(word)} {word}")

    def _with_landscape(self, background: Background, core: str, word: str, draws: Draws) -> str:
        if self.templates == "train" and background.places and draws.chance(0.3):
            return f"{self._with_prefix(core, draws)} {draws.one_of(background.places)}"
        template = self._template(ON_GRADED, core, draws)
        bare = re.sub(r"^(an?|the) ", "", word)
        core = self._prefixed(core, template, draws)
        return template.format(core=core, w=word, a_bare=f"{article(bare)} {bare}", bare=bare)

    def _template(self, table: dict[str, tuple[str, ...]], core: str, draws: Draws) -> str:
        template = draws.one_of(table[self.templates])
        mid_sentence = template.endswith("with {core}")
        return table[self.templates][0] if mid_sentence and _opens(core) else template

    def _prefixed(self, core: str, template: str, draws: Draws) -> str:
        return self._with_prefix(core, draws) if template.startswith("{core}") else core

    def _with_prefix(self, core: str, draws: Draws) -> str:
        wanted = draws.chance(0.22) and not _opens(core)
        return draws.one_of(PREFIXES[self.templates]) + core if wanted else core


@cache
def vocabulary() -> tuple[str, ...]:
    """All words, in lower case, that any caption in any phrasing can contain, whichever objects take part."""
    tables = (
        *(PREFIXES, SINGLE, SIDE_BY_SIDE, STACKED, COUNTS, ARRANGEMENTS, LISTS, IN_ORDER, BETWEEN),
        *(PLACES, ON_PLAIN, OF_PLAIN, ON_GRADED, SIZES),
    )
    texts = [*_texts(tables), "a an and"]
    for background in BACKGROUNDS:
        texts += [*background.words, *background.reserved, *background.places]
    for known in emoji_objects():
        texts.append(known.colour)
        for noun in (*known.nouns, *known.reserved):
            texts += [noun.singular, noun.plural]
    return tuple(sorted({word for text in texts for word in words_of(re.sub(r"{\w+}", " ", text))}))


def words_of(caption: str) -> list[str]:
    """The words of a caption; hyphens belong to them, punctuation does not."""
    return re.findall(r"[a-z0-9]+(?:-[a-z0-9]+)*", caption)


def _texts(table: object) -> Iterator[str]:
    """Every sentence at the leaves of nested tables."""
    if isinstance(table, str):
        yield table
    elif isinstance(table, (tuple, dict)):
        for inner in table.values() if isinstance(table, dict) else table:
            yield from _texts(inner)


def _opens(core: str) -> bool:
    """Whether it can only stand at the beginning: `from left to right: ...`."""
    return core.startswith(OPENINGS)


def check_choice(name: str, given: str, choices: Sequence[str]) -> None:
    """Raises: InputError that names the choices, for anything else."""
    if given not in choices:
        raise InputError(f"{name}={given!r} is none of {', '.join(choices)}.")


def article(phrase: str) -> str:
    """`a` or `an`, by the sound of the first word.

    >>> article("umbrella"), article("unicorn"), article("hourglass")
    ('an', 'a', 'an')
    """
    if phrase.startswith(("uni", "ufo")):
        return "a"
    return "an" if phrase.startswith(("a", "e", "i", "o", "u", "hour")) else "a"


def _listed(things: Sequence[str], draws: Draws) -> str:
    if len(things) == 2:
        return f"{things[0]} and {things[1]}"
    manner = draws.unit()
    joint = " and " if manner < 0.6 else ", and " if manner < 0.85 else ", "
    return ", ".join(things[:-1]) + joint + things[-1]
