"""What every source of pictures gives: a name, the bytes of a picture, and captions with weights."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

MOST_BYTES = 256 * 2**20
"""A file of a picture that is larger is not read."""
LONGEST_CAPTION = 20_000
"""Characters of a caption; what is longer is no caption."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""Endings of pictures that are read."""
OTHER_SUFFIXES = (".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jxl", ".jfif", ".ppm")
"""Endings of pictures that are not: they are listed, not passed over in silence."""
CAPTION_KEYS = ("caption", "text", "captions", "prompt")
"""What a caption is called in a row or a JSON file, where nothing else is said."""


class Caption(NamedTuple):
    """One text that says what is to be seen, and how often it is chosen among those of its picture."""

    text: str
    weight: float = 1.0


@runtime_checkable
class PictureFile(Protocol):
    """A picture that is still encoded, somewhere."""

    @property
    def fingerprint(self) -> str:
        """Something that is another one when the bytes are others.

        Raises: OSError where it is not there.
        """
        ...

    def read(self) -> bytes:
        """The encoded bytes.

        Raises: OSError where they cannot be read, or are more than MOST_BYTES.
        """
        ...


class Record(NamedTuple):
    """One entry of a source. A bad one says what is wrong with it instead of raising."""

    key: str
    """Its name in the source: a path, or the number of a row."""
    picture: PictureFile | None
    captions: tuple[Caption, ...] = ()
    problem: str | None = None
    """Why it cannot be used, where that is known before the picture is looked at."""


@runtime_checkable
class Source(Protocol):
    """Records by number, the same in every run."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Record:
        """The record of a number from 0 to len - 1; never raises for what is wrong with its files."""
        ...


class BadCaption(ValueError):
    """What stands where a caption should be is none; the message says why."""


def captions_from(value: object, weights: object = None) -> tuple[Caption, ...]:
    """The captions in a value of a row or of a JSON file.

    It is a text, a list of texts, a mapping of texts to weights, or one such as {"text": ..., "weight": 2}.
    Blank ones are left out, so nothing may remain. `weights` are those of a list of texts.

    Raises:
        BadCaption: it is something else.
    """
    match value:
        case None:
            return ()
        case str():
            found = [Caption(value)]
        case Mapping() if any(key in value for key in CAPTION_KEYS):
            return _captions_of(value)
        case Mapping():
            found = [Caption(_text(text), _weight(weight)) for text, weight in value.items()]
        case Sequence() if not isinstance(value, bytes | bytearray):
            found = [caption for each in value for caption in captions_from(each)]
        case float() if math.isnan(value):  # an empty cell of a table
            return ()
        case _:
            raise BadCaption(f"a caption is a text or a list of texts, not {_shown(value)}")
    if weights is not None:
        if not isinstance(weights, Sequence) or isinstance(weights, str) or len(weights) != len(found):
            raise BadCaption(f"the weights {_shown(weights)} do not fit {len(found)} captions")
        found = [Caption(each.text, _weight(weight)) for each, weight in zip(found, weights, strict=True)]
    kept = tuple(Caption(_text(each.text).strip(), each.weight) for each in found if each.text.strip())
    if kept and not sum(each.weight for each in kept):
        raise BadCaption("the weights of all captions are 0")
    return kept


def _captions_of(row: Mapping[object, object]) -> tuple[Caption, ...]:
    """The captions of a mapping such as {"text": ..., "weight": 0.5}."""
    key = next(key for key in CAPTION_KEYS if key in row)
    weights = row.get("weights")
    found = captions_from(row[key], weights)
    if "weight" in row:
        weight = _weight(row["weight"])
        return tuple(Caption(each.text, weight * each.weight) for each in found)
    return found


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise BadCaption(f"a caption is a text, not {_shown(value)}")
    if len(value) > LONGEST_CAPTION:
        raise BadCaption(f"a caption of {len(value)} characters is longer than {LONGEST_CAPTION}")
    return value


def _weight(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadCaption(f"a weight is a number, not {_shown(value)}")
    if not 0 <= value <= 1e9:  # NaN too
        raise BadCaption(f"a weight lies between 0 and 1e9, not at {value!r}")
    return float(value)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
