"""The comparison benchmarks/turns.py: who computes something else gets no speed, ratios are of one round."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

Calls = dict[str, Callable[[], torch.Tensor]]


@pytest.fixture(scope="module")
def turns(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("turns")


class Clock:
    """Every call takes the seconds that it is said to take, those before rounds a thousand times as long."""

    def __init__(self, turns: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(turns, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def call(self, *seconds: float, value: float = 0.0, before: int = 1) -> Callable[[], torch.Tensor]:
        wait = iter((*before * [1000 * seconds[0]], *seconds))
        output = torch.linspace(0, 1, 100) + value

        def call() -> torch.Tensor:
            self.now += next(wait)
            return output

        return call


def test_ratios_are_medians_over_rounds(turns: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that gets slower slows all of a round: the ratio stays."""
    clock = Clock(turns, monkeypatch)
    calls = {"diffusers": clock.call(2, 6, 60, before=2), "lineardit": clock.call(1, 2, 30)}
    seconds = turns.in_turn(calls, 3, 0.05)
    assert seconds == {"diffusers": [2, 6, 60], "lineardit": [1, 2, 30]}
    assert turns.median_ratio(seconds["diffusers"], seconds["lineardit"]) == 2


@pytest.mark.parametrize("wrong", [0.1, float("nan")])
def test_who_computes_something_else_gets_no_speed(
    wrong: float, turns: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(turns, monkeypatch)
    calls = {"diffusers": clock.call(2), "lineardit": clock.call(1, value=wrong)}
    with pytest.raises(SystemExit, match="lineardit is .* from diffusers: no speed is told"):
        turns.in_turn(calls, 1, 0.05)


def test_a_picture_is_its_steps_its_decoding_and_what_is_done_once(
    turns: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(turns, monkeypatch)

    def parts(*each: float) -> Callable[[int], Calls]:
        names = ((turns.EAGER, 2), (turns.COMPILED, 1), (turns.OURS, 1))
        return lambda pixels: {
            who: clock.call(*3 * [seconds * pixels], before=before)
            for (who, before), seconds in zip(names, each, strict=True)
        }

    monkeypatch.setattr(turns, "steps", lambda dtype: (parts(0.04, 0.03, 0.02), 5.0))
    monkeypatch.setattr(turns, "decodes", lambda dtype: parts(0.5, 0.4, 0.3))
    for name in ("keep_freed_memory", "native"):
        monkeypatch.setattr(turns, name, SimpleNamespace(use=lambda _: None) if name == "native" else int)
    place = tmp_path / "table.md"
    monkeypatch.setattr(sys, "argv", ["turns.py", "--pixels", "100", "--rounds", "3", "--output", str(place)])
    turns.main()
    page = place.read_text("utf-8")
    assert capsys.readouterr().out == page
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| 100")]
    assert rows == [
        ["100", "guided step", "4.00", "3.00", "2.00", "2.00", "1.50"],
        ["100", "decoding", "50.0", "40.0", "30.0", "1.67", "1.33"],
        # 20 * 4 + 50, 20 * 3 + 40, 20 * 2 + 30 + 5
        ["100", "130", "100", "75.0", "1.73", "1.33"],
    ]
