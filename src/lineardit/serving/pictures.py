"""Between pixels and the files that go over the wire."""

import base64
import binascii
import io
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from typing import Any

from PIL import Image

from lineardit.config.serving import Limits
from lineardit.data.picture_files import fitted, read_picture
from lineardit.errors import InputError
from lineardit.interop.png_text import PictureText, png_text, read_png_text
from lineardit.serving.failures import Failure, invalid
from lineardit.serving.schema import PictureFormat
from lineardit.serving.ticket import Pixels

MEDIA_TYPES: Mapping[str, str] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
QUALITY = 95
_PNG_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"


def encode(
    pixels: Pixels,
    settings: Mapping[str, Any] | None = None,
    picture_format: PictureFormat = "png",
    quality: int | None = None,
) -> str:
    """A file in base64. A PNG keeps its settings, as those of `lineardit generate` do."""
    picture = Image.frombytes("RGB", (pixels.width, pixels.height), pixels.data)
    file = io.BytesIO()
    if picture_format == "png":
        text = None if settings is None else png_text({**settings, "version": _version()})
        picture.save(file, "PNG", pnginfo=text)
    else:
        picture.save(file, picture_format.upper(), quality=QUALITY if quality is None else quality)
    return base64.b64encode(file.getvalue()).decode()


def read_settings(text: str, limits: Limits) -> PictureText:
    """What a PNG file in base64 says of itself. Its pixels are never decoded. Raises `Failure`."""
    content = _decoded(text)
    if not content.startswith(_PNG_START) or len(content) < 33:
        raise invalid("image", "The picture is no PNG file.")
    width, height = int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")
    if not 0 < width * height <= limits.picture_pixels:
        raise invalid(
            "image", f"The picture claims to have more than {limits.picture_pixels} pixels, or none."
        )
    try:
        return read_png_text(io.BytesIO(content))
    except InputError:
        message = "The picture says nothing of how it was made, or is damaged."
        raise Failure(422, "no_settings", message, field="image") from None


def read_initial(text: str, limits: Limits) -> Image.Image:
    """A picture to start from, in base64: decoded only after its header was checked. Raises `Failure`."""
    content = _decoded(text)
    try:
        return read_picture(content, limits.initial_pixels)
    except InputError:
        most = limits.initial_pixels
        message = f"The picture is damaged, no PNG, JPEG or WebP file, or of more than {most} pixels."
        raise invalid("image", message) from None


def brought_to(picture: Image.Image, width: int, height: int, stretches: bool) -> Pixels:
    """A picture in another size."""
    if stretches and picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    return Pixels(width, height, fitted(picture, width, height).tobytes())


def _decoded(text: str) -> bytes:
    if text[:5] == "data:":
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise invalid("image", "The picture is not in base64.") from None


@cache
def _version() -> str:
    return version("lineardit")
