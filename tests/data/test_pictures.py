"""Pixels to picture files and back."""

import numpy as np
import torch
from PIL import Image

from lineardit.data.pictures import contact_sheet, to_picture, to_pixels


def test_every_level_survives_the_round_trip() -> None:
    levels = torch.arange(256, dtype=torch.float32).view(1, 16, 16).expand(3, 16, 16)
    picture = to_picture(levels / 127.5 - 1)
    assert np.array_equal(np.asarray(picture)[..., 1], levels[1].numpy())
    torch.testing.assert_close(to_pixels(picture), levels / 127.5 - 1)


def test_pixels_are_rounded_to_nearest_and_clamped() -> None:
    pixels = torch.tensor([-7.0, -1 + 0.6 / 127.5, 0.0, 1.2]).expand(3, 1, 4)
    assert np.asarray(to_picture(pixels))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_rows_stay_rows_and_channels_stay_channels() -> None:
    pixels = torch.full((3, 2, 5), -1.0)
    pixels[0, 1, 4], pixels[2, 0, 3] = 1, 1
    picture = to_picture(pixels)
    assert (picture.size, picture.mode) == ((5, 2), "RGB")
    assert picture.getpixel((4, 1)) == (255, 0, 0) and picture.getpixel((3, 0)) == (0, 0, 255)


def test_grey_of_sixteen_bits_is_scaled_and_not_cut_off() -> None:
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16) << 8
    for picture in (Image.fromarray(levels), Image.fromarray(levels.astype(np.int32))):
        assert torch.equal(to_pixels(picture), to_pixels(Image.fromarray((levels >> 8).astype(np.uint8))))


def test_transparent_and_grey_pictures_become_pixels() -> None:
    assert to_pixels(Image.new("L", (3, 2), 255)).tolist() == torch.ones(3, 2, 3).tolist()
    assert to_pixels(Image.new("RGBA", (1, 1), (255, 0, 0, 0))).flatten().tolist() == [1.0, -1.0, -1.0]


def test_a_sheet_shows_all_pictures_row_by_row() -> None:
    values = torch.linspace(-1, 0.5, 5).view(5, 1, 1, 1)
    sheet = contact_sheet(values.expand(5, 3, 4, 6), gap=2)
    assert sheet.size == (3 * 6 + 2 * 2, 2 * 4 + 2)
    corners = [sheet.getpixel((column * 8, row * 6))[0] for row in range(2) for column in range(3)]
    assert corners == [*(round((value + 1) * 127.5) for value in values.flatten().tolist()), 255]
    assert sheet.getpixel((6, 0)) == (255, 255, 255)
    assert contact_sheet(values.expand(5, 3, 4, 6), columns=5, gap=0).size == (30, 4)
