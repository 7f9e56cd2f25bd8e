"""The comparison benchmarks/fewer.py: steps are counted where they happen, and a picture is made of them."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from lineardit.bench.peers import LeftOut, Measured


@pytest.fixture(scope="module")
def fewer(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("fewer")


@pytest.mark.parametrize(("interval", "cache"), [((0.0, 1.0), 1e-9), ((0.3, 1.0), 1e-9), ((0.0, 1.0), 1e9)])
@torch.no_grad()
def test_steps_are_counted_where_they_happen(
    interval: tuple[float, float], cache: float, fewer: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fewer, "INTERVAL", interval)
    monkeypatch.setattr(fewer, "CACHE", cache)
    monkeypatch.setattr(fewer, "STEPS", 6)
    found = fewer.counted(2)
    assert found.total() == 2 * 6
    if cache > 1:
        assert found == {(2, False): 2, (2, True): 10}, "after the first step of a picture all is near"
    elif interval == (0.0, 1.0):
        assert found == {(2, False): 12}
    else:
        assert found.keys() == {(2, False), (1, False)}


def measured(who: str, part: str, seconds: float, once: float = 0.0) -> Measured:
    return Measured(who, part, 100, seconds, 3, seconds, once, None, None, 0.0)


def run(fewer: ModuleType, place: Path, patch: pytest.MonkeyPatch, rows: list[Measured | LeftOut]) -> str:
    steps = Counter({(2, False): 30, (1, True): 10})
    taken = {(2, False): 2.0, (1, True): 1.0}

    def measure(who: object, parts: object, sizes: list[int], *_: object) -> Iterator[Measured | LeftOut]:
        assert sizes == [100]
        yield from rows

    patch.setattr(fewer, "counted", lambda scenes: steps)
    patch.setattr(fewer, "seconds_of", lambda kinds, pixels, budget: {kind: taken[kind] for kind in kinds})
    patch.setattr(fewer, "measure_peers", measure)
    patch.setattr(fewer, "keep_freed_memory", int)
    patch.setattr(fewer, "native", SimpleNamespace(use=lambda _: None))
    patch.setattr(sys, "argv", ["fewer.py", "--pixels", "100", "--output", str(place)])
    fewer.main()
    return place.read_text("utf-8")


def test_a_picture_is_made_of_the_steps_that_are_left(
    fewer: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, ours = fewer.WHO
    rows = [
        measured(first, "step", 5.0),
        measured(first, "decode", 10.0),
        measured(ours, "step", 3.0, once=0.5),
        measured(ours, "decode", 4.0),
    ]
    page = run(fewer, tmp_path / "table.md", monkeypatch, rows)
    told = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| 100")]
    assert told == [
        ["100", "diffusers", "110", "1.00"],  # 20 * 5 + 10
        ["100", "lineardit, int8", "64.5", "1.71"],  # 20 * 3 + 4 + 0.5
        # 15 guided steps of 2 s, 5 of 1 s, the decoding and the reading of the prompt
        ["100", "lineardit, int8, interval and step cache", "39.5", "2.78"],
        ["100", "guided, all blocks", "15.0", "2.00"],
        ["100", "prompt only, first and last block", "5.0", "1.00"],
    ]


def test_no_table_is_written_where_one_could_not_be_measured(
    fewer: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [LeftOut(fewer.WHO[0], "step", 100, "diffusers is not installed.")]
    with pytest.raises(SystemExit, match="diffusers, step: diffusers is not installed"):
        run(fewer, tmp_path / "table.md", monkeypatch, list(rows))
    assert not (tmp_path / "table.md").exists()


@torch.no_grad()
def test_what_is_reused_is_what_the_middle_added_once(fewer: ModuleType) -> None:
    cache, asked = fewer.Reused(1.0), []

    def middle(x: torch.Tensor) -> torch.Tensor:
        asked.append(x)
        return 3 * x

    before, x = torch.zeros(2), torch.ones(2)
    assert torch.equal(cache.through(before, x, middle), 3 * x)
    assert torch.equal(cache.through(before, 10 * x, middle), 12 * x) and len(asked) == 1
