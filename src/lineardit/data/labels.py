"""Classes as they stand in rows, in files beside a picture and in names of folders."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

KEYS = ("class", "label", "cls")
"""What a class is called in a row or a JSON file, where nothing else is said."""
SUFFIX = ".cls"
"""Ending of a file that holds a class alone, as WebDataset has it."""
LONGEST = 200
"""Characters of a class's name; what is longer is no name."""


class ClassRule(NamedTuple):
    """Where the classes of pictures are looked for."""

    keys: tuple[str, ...] = KEYS
    """Columns, or keys of a JSON file; the first that is there is it."""
    folders: bool = True
    """Whether a picture of which nothing else says it is of the class that its folder is called."""


class BadLabel(ValueError):
    """What stands where a class should be is none; the message says why."""


def label_of_row(
    row: Mapping[str, object], keys: Sequence[str], names: Mapping[str, Sequence[str]] | None = None
) -> str | None:
    """The class in a row, or None where it says none. `names` are those of columns that hold numbers.

    Raises:
        BadLabel: it is something else.
    """
    key = next((key for key in keys if key in row), None)
    return None if key is None else label_from(row[key], (names or {}).get(key))


def label_from(value: object, names: Sequence[str] | None = None) -> str | None:
    """The class that a value names: a text, or a whole number, which stands for one of `names` if there are
    any. Blank texts, empty cells and -1 among names are no class.

    Raises:
        BadLabel: it is something else.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        if not names:
            return _name(str(value))
        if value == -1:  # how datasets mark what has no class
            return None
        if not 0 <= value < len(names):
            raise BadLabel(f"{value} is none of the {len(names)} classes")
        return _name(names[value])
    if isinstance(value, str):
        return _name(value.strip()) if value.strip() else None
    raise BadLabel(f"a class is a name or a whole number, not {_shown(value)}")


def ordered(found: Iterable[str], declared: Sequence[str] = ()) -> tuple[str, ...]:
    """The classes by number: those that a dataset declares in its order, then the others, whole numbers by
    their size and before names, names by the alphabet."""
    others = set(found) - set(declared)
    return (*dict.fromkeys(declared), *sorted(others, key=_rank))


def _rank(name: str) -> tuple[int, int, str]:
    plain = name.removeprefix("-").isdecimal() and name.isascii()
    return (0, int(name), name) if plain else (1, 0, name)


def _name(text: str) -> str:
    if len(text) > LONGEST or not text.isprintable():
        raise BadLabel(f"a class is a name of at most {LONGEST} characters, not {_shown(text)}")
    return text


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
