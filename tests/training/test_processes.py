"""Two processes give what one gives, go on from each other's checkpoints, and end together."""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
import torch.distributed.fsdp  # once, before processes fork
from torch import Tensor, nn

from lineardit.config.runs import LoopConfig
from lineardit.errors import CheckpointError, ConfigError, LineardiTError, NotFiniteError
from lineardit.training import checkpoint, distributed
from lineardit.training.distributed import Finished, Launch, World
from lineardit.training.loop import step_generator, train
from lineardit.training.run_state import RunState
from lineardit.training.shares import Share

CPU = torch.device("cpu")
SHORT = 0.05
"""Minutes that are waited for a process that hangs."""
LOOP = LoopConfig(
    steps=6,
    batch_size=6,
    dtype="fp32",
    learning_rate=1e-2,
    warmup_steps=2,
    log_every=1,
    sample_every=100,
    checkpoint_every=3,
    ema_half_life=2,
    timeout_minutes=0.5,
)


class Net(nn.Module):
    """Sides that two processes cannot share evenly."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(7, 5)
        self.blocks = nn.ModuleList([nn.Linear(5, 5), nn.Linear(5, 5)])
        self.norm = nn.LayerNorm(5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        return self.norm(x)


class Coupled:
    """Regression whose loss is no mean over rows: it needs all outputs at once."""

    def __init__(self, events: Mapping[int, Callable[[], None]] | None = None) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model: nn.Module = Net()
        self.events = dict(events or {})

    def rows(self, step: int) -> Tensor:
        self.events.get(step, lambda: None)()
        return torch.randn(LOOP.batch_size, 7, generator=step_generator(5, step))

    def losses(self, step: int) -> Mapping[str, Tensor]:
        x = self.rows(step)
        y = self.model(x)
        error = (y - x[:, :5]).square().mean()
        return {"loss": error + y.std(0).log().square().mean(), "error": error}

    def sample(self, model: nn.Module, step: int) -> Tensor | None:
        assert model(torch.zeros(2, 7)).shape == (2, 5)
        return None


class Divided(Coupled):
    """Regression that computes only the rows of its share."""

    def losses(self, step: int) -> Mapping[str, Tensor]:
        return self.losses_of_share(step, Share())

    def losses_of_share(self, step: int, share: Share) -> Mapping[str, Tensor]:
        x = self.rows(step)
        x = x[share.rows(len(x))]
        return {"loss": (self.model(x) - x[:, :5]).square().mean()}


class Leaning:
    """A second player of which every process has a loss of its own."""

    def __init__(self) -> None:
        self.model: nn.Module = nn.Linear(3, 1, bias=False)
        nn.init.ones_(self.model.weight)
        self.loop = LOOP.model_copy(update={"clip": 1e9})

    def losses(self, step: int) -> Mapping[str, Tensor]:
        way = torch.tensor([1.0, -3.0]) if distributed.world().rank else torch.tensor([1.0, 1.0])
        return {"loss": (self.model.weight[0, :2] * way).sum()}


class Contest(Divided):
    """A task with a second player."""

    def __init__(self) -> None:
        super().__init__()
        self.rival: Leaning | None = Leaning()


def crew(work: Callable[[], object], said: Path | None = None) -> list[int]:
    """Exit codes of two processes that both do `work`; minus the number of a signal that killed one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    sys.stdout.flush()
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            code = 99
            try:
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
                launch = distributed.read_launch(os.environ)
                assert launch == Launch(rank, 2, rank)
                distributed.join(launch, CPU, LOOP.timeout_minutes)
                if rank:
                    distributed.pass_gate()
                work()
                code = 0 if rank == 0 else 98  # only in the first process training returns
            except Finished:
                code = 0
            except LineardiTError as error:
                code = error.exit_code
                if said is not None:
                    said.with_suffix(f".{rank}").write_text(f"{type(error).__name__}: {error}")
            except BaseException as error:
                sys.stderr.write(f"process {rank}: {error!r}\n")
            finally:
                os._exit(code)
        children.append(child)
    found: dict[int, int] = {}
    still: set[int] = set()
    while len(found) < len(children):
        child, status = os.waitpid(-1, os.WUNTRACED)  # these are the only children there are
        if os.WIFSTOPPED(status):
            still.add(child)
        else:
            found[child] = os.waitstatus_to_exitcode(status)
        if len(found) + len(still) == len(children):
            for each in still:  # once all others have ended, as torchrun does
                os.kill(each, signal.SIGKILL)
            still.clear()
    return [found[child] for child in children]


def logged(folder: Path) -> Tensor:
    """Loss of each step, and the length of its gradient, which AdamW would not be moved by."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return torch.tensor([[row["loss"], row["gradient_norm"]] for row in rows], dtype=torch.float64)


def newest(folder: Path) -> checkpoint.Loaded:
    found = checkpoint.load_newest(folder)
    assert found is not None
    return found


def check_same(one: checkpoint.Loaded, two: checkpoint.Loaded) -> None:
    """Bit for bit, whoever wrote which rows."""
    assert one.state == two.state and one.tensors.keys() == two.tensors.keys()
    for stem, tensors in one.tensors.items():
        assert tensors.keys() == two.tensors[stem].keys()
        for name in tensors:
            assert torch.equal(tensors[name], two.tensors[stem][name]), f"{stem} {name}"


@pytest.mark.parametrize(
    ("task", "changes"),
    [
        (Coupled, {"parallel": "ddp"}),
        (Coupled, {"parallel": "fsdp"}),
        (Divided, {"parallel": "ddp", "accumulate": 3}),
        (Divided, {"parallel": "fsdp", "optimizer": "came", "checkpoint_activations": True}),
        (Divided, {"parallel": "fsdp", "optimizer": "muon"}),
    ],
)
def test_two_processes_learn_as_one_with_the_whole_batch(
    tmp_path: Path, task: type[Coupled], changes: Mapping[str, object]
) -> None:
    loop = LOOP.model_copy(update=changes)
    assert crew(lambda: train(task(), loop, tmp_path / "two", resume=False)) == [0, 0]
    alone = loop.model_copy(update={"accumulate": 1, "checkpoint_activations": False})
    train(task(), alone, tmp_path / "one", resume=False)
    one, two = newest(tmp_path / "one"), newest(tmp_path / "two")
    files = (
        {"model.safetensors"}
        if loop.parallel == "ddp"
        else {f"model-0000{n}-of-00002.safetensors" for n in (1, 2)}
    )
    assert {path.name for path in two.path.glob("model*")} == files
    torch.testing.assert_close(logged(tmp_path / "two"), logged(tmp_path / "one"), rtol=1e-5, atol=0)
    for name, tensor in one.tensors["ema"].items():
        torch.testing.assert_close(two.tensors["ema"][name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "came"])
def test_a_checkpoint_goes_from_two_processes_to_one_and_back_exactly(tmp_path: Path, optimizer: str) -> None:
    loop = LOOP.model_copy(update={"parallel": "fsdp", "optimizer": optimizer, "steps": 3})

    def pass_on(folder: Path) -> None:
        distributed.pass_gate()
        state = RunState(Divided(), loop, folder, distributed.world())
        state.save(state.restore(resume=True) + 1, None)

    assert crew(lambda: train(Divided(), loop, tmp_path, resume=False)) == [0, 0]
    first = newest(tmp_path)
    pass_on(tmp_path)
    alone = newest(tmp_path)
    assert (alone.step, len(list(alone.path.glob("model*")))) == (4, 1)
    check_same(first, alone)
    assert crew(lambda: pass_on(tmp_path)) == [0, 98]
    back = newest(tmp_path)
    assert (back.step, len(list(back.path.glob("model*")))) == (5, 2)
    check_same(first, back)


def test_the_second_player_follows_the_mean_of_both_processes(tmp_path: Path) -> None:
    def work() -> None:
        task = Contest()
        assert task.rival is not None
        rank = distributed.world().rank
        try:
            train(task, LOOP, tmp_path / "run", resume=False)
        finally:
            torch.save(task.rival.model.weight.detach(), tmp_path / f"{rank}.pt")

    assert crew(work) == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt")[0] for rank in range(2))
    assert torch.equal(first, second)
    # Downhill of the mean of 1 and 1, and of that of 1 and -3.
    assert first[0] < first[2] < first[1]


def test_two_processes_interrupted_and_resumed_are_the_uninterrupted_two(tmp_path: Path) -> None:
    def stop_the_second() -> None:
        if distributed.world().rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    loop = LOOP.model_copy(update={"parallel": "fsdp"})
    assert crew(lambda: train(Divided(), loop, tmp_path / "whole", resume=False)) == [0, 0]
    events = {3: stop_the_second}
    assert crew(lambda: train(Divided(events), loop, tmp_path / "parts", resume=False)) == [0, 0]
    assert newest(tmp_path / "parts").step == 4
    assert crew(lambda: train(Divided(), loop, tmp_path / "parts", resume=True)) == [0, 0]
    check_same(newest(tmp_path / "whole"), newest(tmp_path / "parts"))


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_both_processes_name_the_layer_that_the_rows_of_one_break(tmp_path: Path, parallel: str) -> None:
    class Broken(Divided):
        def rows(self, step: int) -> Tensor:
            x = super().rows(step)
            return torch.cat([x[:5], x[5:] * 1e30]) if step == 4 else x  # the norm's variance overflows

    loop = LOOP.model_copy(update={"parallel": parallel})
    codes = crew(lambda: train(Broken(), loop, tmp_path, resume=False), tmp_path / "said")
    assert codes == [NotFiniteError.exit_code] * 2
    for rank in range(2):
        assert "layer norm (LayerNorm) gave NaN" in (tmp_path / f"said.{rank}").read_text()


def test_a_killed_process_ends_the_job_and_leaves_its_checkpoint(tmp_path: Path) -> None:
    def die() -> None:
        if distributed.world().rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    began = time.monotonic()
    codes = crew(lambda: train(Divided({4: die}), LOOP, tmp_path, resume=False), tmp_path / "said")
    assert codes == [4, -signal.SIGKILL]
    assert time.monotonic() - began < 60 * LOOP.timeout_minutes
    message = (tmp_path / "said.0").read_text()
    assert "ProcessLostError: process 1 of 2 gets no answer from another one" in message
    assert "start again with --resume" in message
    assert newest(tmp_path).step == 3


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_process_that_hangs_ends_the_job_within_the_timeout(tmp_path: Path, stopped: int) -> None:
    def hang() -> None:
        if distributed.world().rank == stopped:
            os.kill(os.getpid(), signal.SIGSTOP)

    began = time.monotonic()
    loop = LOOP.model_copy(update={"timeout_minutes": SHORT})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[__name__], "LOOP", loop)
        codes = crew(lambda: train(Divided({4: hang}), loop, tmp_path, resume=False), tmp_path / "said")
    assert codes[1 - stopped] == 4 and codes[stopped] == -signal.SIGKILL
    assert time.monotonic() - began < 60 * SHORT + 10
    message = (tmp_path / f"said.{1 - stopped}").read_text()
    assert f"process {2 - stopped} of 2 gets no answer from another one, which has died, hangs or" in message
    assert "only slow, give train.timeout_minutes more" in message and "start again with --resume" in message
    assert newest(tmp_path).step == 3


def test_a_damaged_checkpoint_is_refused_by_both(tmp_path: Path) -> None:
    train(Divided(), LOOP, tmp_path, resume=False)
    for path in tmp_path.glob("step-*"):
        (path / "state.json").unlink()
    code = CheckpointError.exit_code
    assert crew(lambda: train(Divided(), LOOP, tmp_path, resume=True)) == [code, code]


def test_shares_are_all_rows_once() -> None:
    for batch in (1, 6, 7, 11):
        for count in (1, 2, 3, 5):
            rows = [row for index in range(count) for row in range(batch)[Share(index, count).rows(batch)]]
            assert rows == list(range(batch))


def test_a_batch_that_does_not_divide_is_refused() -> None:
    distributed.check_divisible(12, 3, 2)
    with pytest.raises(
        ConfigError, match="batch_size=14 does not divide among 2 processes .*batch_size=12 or 18"
    ):
        distributed.check_divisible(14, 3, 2)


def test_only_torchrun_makes_a_job() -> None:
    told = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    assert distributed.read_launch(told) == Launch(3, 8, 1)
    assert distributed.read_launch(told | {"WORLD_SIZE": "1", "RANK": "0"}) is None
    assert distributed.read_launch({"RANK": "3"}) is None
    assert distributed.world() == World()
