"""The model that ships: it is small, loads from the package alone, and heeds its words for colours."""

from importlib.resources import files
from pathlib import Path

import pytest
import torch

from lineardit.data.backgrounds import BACKGROUND_NAMES, background_rows
from lineardit.interop.native import check_files
from lineardit.pipeline import Pipeline

WEIGHTS = Path(str(files("lineardit"))) / "weights"
COLOURS = ("white", "sky blue", "green", "purple", "yellow", "black")


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline.from_pretrained(device="cpu")


def test_all_that_ships_is_below_80_megabytes_and_whole() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*")) < 80e6
    check_files(WEIGHTS / "emoji")


def test_the_background_is_the_colour_that_was_asked_for(pipe: Pipeline) -> None:
    images = pipe([f"a star on a {colour} background" for colour in COLOURS], output_type="pt").images
    # The median of all pixels is the background wherever objects cover less than half.
    found = images.flatten(2).median(-1).values
    truth = background_rows(8)[[BACKGROUND_NAMES.index(colour) for colour in COLOURS], :, 4]
    nearest = torch.cdist(found, truth).argmin(1)
    assert (nearest == torch.arange(len(COLOURS))).sum() >= len(COLOURS) - 1


def test_the_same_seed_gives_the_same_picture_alone_and_among_others(pipe: Pipeline) -> None:
    prompts = ["a cat", "two stars on a red background"]
    together = pipe(prompts, seed=[3, 4], output_type="pt", num_inference_steps=4).images
    alone = pipe(prompts[1], seed=4, output_type="pt", num_inference_steps=4).images
    assert torch.equal(together[1:], alone)
