"""A run killed without warning, again and again, ends as the one that was left alone."""

import os
import random
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lineardit.config.runs import LoopConfig
from lineardit.errors import CheckpointError, OutputError
from lineardit.training import checkpoint
from lineardit.training.loop import step_generator, train

LOOP = LoopConfig(
    steps=24,
    batch_size=2,
    dtype="fp32",
    optimizer="came",
    learning_rate=1e-2,
    log_every=1,
    sample_every=100,
    checkpoint_every=2,
    ema_width=0.1,
    keep=2,
    keep_best=1,
)


class Dropped:
    """Regression whose network draws from torch's own generator."""

    def __init__(self, data: int = 5) -> None:
        self.data = data
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model: nn.Module = nn.Sequential(nn.Linear(7, 300), nn.Dropout(0.5), nn.Linear(300, 5))

    def losses(self, step: int) -> Mapping[str, Tensor]:
        x = torch.randn(LOOP.batch_size, 7, generator=step_generator(self.data, step))
        return {"loss": (self.model(x) - x[:, :5]).square().mean()}

    def sample(self, model: nn.Module, step: int) -> None:
        return None

    def position(self, step: int) -> Mapping[str, object]:
        return {"epoch": step // 3, "data": self.data}


class Waiting(Dropped):
    """The same, which stands still at a step, so that it never ends before it is killed."""

    def __init__(self, last: int, note: Path) -> None:
        super().__init__()
        self.last, self.note = last, note

    def losses(self, step: int) -> Mapping[str, Tensor]:
        while step >= self.last:
            self.note.touch()
            time.sleep(0.1)
        return super().losses(step)


def child(folder: Path, last: int, note: Path) -> int:
    """A process that trains on, as far as step `last`, where it leaves a note."""
    process = os.fork()
    if process == 0:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 2)
        try:
            train(Waiting(last, note), LOOP, folder, resume=True)
        finally:
            os._exit(0)
    return process


def steps_there(folder: Path) -> list[int]:
    return sorted(int(path.name[5:13]) for path in folder.glob("step-*"))


def test_a_killed_run_is_bit_for_bit_the_uninterrupted_one(tmp_path: Path) -> None:
    chance = random.Random(0)
    train(Dropped(), LOOP, tmp_path / "whole", resume=False)
    place = tmp_path / "parts"
    for while_writing in (False, True, True):
        before = max(steps_there(place), default=0)
        note = tmp_path / f"waiting-{before}"
        process = child(place, before + 6, note)
        # One checkpoint further at least, so that killing comes to an end.
        while max(steps_there(place), default=0) < before + 2:
            assert os.waitpid(process, os.WNOHANG) == (0, 0), "the run ended by itself"
            time.sleep(0.001)
        while while_writing and not any(place.glob(".unfinished-*")) and not note.exists():
            pass
        time.sleep(chance.uniform(0, 0.003))
        os.kill(process, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
        assert checkpoint.load_newest(place) is not None
    train(Dropped(), LOOP, place, resume=True)
    one, two = checkpoint.load_newest(tmp_path / "whole"), checkpoint.load_newest(place)
    assert one is not None and two is not None and one.state == two.state
    for stem, tensors in one.tensors.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, two.tensors[stem][name]), f"{stem} {name}"
    assert not any(place.glob(".unfinished-*"))


def test_the_newest_and_the_best_checkpoints_stay(tmp_path: Path) -> None:
    class Measured(Dropped):
        def validate(self, model: nn.Module, step: int) -> Mapping[str, float]:
            return {"loss": abs(step - 7.0), "accuracy": 0.5}

    loop = LOOP.model_copy(update={"sample_every": 2, "keep_best": 2})
    train(Measured(), loop, tmp_path, resume=False)
    assert steps_there(tmp_path) == [6, 8, 22, 24]
    assert '"validation/loss": 4.0, "validation/accuracy": 0.5' in (tmp_path / "metrics.jsonl").read_text()


def test_without_a_validation_the_loss_decides_what_is_best(tmp_path: Path) -> None:
    class Valley(Dropped):
        def losses(self, step: int) -> Mapping[str, Tensor]:
            return {"loss": super().losses(step)["loss"] * 1e-3 + abs(step - 10)}

    train(Valley(), LOOP, tmp_path, resume=False)
    # The mean of steps 10 and 11 is as low as that of 9 and 10, but for the regression.
    assert steps_there(tmp_path)[1:] == [22, 24] and steps_there(tmp_path)[0] in (10, 12)


def test_other_data_are_not_gone_on_with(tmp_path: Path) -> None:
    train(Dropped(), LOOP.model_copy(update={"steps": 2}), tmp_path, resume=False)
    with pytest.raises(CheckpointError, match="was made with other data: data was 5 and is 6"):
        train(Dropped(data=6), LOOP, tmp_path, resume=True)


def test_a_full_disk_ends_the_run_and_leaves_what_was_saved(tmp_path: Path) -> None:
    class Filling(Dropped):
        def losses(self, step: int) -> Mapping[str, Tensor]:
            if step == 5:
                # What may be written to a file from now on; as in a full disk, writing fails.
                os.environ["FULL"] = "1"
            return super().losses(step)

    def full(path: Path, tensors: Mapping[str, Tensor]) -> None:
        if os.environ.get("FULL"):
            path.write_bytes(b"part of it")
            raise OSError(28, "No space left on device")
        write(path, tensors)

    write = checkpoint.write_tensors
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("FULL", raising=False)
        patch.setattr(checkpoint, "write_tensors", full)
        with pytest.raises(
            OutputError, match=r"checkpoint 6 was not written to .*No space left .* Older ones"
        ):
            train(Filling(), LOOP, tmp_path, resume=False)
        os.environ.pop("FULL", None)
    assert steps_there(tmp_path) == [2, 4] and not any(tmp_path.glob(".unfinished-*"))
    found = checkpoint.load_newest(tmp_path)
    assert found is not None and found.step == 4


def test_half_precision_skips_what_overflows_and_goes_on_exactly(tmp_path: Path) -> None:
    loop = LOOP.model_copy(update={"dtype": "fp16", "steps": 6})

    # At the scale it starts with, the first gradients overflow float16.
    train(Dropped(), loop, tmp_path / "whole", resume=False)
    train(Dropped(), loop.model_copy(update={"steps": 3}), tmp_path / "parts", resume=False)
    train(Dropped(), loop, tmp_path / "parts", resume=True)
    one, two = (checkpoint.load_newest(tmp_path / name) for name in ("whole", "parts"))
    assert one is not None and two is not None
    scale, good = one.state["loss_scale"]
    assert scale < 2.0**16 and good > 0 and one.state["loss_scale"] == two.state["loss_scale"]
    for name, tensor in one.tensors["model"].items():
        assert torch.equal(tensor, two.tensors["model"][name])
        assert tensor.isfinite().all()
