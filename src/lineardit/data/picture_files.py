"""Picture files that anybody may have made: three formats, and none is decoded before its header was read.

An 8 kB PNG can hold 64 million pixels. There is no torch in here: the server's own process reads them too.
"""

import struct
import warnings
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from lineardit.errors import InputError

FORMATS = ("PNG", "JPEG", "WEBP")
SIXTEEN_BITS = ("I", "I;16", "I;16B")
"""Modes of Pillow in which a PNG of 16 bits of grey comes."""
LARGEST = 64_000_000
"""Height times width of a picture that is decoded where nothing else is said."""


def read_picture(source: Path | bytes, most_pixels: int = LARGEST) -> Image.Image:
    """A picture in RGB, upright, what is transparent in front of white.

    Raises:
        InputError: there is no such file, it is none of the three formats, too large, or damaged. The message
            holds no words of the library that decodes.
    """
    name, stream = (source, source) if isinstance(source, Path) else ("the picture", BytesIO(source))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a library has to say of damaged files
            with Image.open(stream, formats=FORMATS) as file:
                if file.width * file.height > most_pixels:
                    raise InputError(
                        f"{name} is {file.width} x {file.height}: more than {most_pixels} pixels. Reduce it."
                    )
                return _upright(file)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{name} does not exist.") from None
    except UnidentifiedImageError:
        raise InputError(f"{name} is no PNG, JPEG or WebP picture.") from None
    except (OSError, ValueError, SyntaxError, struct.error, EOFError, KeyError, IndexError, TypeError,
            AttributeError, OverflowError, ZeroDivisionError, Image.DecompressionBombError):  # fmt: skip
        raise InputError(f"{name} is damaged. Save it again as PNG.") from None


def in_eight_bits(picture: Image.Image) -> Image.Image:
    """Grey of 16 bits scaled to 8, of which Pillow would cut off what is above 255; others as they are."""
    if picture.mode not in SIXTEEN_BITS:
        return picture
    scaled = picture.convert("I").point(lambda level: level / 256).convert("L")
    scaled.info.pop("transparency", None)  # a level of 16 bits, which would be read as one of 8
    return scaled


def fitted(picture: Image.Image, width: int, height: int) -> Image.Image:
    """Resized until it just covers `width` x `height`, then cut evenly at two edges."""
    if picture.size == (width, height):
        return picture
    return ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)


def _upright(file: Image.Image) -> Image.Image:
    picture = in_eight_bits(ImageOps.exif_transpose(file))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        ground = Image.new("RGBA", layer.size, "white")
        picture = Image.alpha_composite(ground, layer)
    return picture.convert("RGB")
