"""Strangers' picture files: refused before they are decoded, or made RGB, upright, in 8 bits."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from lineardit.config.data import MOST_PIXELS
from lineardit.data.buckets import Bucket
from lineardit.data.images import BadPicture, cover, decode, quiet_pillow, read_header

RAMP = np.linspace(0, 255, 12 * 7).reshape(7, 12).astype(np.uint8)


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def announcing(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it has many pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def pixels(content: bytes) -> np.ndarray:
    image = decode(content, MOST_PIXELS)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize(
    ("image", "note", "expected"),
    [
        (Image.fromarray(RAMP), "grey to RGB", np.stack([RAMP] * 3, -1)),
        (
            Image.fromarray((RAMP.astype(np.uint16) << 8) + 77),
            "16 bits to 8",
            np.stack([RAMP] * 3, -1),
        ),
        (Image.fromarray(RAMP).convert("P"), "palette to RGB", np.stack([RAMP] * 3, -1)),
        (
            Image.fromarray(RAMP > 100),
            "grey to RGB",
            np.stack([np.where(RAMP > 100, 255, 0).astype(np.uint8)] * 3, -1),
        ),
    ],
)
def test_every_mode_becomes_rgb_with_the_same_levels(
    image: Image.Image, note: str, expected: np.ndarray
) -> None:
    content = encoded(image)
    assert note in read_header(content, MOST_PIXELS).notes
    assert np.array_equal(pixels(content), expected)


def test_what_is_transparent_lies_on_white() -> None:
    levels = np.zeros((2, 2, 4), np.uint8)
    levels[..., 0], levels[0, :, 3], levels[1, :, 3] = 200, 255, 0
    content = encoded(Image.fromarray(levels))
    assert "transparency laid on white" in read_header(content, MOST_PIXELS).notes
    assert pixels(content).tolist() == [[[200, 0, 0]] * 2, [[255, 255, 255]] * 2]
    half = Image.new("LA", (1, 1), (0, 128))
    assert abs(int(pixels(encoded(half))[0, 0, 0]) - 127) <= 1
    palette = Image.new("P", (1, 1), 0)
    palette.putpalette([10, 20, 30])
    assert pixels(encoded(palette, transparency=0)).tolist() == [[[255, 255, 255]]]


def test_cmyk_is_converted() -> None:
    content = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)
    assert read_header(content, MOST_PIXELS).notes == ("CMYK to RGB",)
    red = pixels(content)[4, 4]
    assert red[0] > 200 and red[1] < 60 and red[2] < 60


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_the_camera_was_held(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(RAMP).convert("RGB"), exif=exif)
    header = read_header(content, MOST_PIXELS)
    turned = {
        1: RAMP, 2: RAMP[:, ::-1], 3: RAMP[::-1, ::-1], 4: RAMP[::-1],
        5: RAMP.T, 6: RAMP.T[:, ::-1], 7: RAMP.T[::-1, ::-1], 8: RAMP.T[::-1],
    }[orientation]  # fmt: skip
    assert np.array_equal(pixels(content)[..., 0], turned)
    assert (header.height, header.width) == turned.shape
    assert ("turned upright (EXIF)" in header.notes) == (orientation != 1)


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    content = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert read_header(content, MOST_PIXELS).notes == ("animated: first frame",)
    assert pixels(content)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty: the file has no bytes"),
        (b"hello", "unreadable: it is no PNG, JPEG or WebP"),
        (encoded(Image.new("RGB", (4, 4)), "GIF"), "unreadable"),
        (announcing(9000, 9000), "too many pixels: 9000 x 9000 is more than 80000000"),
        (announcing(60000, 60000), "too many pixels"),
        (announcing(300, 500), "truncated"),
        (encoded(Image.effect_noise((64, 64), 50), "JPEG")[:900], "truncated"),
    ],
)
def test_what_is_no_whole_picture_is_named(content: bytes, reason: str) -> None:
    with quiet_pillow(), pytest.raises(BadPicture, match=reason):
        decode(content, MOST_PIXELS)


def test_a_bomb_is_refused_by_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(BadPicture, match="too many pixels: 9 x 12 is more than 100"):
        decode(announcing(9, 12), 100)
    assert read_header(announcing(9, 12), 108).width == 9


def test_damaged_exif_is_no_reason_to_lose_a_picture() -> None:
    content = encoded(Image.new("RGB", (6, 4), "red"), exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    with quiet_pillow():
        assert decode(content, MOST_PIXELS).size == (6, 4)


def test_covering_a_bucket_keeps_the_middle() -> None:
    image = Image.new("RGB", (40, 10), "red")
    image.paste("blue", (15, 0, 25, 10))
    out = np.asarray(cover(image, Bucket(10, 10)))
    assert out.shape == (10, 10, 3) and (out == (0, 0, 255)).all()
    assert cover(image, Bucket(20, 24)).size == (24, 20)


def test_mutated_pictures_raise_nothing_foreign() -> None:
    draw = random.Random(0)
    noise = Image.effect_noise((24, 18), 60).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    originals = [
        encoded(noise, exif=exif),
        encoded(noise, "JPEG", exif=exif),
        encoded(noise, "WEBP"),
        encoded(noise.convert("P")),
        encoded(noise.convert("CMYK"), "JPEG"),
    ]
    good = 0
    with quiet_pillow():
        for number in range(500):
            data = bytearray(originals[number % len(originals)])
            for _ in range(draw.choice([1, 3, 30])):
                data[draw.randrange(len(data))] = draw.randrange(256)
            content = bytes(data[: draw.randrange(1, len(data))] if number % 4 == 0 else data)
            try:
                image = decode(content, 4_000_000)
            except BadPicture as error:
                assert str(error).isprintable()
                continue
            assert image.mode == "RGB"
            good += 1
    assert 0 < good < 500
