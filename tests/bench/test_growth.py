"""The measurement benchmarks/growth.py: what is kept between runs, what is left out, what the page says."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lineardit.bench.models import Counted, Row, Timed
from lineardit.bench.peers import LeftOut, Measured


@pytest.fixture(scope="module")
def growth(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("growth")


def peers_of(growth: ModuleType, calls: list[Any]) -> Any:
    """Steps and decoding whose time and memory are as many as pixels; diffusers has no room at 1024 px."""

    def measure(names: list[str], parts: tuple[str, ...], sizes: list[int], *_: Any) -> list[Any]:
        calls.append((names, sizes))
        rows: list[Measured | LeftOut] = []
        for size in sizes:
            for who in names:
                for part in parts:
                    if (who, part, size) == ("diffusers", "decode", 1024):
                        rows.append(LeftOut(who, part, size, "no room"))
                        continue
                    taken = {"step": 100, "decode": 400}[part] * size**2
                    seconds = {"step": 1e-6, "decode": 1e-5}[part] * size**2
                    rows.append(Measured(who, part, size, seconds, 3, 0.0, 0.0, 10**9, 10**9 + taken, 0.0))
        return rows

    return measure


def softmax_of(calls: list[Any]) -> Any:
    """Steps whose time is the square of the pixels, and whose memory beyond 2 GB of weights the pixels."""

    def measure(names: list[str], sizes: list[int], *_: Any) -> list[Any]:
        calls.append((names, sizes))
        (size,) = sizes
        counted = Counted("DiT-XL/2", size, 20, 1, 10**9, 1, 1)
        if size > 1024:
            return [Row(counted, Timed(left_out="too slow"))]
        return [Row(counted, Timed(1e-12 * size**4, 2 * 10**9 + 50 * size**2, 0.0, 10 * size**2))]

    return measure


@pytest.fixture
def calls(growth: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []
    monkeypatch.setattr(growth, "measure_peers", peers_of(growth, found))
    monkeypatch.setattr(growth, "measure_models", softmax_of(found))
    monkeypatch.setattr(growth, "available_memory", lambda _: 10**12)
    return found


def run(growth: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["growth.py", *map(str, words)])
    growth.main()


def test_the_page_tells_the_powers_that_were_measured(
    growth: ModuleType, calls: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(growth, monkeypatch, "--pixels", "512,1024,2048", "--output", tmp_path)
    page = (tmp_path / "growth.md").read_text("utf-8")
    assert "- SANA-0.6B, lineardit: time grows with pixels to the power of 1.00, memory beyond" in page
    assert "- DiT-XL/2, softmax: time grows with pixels to the power of 2.00" in page
    assert "- SANA-0.6B, diffusers: time grows with pixels to the power of 1.00" in page
    cells = {tuple(line.strip("| ").split(" | ")) for line in page.splitlines() if line.startswith("| ")}
    # 20 steps and decoding; the most that a part took; what the process held.
    assert ("SANA-0.6B, lineardit", "2048", "126", "1.68", "2.68", "-") in cells
    assert ("SANA-0.6B, diffusers", "1024", "-", "-", "-", "decode: no room") in cells
    assert ("DiT-XL/2, softmax", "256", "0.0859", "0.00328", "2.00", "-") in cells
    assert ("DiT-XL/2, softmax", "2048", "-", "-", "-", "too slow") in cells
    for what in ("time", "memory"):
        assert f"growth-{what}.svg" in page and (tmp_path / f"growth-{what}.svg").stat().st_size > 1000


def test_what_was_measured_is_not_measured_again(
    growth: ModuleType, calls: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--pixels", "512", "--resume", tmp_path / "runs" / "some.json", "--output", tmp_path]
    run(growth, monkeypatch, *words)
    first, before = (tmp_path / "growth.md").read_text("utf-8"), len(calls)
    run(growth, monkeypatch, *words)
    assert len(calls) == before and (tmp_path / "growth.md").read_text("utf-8") == first
    words[1] = "512,2048"
    run(growth, monkeypatch, *words)
    assert [sizes for _, sizes in calls[before:]] == [[2048], [2048]]


def test_what_was_measured_before_an_interruption_stands(
    growth: ModuleType, calls: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "some.json"
    words = ["--pixels", "512", "--resume", place, "--output", tmp_path]

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(growth, "measure_peers", interrupted)
        run(growth, patch, *words)
    kept = [(each["who"], each["pixels"]) for each in json.loads(place.read_text("utf-8"))["pictures"]]
    assert kept == [("DiT-XL/2, softmax", 256), ("DiT-XL/2, softmax", 512)]
    calls.clear()
    run(growth, monkeypatch, *words)
    assert [sizes for _, sizes in calls] == [[512]]


@pytest.mark.parametrize("changed", ["budget", "machine"])
def test_another_way_of_measuring_is_not_mixed_in(
    changed: str, growth: ModuleType, calls: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--pixels", "512", "--resume", tmp_path / "some.json", "--output", tmp_path]
    run(growth, monkeypatch, *words)
    before = (tmp_path / "some.json").read_text("utf-8")
    if changed == "machine":
        monkeypatch.setattr(growth, "stamp_line", lambda _: "another machine")
    else:
        words += ["--budget", "3"]
    with pytest.raises(SystemExit, match=r"some\.json was measured as .*Give another file"):
        run(growth, monkeypatch, *words)
    assert (tmp_path / "some.json").read_text("utf-8") == before


def test_what_half_the_side_shows_to_be_too_large_is_left_out_but_not_within_a_bound(
    growth: ModuleType, calls: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 2048 px a picture takes 1.68 GB beyond weights, four times as much at 4096."""
    monkeypatch.setattr(growth, "available_memory", lambda _: 5 * 10**9)
    run(growth, monkeypatch, "--pixels", "2048,4096", "--output", tmp_path)
    assert calls[-2:] == [([*growth.NAMES], [2048]), ([growth.WITHIN], [4096])]
    page = (tmp_path / "growth.md").read_text("utf-8")
    assert page.count("would take about 7 GB beyond weights, over 5 GB") == 2
