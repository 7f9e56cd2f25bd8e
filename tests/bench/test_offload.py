"""The measurement benchmarks/offload.py: what it runs, and what it says of bounds and pictures."""

import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn


@pytest.fixture(scope="module")
def offload(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("offload")


def test_weights_are_random_and_normalisations_ones(offload: ModuleType) -> None:
    with torch.device("meta"):
        network = nn.Sequential(nn.Linear(400, 300), nn.LayerNorm(300))
    numbers = offload.random_numbers(network)
    assert set(numbers) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    weight = numbers["0.weight"]
    assert weight.shape == (300, 400) and weight.dtype == torch.bfloat16
    assert float(weight.float().std()) == pytest.approx(400**-0.5, rel=0.05)
    assert torch.equal(numbers["1.weight"], torch.ones(300, dtype=torch.bfloat16))


@pytest.mark.parametrize(("memory", "told"), [("none", ["--no-keep-freed"]), ("2GB", ["--memory", "2GB"])])
def test_a_picture_is_drawn_as_a_user_would(
    memory: str, told: list[str], offload: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Sequence[str]] = []

    def peak(words: Sequence[str]) -> tuple[str, int]:
        asked.append(words)
        return "", 7

    monkeypatch.setattr(offload, "command_peak", peak)
    seconds, held = offload.drawn(Path("model"), 64, memory, 5, Path("x.png"))
    assert held == 7 and seconds >= 0
    assert asked[0][0] == "generate" and asked[0][-len(told) :] == told
    options = dict(pairwise(asked[0]))
    assert options["--height"] == options["--width"] == "64" and options["--num-inference-steps"] == "5"


def test_the_table_says_which_bounds_were_kept_and_how_far_pictures_are(
    offload: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = iter([(10.0, 5 * 10**9, 100), (20.0, 2 * 10**9, 101), (30.0, 10**9 + 1, 100)])

    def draw(model: Path, pixels: int, memory: str, steps: int, picture: Path) -> tuple[float, int]:
        seconds, peak, level = next(runs)
        shown = np.full((4, 4, 3), 100, np.uint8)
        shown[0, 0, 0] = level
        Image.fromarray(shown).save(picture)
        return seconds, peak

    monkeypatch.setattr(offload, "random_model", lambda folder, preset: 7 * 10**9)
    monkeypatch.setattr(offload, "drawn", draw)
    place = tmp_path / "table.md"
    monkeypatch.setattr(sys, "argv", ["offload.py", "--memory", "none,2GB,1GB", "--output", str(place)])
    offload.main()
    page = place.read_text("utf-8")
    assert "take 7.00 GB" in page
    rows = [
        line.strip("| ").split(" | ")
        for line in page.splitlines()
        if line.startswith(("| none", "| 2GB", "| 1GB"))
    ]
    assert rows == [
        ["none", "5.00", "-", "10.0", "0, 0.00"],
        ["2GB", "2.00", "yes", "20.0", "1, 0.02"],  # one number of 48 is one level apart
        ["1GB", "1.00", "**no**", "30.0", "0, 0.00"],
    ]
