"""A second player has its own step, and is part of what a resumed run goes on with."""

import os
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lineardit.config.runs import LoopConfig
from lineardit.errors import CheckpointError, NotFiniteError
from lineardit.training import checkpoint
from lineardit.training.loop import step_generator, train
from lineardit.training.optimizer import learning_rate_at

LOOP = LoopConfig(
    steps=7, batch_size=3, dtype="fp32", learning_rate=1e-2, warmup_steps=2, checkpoint_every=3, log_every=1
)


class Judge:
    """Tells numbers from those that the other player made."""

    def __init__(self, task: "Contest") -> None:
        self.task = task
        self.model: nn.Module = nn.Linear(5, 1)
        self.loop = LOOP.model_copy(update={"learning_rate": 3e-3, "betas": (0.5, 0.9)})
        self.poisoned: int | None = None

    def losses(self, step: int) -> Mapping[str, Tensor]:
        made, real = self.task.made[step]
        if step == self.poisoned:
            made = made * torch.inf
        loss = (self.model(made) - self.model(real)).mean() + self.model.weight.square().sum()
        return {"loss": loss, "real": self.model(real).detach().mean()}


class Contest:
    def __init__(self, stop_at: int | None = None) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model: nn.Module = nn.Linear(3, 5)
            self.rival: Judge | None = Judge(self)
        self.made: dict[int, tuple[Tensor, Tensor]] = {}
        self.stop_at = stop_at

    def losses(self, step: int) -> Mapping[str, Tensor]:
        if step == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        x = torch.randn(4, 8, generator=step_generator(1, step))
        made = self.model(x[:, :3])
        self.made[step] = made.detach(), x[:, 3:]
        assert self.rival is not None
        return {"loss": (made - x[:, 3:]).square().mean() - self.rival.model(made).mean()}

    def sample(self, model: nn.Module, step: int) -> None:
        return None


def test_the_second_player_takes_its_own_steps_after_the_first(tmp_path: Path) -> None:
    task, alone = Contest(), Contest()
    assert task.rival is not None and alone.rival is not None
    outcome = train(task, LOOP, tmp_path, resume=False)
    own = torch.optim.AdamW(
        [
            {"params": [alone.rival.model.weight], "weight_decay": LOOP.weight_decay},
            {"params": [alone.rival.model.bias], "weight_decay": 0.0},
        ],
        betas=(0.5, 0.9),
    )
    alone.made = task.made
    for step in range(LOOP.steps):
        for group in own.param_groups:
            group["lr"] = learning_rate_at(step, alone.rival.loop)
        own.zero_grad()
        alone.rival.losses(step)["loss"].backward()
        nn.utils.clip_grad_norm_(alone.rival.model.parameters(), LOOP.clip)
        own.step()
    for mine, theirs in zip(task.rival.model.parameters(), alone.rival.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    # Its losses are logged beside the first player's, of which none is lost.
    assert set(outcome.losses) == {"loss", "rival", "real"}


def test_a_contest_that_was_stopped_and_resumed_is_the_uninterrupted_one(tmp_path: Path) -> None:
    train(Contest(), LOOP, tmp_path / "whole", resume=False)
    assert train(Contest(stop_at=3), LOOP, tmp_path / "parts", resume=False).step == 4
    train(Contest(), LOOP, tmp_path / "parts", resume=True)
    one, two = (checkpoint.load_newest(tmp_path / name) for name in ("whole", "parts"))
    assert one is not None and two is not None
    assert one.step == two.step == 7 and one.state == two.state
    assert {"rival", "rival_optimizer"} < one.tensors.keys() == two.tensors.keys()
    assert one.tensors["rival_optimizer"]
    for stem, tensors in one.tensors.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, two.tensors[stem][name]), f"{stem} {name}"


def test_a_run_without_a_rival_does_not_go_on_with_one(tmp_path: Path) -> None:
    lonely = Contest()
    judge, lonely.rival = lonely.rival, None
    lonely.losses = lambda step: {"loss": lonely.model.weight.square().sum()}  # type: ignore[method-assign]
    train(lonely, LOOP, tmp_path, resume=False)
    lonely.rival = judge
    with pytest.raises(CheckpointError, match="is of another network or optimizer"):
        train(lonely, LOOP, tmp_path, resume=True)


def test_a_second_player_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    task = Contest()
    assert task.rival is not None
    task.rival.poisoned = 4
    with pytest.raises(NotFiniteError, match="the loss of the second player is not finite at step 4"):
        train(task, LOOP, tmp_path, resume=False)
    found = checkpoint.load_newest(tmp_path)
    assert found is not None and found.step == 3
