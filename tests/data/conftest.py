"""Glyphs that need no font, for every object of the curated list."""

import pytest
import torch

from lineardit.data.emoji_atlas import Atlas, find_font
from lineardit.data.emoji_objects import emoji_objects
from lineardit.errors import MissingFontError


@pytest.fixture(scope="session")
def atlas() -> Atlas:
    """A disc for each object, opaque inside, in a colour of its own."""
    names = [each.name for each in emoji_objects()]
    steps = torch.linspace(-1, 1, 24)
    alpha = (steps[:, None] ** 2 + steps**2 < 1).to(torch.uint8) * 255
    generator = torch.Generator().manual_seed(0)
    colours = torch.randint(0, 256, (len(names), 3, 1, 1), generator=generator).to(torch.uint8)
    discs = torch.where(alpha.bool(), colours, torch.zeros_like(colours))
    return Atlas(names, torch.cat([discs, alpha.expand(len(names), 1, 24, 24)], dim=1).contiguous())


@pytest.fixture(scope="session")
def font_atlas() -> Atlas:
    """The first glyphs of the real font, where it is installed."""
    try:
        find_font()
    except MissingFontError as error:
        pytest.skip(str(error))
    return Atlas.from_font([each.name for each in emoji_objects()[:12]])
