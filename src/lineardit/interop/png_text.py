"""What a picture says of itself: the settings it was made with, as text fields of its PNG file.

`lineardit` holds all settings as JSON. `parameters` repeats what AUTOMATIC1111's web UI would have written,
since that is what other programs read.
"""

import json
import re
import warnings
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from lineardit.errors import InputError

OURS = "lineardit"
THEIRS = "parameters"

# Our names, and theirs in the order they are written.
_NAMES: Mapping[str, str] = {
    "num_inference_steps": "Steps",
    "sampler": "Sampler",
    "guidance_scale": "CFG scale",
    "seed": "Seed",
    "size": "Size",
    "strength": "Denoising strength",
    "model": "Model",
    "version": "Version",
}
_NEGATIVE = "Negative prompt: "
_PAIR = re.compile(r'\s*(?P<key>\w[\w /-]{0,40}):\s*(?P<value>"(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
# A field of text longer than this was not written by a program that makes pictures.
_LONGEST = 1_000_000


class PictureText(NamedTuple):
    """The text fields of a picture."""

    settings: dict[str, Any] | None
    """All settings with our names, where lineardit wrote the picture."""
    parameters: str | None
    """The text that other programs read, as it stands."""


def png_text(settings: Mapping[str, Any]) -> PngInfo:
    """The fields to save a picture with: `picture.save(path, pnginfo=png_text(settings))`.

    Of the settings, `prompt`, `negative_prompt`, `num_inference_steps`, `sampler`, `guidance_scale`, `seed`,
    `height`, `width`, `strength`, `model` and `version` are repeated for other programs; any others are kept
    as ours.
    """
    fields = PngInfo()
    fields.add_text(THEIRS, format_parameters(settings))
    fields.add_text(OURS, json.dumps(dict(settings), ensure_ascii=False))
    return fields


def read_png_text(source: Path | BytesIO) -> PictureText:
    """Read the fields of a PNG file, or of an open one, without decoding its pixels.

    Raises:
        InputError: there is no such file, it is no PNG, or it says nothing of how it was made.
    """
    name = source if isinstance(source, Path) else "the picture"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow says of many pixels, which are not decoded here
            with Image.open(source, formats=("PNG",)) as picture:
                info = dict(picture.info)
    except FileNotFoundError:
        raise InputError(f"{name} does not exist.") from None
    except Image.DecompressionBombError:
        raise InputError(f"{name} cannot be read as a PNG picture: it claims too many pixels.") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        reason = "it is not one" if isinstance(error, UnidentifiedImageError) else str(error)
        raise InputError(f"{name} cannot be read as a PNG picture: {reason}.") from None
    parameters, ours = info.get(THEIRS), info.get(OURS)
    settings = _settings(ours) if isinstance(ours, str) else None
    if not isinstance(parameters, str) or len(parameters) > _LONGEST:
        parameters = None
    if settings is None and parameters is None:
        raise InputError(
            f"{name} says nothing of how it was made: it was written or saved again by another program."
        )
    return PictureText(settings, parameters)


def format_parameters(settings: Mapping[str, Any]) -> str:
    """Settings in the form of AUTOMATIC1111's web UI."""
    lines = [str(settings.get("prompt", ""))]
    if settings.get("negative_prompt"):
        lines.append(_NEGATIVE + str(settings["negative_prompt"]))
    known = dict(settings)
    if "width" in settings and "height" in settings:
        known["size"] = f"{settings['width']}x{settings['height']}"
    lines.append(
        ", ".join(
            f"{theirs}: {_quoted(known[ours])}"
            for ours, theirs in _NAMES.items()
            if known.get(ours) is not None
        )
    )
    return "\n".join(lines)


def parse_parameters(text: str) -> dict[str, str]:
    """The parts of such a text with our names where we have one; what is not understood is left out."""
    *lines, last = text.strip().split("\n") if text.strip() else [""]
    if not re.match(r"\s*Steps: ", last):
        lines, last = [*lines, last], ""
    split = next((number for number, line in enumerate(lines) if line.startswith(_NEGATIVE)), len(lines))
    parts = {"prompt": "\n".join(lines[:split])}
    if split < len(lines):
        parts["negative_prompt"] = "\n".join(lines[split:]).removeprefix(_NEGATIVE)
    ours = {theirs: name for name, theirs in _NAMES.items()}
    for pair in _PAIR.finditer(last):
        parts[ours.get(pair["key"], pair["key"])] = _unquoted(pair["value"].strip())
    return parts


def _settings(text: str) -> dict[str, Any] | None:
    try:
        settings = json.loads(text) if len(text) <= _LONGEST else None
    except (ValueError, RecursionError):
        return None
    return settings if isinstance(settings, dict) else None


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r'[,:"\n]', text) else text


def _unquoted(text: str) -> str:
    if not text.startswith('"'):
        return text
    try:
        return str(json.loads(text))
    except ValueError:
        return text.strip('"')
