"""Pictures of a folder: which take part, how they are scaled, and what windows show."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lineardit.config.reconstruction import PicturesConfig
from lineardit.data import picture_folder
from lineardit.data.picture_folder import PictureFolder
from lineardit.errors import InputError


def draw(path: Path, width: int, height: int) -> None:
    """Red grows to the right, green downwards."""
    levels = np.zeros((height, width, 3), np.uint8)
    levels[..., 0], levels[..., 1] = np.arange(width)[None], np.arange(height)[:, None]
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(levels).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "pictures"
    for number in range(6):
        draw(place / f"{number}.png", 20 + number, 31)
    draw(place / "deeper" / "wide.webp", 60, 24)
    return place


def test_each_picture_is_in_one_split_and_the_same_one_every_time(folder: Path) -> None:
    config = PicturesConfig(folder=folder, size=20, held_out_share=0.3)
    everything = PictureFolder(config, "all").paths
    train, kept = (PictureFolder(config, split).paths for split in ("train", "held_out"))
    assert len(everything) == 7 and len(kept) == 2 and sorted(train + kept) == everything
    assert kept == PictureFolder(config, "held_out").paths
    assert len(PictureFolder(config.model_copy(update={"held_out_share": 0.01}), "held_out")) == 1


def test_files_that_cannot_be_used_are_left_out_and_named(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("no picture", "utf-8")
    with caplog.at_level(logging.WARNING):
        pictures = PictureFolder(PicturesConfig(folder=folder, size=21), "all")
    assert [path.name for path in pictures.paths] == [
        "1.png",
        "2.png",
        "3.png",
        "4.png",
        "5.png",
        "wide.webp",
    ]
    (record,) = caplog.records
    assert "left out 2 of 8 files: 0.png (20x31 pixels), broken.png (unreadable" in record.getMessage()


def test_too_few_pictures_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds 1 pictures of at least 25 pixels: 2 are needed"):
        PictureFolder(PicturesConfig(folder=folder, size=25), "train")
    with pytest.raises(InputError, match="is no folder"):
        PictureFolder(PicturesConfig(folder=tmp_path / "nowhere"), "train")


def test_a_picture_that_breaks_later_is_named(folder: Path) -> None:
    pictures = PictureFolder(PicturesConfig(folder=folder, size=20), "all")
    whole = (folder / "0.png").read_bytes()
    (folder / "0.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"0\.png cannot be read: truncated"):
        pictures.levels(0)


def test_the_shorter_side_is_scaled_and_the_middle_is_shown(tmp_path: Path) -> None:
    for number in range(2):
        draw(tmp_path / f"{number}.png", 100, 40)
    pictures = PictureFolder(PicturesConfig(folder=tmp_path, size=20), "all")
    assert pictures.levels(0).shape == (3, 20, 50)
    (square,) = pictures.squares([0])
    # Every pixel covers two of the file, of which the left one says an even number.
    red = (square[0, 10] + 1) * 127.5
    torch.testing.assert_close(red, torch.arange(15, 35) * 2 + 0.5, rtol=0, atol=1.0)
    assert square.min() >= -1 and square.max() <= 1


def test_windows_go_everywhere_and_some_are_mirrored(folder: Path) -> None:
    pictures = PictureFolder(PicturesConfig(folder=folder, size=20), "all")
    (index,) = [number for number, path in enumerate(pictures.paths) if path.name == "5.png"]
    shown = pictures.levels(index)
    assert shown.shape == (3, 25, 20)
    generator = torch.Generator().manual_seed(0)
    windows = ((pictures.windows([index] * 200, 8, generator) + 1) * 127.5).round()
    steps = windows[:, 0, 0, 1:] - windows[:, 0, 0, :-1]
    mirrored = (steps < 0).all(1)
    assert ((steps > 0).all(1) | mirrored).all() and 60 < int(mirrored.sum()) < 140
    assert windows[:, 0].min() == shown[0].min() and windows[:, 0].max() == shown[0].max()
    assert windows[:, 1].min() == shown[1].min() and windows[:, 1].max() == shown[1].max()
    still = PictureFolder(PicturesConfig(folder=folder, size=20, flip=False), "all")
    straight = still.windows([index] * 50, 8, generator)
    assert ((straight[:, 0, :, 1:] - straight[:, 0, :, :-1]) > 0).all()


def test_what_does_not_fit_into_memory_is_decoded_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    monkeypatch.setattr(picture_folder, "KEPT_BYTES", 3 * 31 * 25)
    decode = picture_folder._read
    monkeypatch.setattr(
        picture_folder, "_read", lambda path, size: read.append(path.name) or decode(path, size)
    )
    pictures = PictureFolder(PicturesConfig(folder=folder, size=20), "all")
    first = [pictures.levels(index) for index in (0, 1)]
    again = [pictures.levels(index) for index in (0, 1)]
    assert read == ["0.png", "1.png", "1.png"]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
