"""Captions as they stand in files and rows: texts, lists of texts, and weights."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import TypeGuard

from lineardit.data.labels import BadLabel, label_of_row
from lineardit.data.records import BadCaption, Caption, CaptionColumns, Description

SUFFIXES = (".txt", ".caption", ".json")
"""Endings of files of captions, in the order in which they are looked for."""
KEYS = ("caption", "text", "captions", "prompt")
"""What a caption is called in a row or a JSON file, where nothing else is said."""
MOST_CAPTION_BYTES = 2**20
"""A file of captions that is larger is none."""
LONGEST = 20_000
"""Characters of a caption; what is longer is no caption."""


def description_in(
    content: bytes,
    suffix: str,
    name: str,
    columns: CaptionColumns | None = None,
    class_keys: Sequence[str] = (),
) -> Description:
    """The captions in a file, and the class that it has under one of `class_keys`; `name` is what errors
    call it.

    Each line of a text that is not blank is a caption. JSON is read by `captions_from`, an object by
    `captions_of_row`.

    Raises:
        BadCaption: it is too large, no UTF-8, no JSON, or holds no captions.
        BadLabel: what it says as its class is none.
    """
    if len(content) > MOST_CAPTION_BYTES:
        raise BadCaption(f"{name} has more than {MOST_CAPTION_BYTES} bytes")
    try:
        text = content.decode("utf-8-sig")
        if suffix != ".json":
            return Description(captions_from(text.splitlines()))
        found = json.loads(text)
        if isinstance(found, Mapping):
            return Description(captions_of_row(found, columns), label_of_row(found, class_keys))
        return Description(captions_from(found))
    except UnicodeDecodeError:
        raise BadCaption(f"{name} is no UTF-8 text") from None
    except (BadCaption, BadLabel) as error:
        raise type(error)(f"{name}: {error}") from None
    except (ValueError, RecursionError):
        raise BadCaption(f"{name} is no JSON") from None


def captions_of_row(row: Mapping[str, object], columns: CaptionColumns | None = None) -> tuple[Caption, ...]:
    """The captions in a row: those of the columns that are asked for, each with its weight, or else those of
    the first of KEYS that it has, with the weights in `weights` or `weight`.

    Raises:
        BadCaption: a column is not there, or holds something else, or no weight is above 0.
    """
    found: list[Caption] = []
    key = next((key for key in KEYS if key in row), None) if columns is None else None
    if key is not None:
        found += _weighted(captions_from(row[key], row.get("weights")), row.get("weight"))
    for name, weight in (columns or {}).items():
        if name not in row:
            raise BadCaption(f"there is no {name}, only {', '.join(str(key) for key in row)[:100]}")
        found += _weighted(captions_from(row[name]), weight)
    if found and not sum(each.weight for each in found):
        raise BadCaption("the weights of all captions are 0")
    return tuple(found)


def captions_from(value: object, weights: object = None) -> tuple[Caption, ...]:
    """The captions in a value: a text, a list of texts, a mapping of texts to weights, or mappings with a
    text and a weight. Blank ones are left out, so nothing may remain. `weights` are those of a list of texts.

    Raises:
        BadCaption: it is something else.
    """
    found = _flat(value, depth=0)
    if weights is not None:
        if not _is_list(weights) or len(weights) != len(found):
            raise BadCaption(f"the weights {_shown(weights)} do not fit {len(found)} captions")
        found = [Caption(each.text, _weight(weight)) for each, weight in zip(found, weights, strict=True)]
    kept = tuple(Caption(each.text.strip(), each.weight) for each in found if each.text.strip())
    if kept and not sum(each.weight for each in kept):
        raise BadCaption("the weights of all captions are 0")
    return kept


def _flat(value: object, depth: int) -> list[Caption]:
    if value is None or (isinstance(value, float) and math.isnan(value)):  # an empty cell of a table
        return []
    if isinstance(value, str):
        return [Caption(_text(value))]
    if depth > 2:
        raise BadCaption(f"a caption is a text or a list of texts, not {_shown(value)}")
    if isinstance(value, Mapping):
        key = next((key for key in KEYS if key in value), None)
        if key is None:
            return [Caption(_text(text), _weight(weight)) for text, weight in value.items()]
        return list(_weighted(_flat(value[key], depth + 1), value.get("weight")))
    if _is_list(value):
        return [caption for each in value for caption in _flat(each, depth + 1)]
    raise BadCaption(f"a caption is a text or a list of texts, not {_shown(value)}")


def _weighted(captions: Sequence[Caption], weight: object) -> tuple[Caption, ...]:
    if weight is None:
        return tuple(captions)
    return tuple(Caption(each.text, each.weight * _weight(weight)) for each in captions)


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > LONGEST:
        raise BadCaption(f"a caption is a text of at most {LONGEST} characters, not {_shown(value)}")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise BadCaption(f"{_shown(value)} is no text: it has half of a character")
    return value


def _weight(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadCaption(f"a weight is a number, not {_shown(value)}")
    if not 0 <= value <= 1e9:  # NaN too
        raise BadCaption(f"a weight lies between 0 and 1e9, not at {_shown(value)}")
    return float(value)


def _is_list(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray)


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
