"""Picture files of strangers: the header is checked before anything is decoded; every mode becomes RGB."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from PIL import Image, ImageOps, UnidentifiedImageError

from lineardit.data.buckets import Bucket
from lineardit.data.picture_files import SIXTEEN_BITS, in_eight_bits

FORMATS = ("PNG", "JPEG", "WEBP")
ORIENTATION = 0x0112
"""The EXIF tag that says how a camera was held."""
_TURNED = range(5, 9)
"""Its values that exchange height and width."""
_WHITE = (255, 255, 255)


class BadPicture(ValueError):
    """A picture cannot be used; the message says why in a few words."""


class Header(NamedTuple):
    """What a file says of its picture before it is decoded."""

    height: int
    """Pixels, after it is turned upright."""
    width: int
    format: str
    notes: tuple[str, ...]
    """What is done to it on the way to RGB."""


def read_header(content: bytes, max_pixels: int) -> Header:
    """Size and kind of a picture; no pixel is decoded.

    Raises:
        BadPicture: it is no PNG, JPEG or WebP, is damaged, or has too many pixels.
    """
    with _opened(content, max_pixels) as image:
        orientation, notes = _orientation(image), []
        if orientation != 1:
            notes.append("turned upright (EXIF)")
        if image.mode == "CMYK":
            notes.append("CMYK to RGB")
        elif image.mode in SIXTEEN_BITS:
            notes.append("16 bits to 8")
        elif image.mode in ("1", "L", "LA"):
            notes.append("grey to RGB")
        elif image.mode in ("P", "PA"):
            notes.append("palette to RGB")
        if image.has_transparency_data:
            notes.append("transparency laid on white")
        if getattr(image, "is_animated", False):
            notes.append("animated: first frame")
        width, height = image.size
        if orientation in _TURNED:
            width, height = height, width
        return Header(height, width, str(image.format), tuple(notes))


def decode(content: bytes, max_pixels: int) -> Image.Image:
    """The picture as 8-bit RGB, upright, on white where it is transparent; of an animation the first frame.

    Raises:
        BadPicture: it cannot be decoded to its end, or as `read_header`.
    """
    with _opened(content, max_pixels) as image:
        orientation = _orientation(image)
        image.load()
        upright = _rgb(image)
        if orientation != 1:
            # Only the tag is taken over: what else the EXIF block holds may be damaged.
            exif = Image.Exif()
            exif[ORIENTATION] = orientation
            upright.info = {"exif": exif.tobytes()}
            upright = ImageOps.exif_transpose(upright)
        upright.info = {}
        return upright


def cover(image: Image.Image, bucket: Bucket) -> Image.Image:
    """The picture resized until it just covers the bucket, then cut at two edges alike."""
    return ImageOps.fit(image, (bucket.width, bucket.height), Image.Resampling.LANCZOS)


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Leave out what Pillow warns of while a stranger's pictures are read: it is checked here or reported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _opened(content: bytes, max_pixels: int) -> Iterator[Image.Image]:
    """The picture with its header read and checked. Whatever Pillow raises inside becomes a BadPicture."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise BadPicture(f"too many pixels: {width} x {height} is more than {max_pixels}")
            yield image
    except (BadPicture, MemoryError):
        raise
    except UnidentifiedImageError:
        raise BadPicture(_not_read(content)) from None
    except Image.DecompressionBombError:
        raise BadPicture(f"too many pixels: more than {max_pixels}") from None
    except Exception as error:
        # Its decoders raise OSError, SyntaxError, ValueError, struct.error, EOFError, KeyError and others.
        if "truncated" in str(error).lower() or isinstance(error, EOFError):
            raise BadPicture("truncated: the file ends before the picture does") from None
        raise BadPicture(f"damaged: Pillow cannot decode it ({type(error).__name__})") from None


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # a damaged EXIF block is no reason to lose the picture
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _rgb(image: Image.Image) -> Image.Image:
    image = in_eight_bits(image)
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        white = Image.new("RGBA", opaque.size, (*_WHITE, 255))
        return Image.alpha_composite(white, opaque).convert("RGB")
    return image.convert("RGB")


def _not_read(content: bytes) -> str:
    if not content:
        return "empty: the file has no bytes"
    return "unreadable: it is no PNG, JPEG or WebP, or its header is damaged"
