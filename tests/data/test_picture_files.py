"""Pictures from anybody: read as they are meant, or refused in words of ours, and never by a crash."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from lineardit.data.picture_files import fitted, read_picture
from lineardit.errors import InputError


def file(picture: Image.Image, name: str, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, name, **options)
    return stream.getvalue()


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP"])
def test_three_formats_are_read(name: str) -> None:
    read = read_picture(file(Image.new("RGB", (17, 11), "red"), name))
    assert read.mode == "RGB" and read.size == (17, 11)
    red, green, blue = read.getpixel((5, 5))
    assert red > 240 and green < 15 and blue < 15


@pytest.mark.parametrize("name", ["GIF", "BMP", "TIFF", "PPM"])
def test_other_formats_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="is no PNG, JPEG or WebP picture"):
        read_picture(file(Image.new("RGB", (4, 4)), name))


def test_what_is_transparent_is_in_front_of_white() -> None:
    picture = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    picture.putpixel((1, 0), (0, 0, 0, 0))
    read = read_picture(file(picture, "PNG"))
    assert [read.getpixel((x, 0)) for x in range(2)] == [(255, 0, 0), (255, 255, 255)]


def test_grey_of_sixteen_bits_keeps_its_shades() -> None:
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    for options in ({}, {"transparency": (100 << 8) + 76}):  # no pixel has that level
        read = read_picture(file(Image.fromarray((levels << 8) + 77), "PNG", **options))
        assert np.array_equal(np.asarray(read), np.stack([levels] * 3, -1))


def test_a_photograph_taken_upright_is_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned by 90 degrees
    assert read_picture(file(Image.new("RGB", (20, 10)), "JPEG", exif=exif)).size == (10, 20)


def test_a_large_picture_is_refused_by_its_header() -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    with pytest.raises(InputError):
        read_picture(bomb)
    with pytest.raises(InputError, match="is 30 x 20: more than 599 pixels"):
        read_picture(file(Image.new("RGB", (30, 20)), "PNG"), 599)


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP"])
def test_damage_is_told_in_words_of_ours(name: str) -> None:
    chance, content = random.Random(0), file(Image.radial_gradient("L").resize((40, 30)), name)
    for _ in range(60):
        broken = bytearray(content)
        for _ in range(chance.randint(1, 6)):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        cut = bytes(broken[: chance.choice([len(broken), chance.randrange(len(broken))])])
        try:
            assert read_picture(cut).mode == "RGB"
        except InputError as told:
            assert str(told).startswith("the picture is ")


def test_it_is_cut_evenly_to_another_shape() -> None:
    wide = Image.new("RGB", (90, 30), "blue")
    wide.paste("red", (30, 0, 60, 30))
    assert fitted(wide, 15, 15).getpixel((7, 7)) == (255, 0, 0)
    assert fitted(wide, 30, 30).getcolors() == [(900, (255, 0, 0))]
    assert fitted(wide, 90, 30) is wide
