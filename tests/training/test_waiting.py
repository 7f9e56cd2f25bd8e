"""The share of a run in which its steps wait for data is counted and logged."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lineardit.config.runs import LoopConfig
from lineardit.training import progress
from lineardit.training import waiting as waiting_module
from lineardit.training.loop import train
from lineardit.training.waiting import waited, waiting


class Clock:
    """Goes on when it is told to."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    for module in (waiting_module, progress):
        monkeypatch.setattr(module, "time", made)
    return made


def test_only_what_is_inside_counts_and_only_once(clock: Clock) -> None:
    waited()
    with pytest.raises(ValueError), waiting():
        clock.now += 2
        raise ValueError
    clock.now += 5
    assert waited() == 2
    assert waited() == 0


class Slow:
    """Waits three seconds for its data and computes for one."""

    def __init__(self, clock: Clock) -> None:
        self.model, self.clock = nn.Linear(1, 1), clock

    def losses(self, step: int) -> Mapping[str, Tensor]:
        with waiting():
            self.clock.now += 3
        self.clock.now += 1
        return {"loss": self.model(torch.ones(1, 1)).square().mean()}

    def sample(self, model: nn.Module, step: int) -> None:
        return None


def test_a_run_logs_its_share_of_waiting(tmp_path: Path, clock: Clock) -> None:
    with waiting():  # what came before the run
        clock.now += 50
    loop = LoopConfig(steps=4, batch_size=2, log_every=2, warmup_steps=0)
    train(Slow(clock), loop, tmp_path, resume=False)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [line["waiting"] for line in lines] == [0.75, 0.75]
    assert [line["images_per_second"] for line in lines] == [0.5, 0.5]
