"""The curated list of objects: their glyphs, the words for them, and where they would not be seen."""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import NamedTuple


@dataclass(frozen=True)
class Noun:
    """One word, or a few, for a thing."""

    singular: str
    plural: str


@dataclass(frozen=True)
class EmojiObject:
    """One object that scenes are made of."""

    glyph: str
    """The characters that the font draws."""
    name: str
    """What truth and evaluation call it: its most common noun."""
    category: str
    colour: str
    """The adjective that fits the whole glyph unmistakably, or empty."""
    nouns: tuple[Noun, ...]
    """Words for it in training captions; the first is its name."""
    reserved: tuple[Noun, ...]
    """Words for it that no training caption has."""
    hidden_on: frozenset[str]
    """Backgrounds on which it would hardly be seen."""

    @property
    def head(self) -> str:
        """The last word of its name: two objects that share it need their colours said."""
        return self.name.rsplit(" ", 1)[-1]


def read_table(name: str) -> list[dict[str, str]]:
    """Rows of a tab-separated table of this package; lines that start with # are its notice."""
    text = (files("lineardit.data") / name).read_text("utf-8")
    head, *rows = [line.split("\t") for line in text.split("\n") if line and not line.startswith("# ")]
    return [dict(zip(head, row, strict=True)) for row in rows]


@cache
def emoji_objects() -> tuple[EmojiObject, ...]:
    """The whole list: the most common and the most distinct objects come first."""
    hidden = {row["noun"]: row["hidden_on"] for row in read_table("emoji_visibility.tsv")}
    return tuple(
        EmojiObject(
            glyph=row["glyph"],
            name=row["noun"],
            category=row["category"],
            colour=row["colour"],
            nouns=(Noun(row["noun"], row["plural"]), *_nouns(row["synonyms"])),
            reserved=_nouns(row["reserved"]),
            hidden_on=frozenset(filter(None, hidden.get(row["noun"], "").split(", "))),
        )
        for row in read_table("emoji_objects.tsv")
    )


class EmojiWords(NamedTuple):
    """What the Unicode CLDR says about an emoji."""

    name: str
    keywords: tuple[str, ...]


@cache
def emoji_words() -> dict[str, EmojiWords]:
    """English name and keywords of about 1,340 pictorial emoji that the font has, by their glyph.

    Glyphs stand without variation selectors. The words reach beyond the curated list: for tokenizers,
    and for longer lists.
    """
    return {
        row["glyph"]: EmojiWords(row["name"], tuple(filter(None, row["keywords"].split(", "))))
        for row in read_table("emoji_words.tsv")
    }


@cache
def objects_by_name() -> dict[str, EmojiObject]:
    """The same objects by their name."""
    return {each.name: each for each in emoji_objects()}


def _nouns(words: str) -> tuple[Noun, ...]:
    """`kitty, mouse/mice`: the plural stands after the slash where the rules do not give it."""
    pairs = (word.strip().partition("/") for word in words.split(",") if word.strip())
    return tuple(Noun(singular, plural or regular_plural(singular)) for singular, _, plural in pairs)


def regular_plural(noun: str) -> str:
    """The plural by rule, of the last word.

    >>> regular_plural("lucky box"), regular_plural("pony"), regular_plural("toy")
    ('lucky boxes', 'ponies', 'toys')
    """
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")
