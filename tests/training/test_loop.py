"""Interrupted and resumed is the same as never interrupted; nothing that is not finite gets in."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lineardit.config.runs import LoopConfig
from lineardit.errors import CheckpointError, NotFiniteError, OutputError
from lineardit.training import checkpoint
from lineardit.training.loop import Outcome, precision, step_generator, train
from lineardit.training.shares import Share

LOOP = LoopConfig(
    steps=9,
    batch_size=3,
    dtype="fp32",
    learning_rate=1e-2,
    warmup_steps=3,
    log_every=2,
    sample_every=4,
    checkpoint_every=4,
    ema_half_life=2,
)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(7, 5)
        self.blocks = nn.ModuleList([nn.Linear(5, 5), nn.Linear(5, 5)])
        self.norm = nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.norm(x)


class Regression:
    """Towards fixed numbers; `events` happen before the loss of their step."""

    def __init__(self, events: Mapping[int, object] | None = None) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model: nn.Module = Net()
        self.events = dict(events or {})
        self.seen: list[int] = []
        self.weights: list[Tensor] = []
        self.sampled: list[tuple[int, nn.Module, Tensor]] = []

    def losses(self, step: int) -> Mapping[str, Tensor]:
        self.seen.append(step)
        self.weights.append(self.model.stem.weight.detach().clone())
        event = self.events.get(step)
        if callable(event):
            event()
        x = torch.randn(3, 7, generator=step_generator(5, step))
        loss = (self.model(x) - x[:, :5]).square().mean()
        if event == "steep":
            loss = loss + (0 * self.model.stem.weight).sum().sqrt()
        return {"loss": loss, "size": x.abs().mean()}

    def sample(self, model: nn.Module, step: int) -> Tensor:
        self.sampled.append((step, model, model.stem.weight.clone()))
        return torch.zeros(2, 3, 4, 4)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def run(
    folder: Path, events: Mapping[int, object] | None = None, **changes: object
) -> tuple[Regression, Outcome]:
    task = Regression(events)
    resume = bool(changes.pop("resume", False))
    return task, train(task, LOOP.model_copy(update=changes), folder, resume=resume)


def newest(folder: Path) -> checkpoint.Loaded:
    found = checkpoint.load_newest(folder)
    assert found is not None
    return found


def check_same(folder: Path, other: Path) -> None:
    """Model, average, optimizer and everything else, bit for bit."""
    one, two = newest(folder), newest(other)
    assert (one.step, one.state) == (two.step, two.state)
    assert one.tensors.keys() == two.tensors.keys() == {"model", "ema", "optimizer"}
    for stem, tensors in one.tensors.items():
        assert tensors.keys() == two.tensors[stem].keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, two.tensors[stem][name]), f"{stem} {name}"


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_told_to_stop_and_resumed_is_the_uninterrupted_run(tmp_path: Path, optimizer: str) -> None:
    run(tmp_path / "whole", optimizer=optimizer)
    _, outcome = run(tmp_path / "parts", {5: stop}, optimizer=optimizer)
    assert (outcome.step, newest(tmp_path / "parts").step) == (6, 6)
    task, outcome = run(tmp_path / "parts", optimizer=optimizer, resume=True)
    assert (outcome.step, task.seen) == (9, [6, 7, 8])
    check_same(tmp_path / "whole", tmp_path / "parts")


def test_a_resumed_run_takes_the_new_weight_decay_and_betas(tmp_path: Path) -> None:
    run(tmp_path / "as_before", {5: stop})
    run(tmp_path / "changed", {5: stop})
    run(tmp_path / "as_before", resume=True)
    run(tmp_path / "changed", resume=True, weight_decay=20.0, betas=(0.5, 0.6))
    decayed, kept = newest(tmp_path / "changed").state["groups"][0]
    assert (decayed["weight_decay"], kept["weight_decay"]) == (20.0, 0.0)
    assert tuple(decayed["betas"]) == tuple(kept["betas"]) == (0.5, 0.6)
    before, after = (
        newest(tmp_path / name).tensors["model"]["stem.weight"] for name in ("as_before", "changed")
    )
    assert after.norm() < 0.9 * before.norm()


def test_a_run_that_died_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    def die() -> None:
        raise MemoryError

    run(tmp_path / "whole")
    with pytest.raises(MemoryError):
        run(tmp_path / "parts", {6: die})
    task, _ = run(tmp_path / "parts", resume=True)
    assert task.seen == [4, 5, 6, 7, 8]
    check_same(tmp_path / "whole", tmp_path / "parts")


def test_sigterm_from_outside_saves_and_resuming_gives_the_uninterrupted_run(tmp_path: Path) -> None:
    steps = 40
    child = subprocess.Popen([sys.executable, __file__, str(tmp_path / "parts"), str(steps)])
    marker = tmp_path / "parts" / "metrics.jsonl"
    try:
        while not (marker.exists() and marker.read_text()) and child.poll() is None:
            time.sleep(0.02)
        child.send_signal(signal.SIGTERM)
        assert child.wait(timeout=60) == 0
    finally:
        child.kill()
    stopped = newest(tmp_path / "parts").step
    assert 2 <= stopped < steps
    task, _ = run(tmp_path / "parts", steps=steps, resume=True)
    assert task.seen == list(range(stopped, steps))
    run(tmp_path / "whole", steps=steps)
    check_same(tmp_path / "whole", tmp_path / "parts")


def test_a_run_that_is_there_is_not_started_over(tmp_path: Path) -> None:
    run(tmp_path)
    before = newest(tmp_path)
    with pytest.raises(OutputError, match="holds a run at step 9: add --resume"):
        run(tmp_path, steps=20)
    assert newest(tmp_path).path == before.path


def test_resuming_a_finished_run_does_nothing(tmp_path: Path) -> None:
    run(tmp_path)
    for steps in (9, 4):
        task, outcome = run(tmp_path, steps=steps, resume=True)
        assert (task.seen, outcome.step) == ([], 9)
    assert torch.equal(outcome.average.stem.weight, newest(tmp_path).tensors["ema"]["stem.weight"])


@pytest.mark.parametrize("kind", ["network", "optimizer", "fewer optimizers"])
def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path, kind: str) -> None:
    run(tmp_path, optimizer="muon" if kind == "fewer optimizers" else "adamw")
    task = Regression()
    if kind == "network":
        task.model = nn.Sequential(nn.Linear(7, 5))
    changes = {"optimizer": "muon"} if kind == "optimizer" else {}
    with pytest.raises(
        CheckpointError, match="is of another network or optimizer: .* Resume with the recipe"
    ):
        train(task, LOOP.model_copy(update=changes), tmp_path, resume=True)


def poison(task: Regression, layer: str) -> None:
    def hook(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        return output * torch.nan if task.seen[-1] == 6 else output

    task.model.get_submodule(layer).register_forward_hook(hook)


def test_a_loss_that_is_not_finite_names_the_layer_and_leaves_the_checkpoint(tmp_path: Path) -> None:
    task = Regression()
    poison(task, "blocks.1")
    # Step 6 is none that is logged.
    with pytest.raises(
        NotFiniteError, match=r"layer blocks.1 \(Linear\) gave NaN or infinity; its input was fin"
    ):
        train(task, LOOP, tmp_path, resume=False)
    assert newest(tmp_path).step == 4
    assert all(bool(tensor.isfinite().all()) for tensor in newest(tmp_path).tensors["model"].values())


def test_the_layer_is_looked_for_a_share_at_a_time_and_without_gradients(tmp_path: Path) -> None:
    seen: list[tuple[int, bool]] = []

    class Divided(Regression):
        def losses(self, step: int) -> Mapping[str, Tensor]:
            return self.losses_of_share(step, Share())

        def losses_of_share(self, step: int, share: Share) -> Mapping[str, Tensor]:
            self.seen.append(step)
            x = torch.randn(6, 7, generator=step_generator(5, step))
            x = x[share.rows(6)]
            if step == 6:
                seen.append((len(x), torch.is_grad_enabled()))
            # Only the last share is not finite.
            y = self.model(x * torch.inf if step == 6 and share.index == 2 else x)
            return {"loss": (y - x[:, :5]).square().mean()}

    with pytest.raises(NotFiniteError, match=r"layer stem \(Linear\) gave NaN or infinity"):
        train(Divided(), LOOP.model_copy(update={"batch_size": 6, "accumulate": 3}), tmp_path, resume=False)
    assert seen == [(2, True)] * 3 + [(2, False)] * 3


def test_a_weight_that_is_not_finite_is_named(tmp_path: Path) -> None:
    task = Regression()
    with torch.no_grad():
        task.model.blocks[0].bias[2] = torch.nan
    with pytest.raises(NotFiniteError, match="parameter blocks.0.bias holds NaN"):
        train(task, LOOP, tmp_path, resume=False)


def test_an_update_with_a_gradient_that_is_not_finite_is_left_out(tmp_path: Path) -> None:
    task, _ = run(tmp_path, {3: "steep", 5: "steep"})
    changed = [not torch.equal(a, b) for a, b in pairwise(task.weights)]
    assert changed == [True, True, True, False, True, False, True, True]
    assert all(bool(tensor.isfinite().all()) for tensor in newest(tmp_path).tensors["optimizer"].values())
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["skipped"]) for row in rows] == [(2, 0), (4, 1), (6, 2), (8, 2), (9, 2)]
    # NaN is no JSON.
    assert [row["gradient_norm"] is None for row in rows] == [False, True, True, False, False]
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_samples_are_drawn_with_the_averaged_weights(tmp_path: Path) -> None:
    task, outcome = run(tmp_path)
    assert [step for step, _, _ in task.sampled] == [3, 7, 8]
    mean = task.weights[0]
    for step, after in enumerate([*task.weights[1:], task.model.stem.weight.detach()]):
        mean = torch.lerp(mean, after, 1 - 0.5 ** (1 / min(2, (step + 1) / 10)))
    _, model, weight = task.sampled[-1]
    torch.testing.assert_close(weight, mean)
    assert not torch.allclose(weight, task.model.stem.weight)
    assert not torch.equal(task.sampled[0][2], weight)
    assert model is outcome.average and not model.training and task.model.training
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [
        "step-00000004.png",
        "step-00000008.png",
        "step-00000009.png",
    ]


def test_a_sample_that_cannot_be_drawn_loses_no_step(tmp_path: Path) -> None:
    class Blind(Regression):
        def sample(self, model: nn.Module, step: int) -> Tensor:
            raise RuntimeError("no sample")

    with pytest.raises(RuntimeError, match="no sample"):
        train(Blind(), LOOP, tmp_path, resume=False)
    assert newest(tmp_path).step == 4


def test_metrics_hold_losses_and_rates(tmp_path: Path) -> None:
    _, outcome = run(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 9]
    assert outcome.losses == {name: rows[-1][name] for name in ("loss", "size")}
    assert rows[0]["learning_rate"] == pytest.approx(1e-2 * 2 / 3)
    assert all(row["images_per_second"] > 0 for row in rows)


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    run(tmp_path, checkpoint_every=2, keep=3)
    names = sorted(path.name for path in tmp_path.glob("step-*"))
    assert names == ["step-00000006", "step-00000008", "step-00000009"]


def test_signals_are_given_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    run(tmp_path, {1: stop})
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_generator_follows_from_seed_step_and_purpose_alone() -> None:
    def draw(seed: int, step: int, purpose: str = "") -> Tensor:
        return torch.rand(1000, generator=step_generator(seed, step, purpose))

    first = draw(1, 2)
    torch.manual_seed(3)
    assert torch.equal(draw(1, 2), first)
    others = [draw(1, 3), draw(2, 2), draw(2, 1), draw(1, 2, "order"), draw(12, 2), draw(1, 22)]
    for other in others:
        assert abs(float(torch.corrcoef(torch.stack([first, other]))[0, 1])) < 0.15


@pytest.mark.parametrize(("dtype", "expected"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_products_run_in_the_dtype_asked_for(dtype: str, expected: torch.dtype) -> None:
    with precision(dtype, torch.device("cpu")):
        assert nn.Linear(3, 2)(torch.ones(1, 3)).dtype == expected
    assert nn.Linear(3, 2)(torch.ones(1, 3)).dtype == torch.float32


if __name__ == "__main__":
    torch.set_num_threads(1)  # as in the tests: sums in another order differ in the last bit
    slow = dict.fromkeys(range(2, 1000), lambda: time.sleep(0.5))
    run(Path(sys.argv[1]), slow, steps=int(sys.argv[2]))
