"""The model that ships: it is small, loads from the package alone, and draws what it is asked for."""

from importlib.resources import files
from pathlib import Path

import pytest
import torch

from lineardit.data.backgrounds import BACKGROUND_NAMES, background_rows
from lineardit.evaluation.detector import SceneDetector
from lineardit.interop.native import check_files
from lineardit.pipeline import Pipeline

WEIGHTS = Path(str(files("lineardit"))) / "weights"
OBJECTS = ("apple", "dog", "pizza", "rocket", "panda")
COLOURS = ("white", "sky blue", "green", "purple")


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline.from_pretrained(device="cpu")


def test_all_that_ships_is_below_80_megabytes_and_whole() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*")) < 80e6
    check_files(WEIGHTS / "emoji")


def test_the_background_is_the_colour_that_was_asked_for(pipe: Pipeline) -> None:
    images = pipe(
        [f"a star on a {colour} background" for colour in COLOURS], output_type="pt", num_inference_steps=8
    ).images
    # The median of all pixels is the background wherever objects cover less than half.
    found = images.flatten(2).median(-1).values
    truth = background_rows(8)[[BACKGROUND_NAMES.index(colour) for colour in COLOURS], :, 4]
    nearest = torch.cdist(found, truth).argmin(1)
    assert (nearest == torch.arange(len(COLOURS))).sum() >= len(COLOURS) - 1


def test_the_object_that_was_asked_for_is_in_the_picture(pipe: Pipeline) -> None:
    images = pipe([f"a large {name} on a white background" for name in OBJECTS], output_type="pt").images
    found = [{each.name for each in picture.objects} for picture in SceneDetector.load().detect(images)]
    right = [name in names for name, names in zip(OBJECTS, found, strict=True)]
    assert sum(right) >= len(OBJECTS) - 1, dict(zip(OBJECTS, found, strict=True))


def test_the_picture_of_the_readme_shows_both_objects_where_they_were_asked_for(pipe: Pipeline) -> None:
    prompt = "a red apple left of a cat on a sky blue background"
    image = pipe(prompt, seed=7, output_type="pt").images
    (picture,) = SceneDetector.load().detect(image)
    places = {each.name: each.x for each in picture.objects}
    assert picture.background == "sky blue" and places["apple"] < places["cat"]


def test_the_same_seed_gives_the_same_picture_alone_and_among_others(pipe: Pipeline) -> None:
    prompts = ["a cat", "two stars on a red background"]
    together = pipe(prompts, seed=[3, 4], output_type="pt", num_inference_steps=4).images
    alone = pipe(prompts[1], seed=4, output_type="pt", num_inference_steps=4).images
    assert torch.equal(together[1:], alone)
