"""Glyphs fill their squares, travel without the font, and keep their colours when they are resized."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lineardit.data.emoji_atlas import GLYPH_SIDE, Atlas, find_font
from lineardit.errors import CheckpointError, InputError, MissingFontError


def test_a_missing_font_names_the_line_that_installs_it(tmp_path: Path) -> None:
    with pytest.raises(MissingFontError, match="apt-get install fonts-noto-color-emoji"):
        find_font([tmp_path])
    with pytest.raises(MissingFontError, match="apt-get install fonts-noto-color-emoji"):
        Atlas.from_font(["cat"], tmp_path / "nowhere.ttf")


def test_an_atlas_survives_its_file(tmp_path: Path, atlas: Atlas) -> None:
    atlas.save(tmp_path / "atlas.safetensors")
    loaded = Atlas.load(tmp_path / "atlas.safetensors")
    assert loaded.names == atlas.names
    assert torch.equal(loaded.glyphs, atlas.glyphs)


def test_a_file_that_is_no_atlas_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "atlas.safetensors"
    with pytest.raises(CheckpointError, match="no atlas"):
        Atlas.load(path)
    path.write_bytes(b"not safetensors at all")
    with pytest.raises(CheckpointError, match="no atlas"):
        Atlas.load(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="no atlas"):
        Atlas.load(path)
    save_file({"glyphs": torch.zeros(2, 4, 3, 3)}, path, metadata={"names": "a\nb"})
    with pytest.raises(CheckpointError, match="no atlas"):
        Atlas.load(path)


def test_names_and_glyphs_must_pair_up() -> None:
    with pytest.raises(InputError, match="2 names for 3 glyphs"):
        Atlas(["a", "b"], torch.zeros(3, 4, 5, 5, dtype=torch.uint8))
    with pytest.raises(InputError, match="a name of its own"):
        Atlas(["a", "a"], torch.zeros(2, 4, 5, 5, dtype=torch.uint8))


@pytest.mark.parametrize("side", [7, 24, 53])
def test_resized_glyphs_are_never_brighter_than_their_coverage(atlas: Atlas, side: int) -> None:
    glyphs = atlas.resized(side)
    assert glyphs.shape == (len(atlas.names), 4, side, side)
    assert glyphs.min() >= 0
    assert glyphs.max() <= 1
    assert (glyphs[:, :3] <= glyphs[:, 3:]).all()


def test_resizing_keeps_the_area_and_the_colour(atlas: Atlas) -> None:
    large, small = atlas.resized(48), atlas.resized(11)
    torch.testing.assert_close(large.mean((2, 3)), small.mean((2, 3)), atol=0.02, rtol=0)


@pytest.mark.font
def test_glyphs_of_the_font_fill_their_squares(font_atlas: Atlas) -> None:
    assert font_atlas.glyphs.shape == (12, 4, GLYPH_SIDE, GLYPH_SIDE)
    for alpha in font_atlas.glyphs[:, 3]:
        rows, columns = (alpha > 64).any(1).nonzero(), (alpha > 64).any(0).nonzero()
        extents = [int(each.max() - each.min()) + 1 for each in (rows, columns)]
        assert max(extents) >= GLYPH_SIDE - 4
        for each in (rows, columns):
            assert abs(int(each.min()) - (GLYPH_SIDE - 1 - int(each.max()))) <= 4


@pytest.mark.font
def test_glyphs_of_the_font_have_their_colours(font_atlas: Atlas) -> None:
    pixels = font_atlas.resized(32)
    colours = dict(zip(font_atlas.names, pixels[:, :3].sum((2, 3)) / pixels[:, 3:].sum((2, 3)), strict=True))
    red, green, blue = colours["apple"].tolist()
    assert red > 0.7 > 0.4 > max(green, blue)
    red, green, blue = colours["star"].tolist()
    assert min(red, green) > 0.7 > 0.5 > blue


@pytest.mark.font
def test_an_object_that_is_not_on_the_list_is_refused(font_atlas: Atlas) -> None:
    with pytest.raises(InputError, match="'catt' is no object of the curated list"):
        Atlas.from_font(["catt"])
