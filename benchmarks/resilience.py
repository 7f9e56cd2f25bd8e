"""Does training survive, and do many processes learn what one learns? Slow checks, run by hand.

    python benchmarks/resilience.py kills 50      SIGKILL at random, every third while a checkpoint is written
    python benchmarks/resilience.py exits 50      exit codes of jobs of two processes, FSDP2 on gloo
    python benchmarks/resilience.py losses 200    one process against two, under DDP and FSDP2

The network is a SANA transformer of 60,000 weights. Children are forked, so that torch is imported once.
"""

import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed.fsdp  # once, before processes fork
from torch import Tensor, nn

from lineardit.bench.stamp import hardware_stamp, stamp_line
from lineardit.config.models import TransformerConfig
from lineardit.config.runs import LoopConfig
from lineardit.diffusion.objective import FlowMatching
from lineardit.training import checkpoint, distributed
from lineardit.training.distributed import Finished, Launch
from lineardit.training.loop import step_generator, train
from lineardit.training.shares import Share
from lineardit.transformer.model import Transformer

CONFIG = TransformerConfig(
    latent_channels=4, patch_size=1, depth=2, width=32, head_dim=16, cross_head_dim=16, text_width=12
)
LOOP = LoopConfig(
    steps=60,
    batch_size=8,
    dtype="fp32",
    learning_rate=1e-3,
    warmup_steps=10,
    log_every=1,
    sample_every=1000,
    checkpoint_every=3,
    ema_half_life=10,
    keep=3,
    timeout_minutes=5,
)
SECONDS_TO_START = 600


class Flow:
    """Flow matching towards latents that follow from the step."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = Transformer(CONFIG)

    def losses(self, step: int) -> Mapping[str, Tensor]:
        return self.losses_of_share(step, Share())

    def losses_of_share(self, step: int, share: Share) -> Mapping[str, Tensor]:
        generator = step_generator(1, step)
        latents = torch.randn(LOOP.batch_size, 4, 6, 6, generator=generator).cumsum(-1)
        text = torch.randn(LOOP.batch_size, 5, 12, generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        times = torch.rand(LOOP.batch_size, generator=generator)
        rows = share.rows(LOOP.batch_size)

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            return self.model(x, t, text[rows])

        return {"loss": FlowMatching().loss_at(velocity, latents[rows], noise[rows], times[rows]).mean()}

    def sample(self, model: nn.Module, step: int) -> None:
        return None


def say(line: str) -> None:
    """Print a result at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def forked(work: Callable[[], object]) -> int:
    """The id of a child that does `work` and ends as the command line ends a job."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 2)
        work()
        code = 0
    except Finished:
        code = 0
    finally:
        os._exit(code)


def crew(work: Callable[[], object]) -> list[int]:
    """Exit codes of two processes that do `work` together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def take_part(rank: int) -> None:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": str(rank), "WORLD_SIZE": "2"}
        distributed.join(Launch(rank, 2, rank), torch.device("cpu"), LOOP.timeout_minutes)
        if rank:
            distributed.pass_gate()
        work()

    children = [forked(lambda rank=rank: take_part(rank)) for rank in range(2)]
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def same(one: Path, two: Path) -> bool:
    """Whether the newest checkpoints of two runs are bit for bit the same."""
    first, second = (checkpoint.load_newest(folder) for folder in (one, two))
    assert first is not None and second is not None
    return (first.step, first.state) == (second.step, second.state) and all(
        torch.equal(tensor, second.tensors[stem][name])
        for stem, tensors in first.tensors.items()
        for name, tensor in tensors.items()
    )


def kills(count: int, folder: Path) -> bool:
    """Kill a run `count` times, start it anew each time, and compare it with the one that was left alone."""
    chance = random.Random(0)
    loop = LOOP.model_copy(update={"steps": 6 * count})
    train(Flow(), loop, folder / "whole", resume=False)
    place, writing, moments = folder / "parts", 0, 0
    for number in range(count):
        before = max((int(path.name[5:13]) for path in place.glob("step-*")), default=0)
        child = forked(lambda: train(Flow(), loop, place, resume=True))
        limit = time.monotonic() + SECONDS_TO_START
        while not (place / f"step-{before + 3:08d}").exists():
            assert time.monotonic() < limit, "the run makes no progress"
            time.sleep(0.001)
        if number % 3 == 0:
            while not any(place.glob(".unfinished-*")) and time.monotonic() < limit:
                pass
            time.sleep(chance.uniform(0, 0.004))
        else:
            time.sleep(chance.uniform(0, 0.05))
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        moments += killed
        writing += killed and any(place.glob(".unfinished-*"))
        assert checkpoint.load_newest(place) is not None
    train(Flow(), loop, place, resume=True)
    equal = same(folder / "whole", place)
    leftovers = list(place.glob(".unfinished-*"))
    verdict = "bit for bit the uninterrupted run" if equal else "DIFFERENT from the uninterrupted run"
    say(f"{moments} kills, {writing} while a checkpoint was written or removed: {verdict}")
    return equal and not leftovers


def exits(count: int, folder: Path) -> bool:
    """Exit codes of short jobs of two processes that share their tensors."""
    loop = LOOP.model_copy(update={"steps": 3, "parallel": "fsdp"})
    codes = [crew(lambda n=n: train(Flow(), loop, folder / str(n), resume=False)) for n in range(count)]
    good = codes.count([0, 0])
    say(f"{good} of {count} jobs of two processes ended with exit code 0 in both")
    return good == count


def losses(steps: int, folder: Path) -> bool:
    """Largest relative difference of the losses of one process and of two."""
    loop = LOOP.model_copy(update={"steps": steps, "checkpoint_every": steps})
    train(Flow(), loop, folder / "one", resume=False)
    worst = 0.0
    for parallel in ("ddp", "fsdp"):
        both = loop.model_copy(update={"parallel": parallel})
        assert crew(lambda run=both: train(Flow(), run, folder / run.parallel, resume=False)) == [0, 0]
        one, two = (
            [json.loads(line)["loss"] for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
            for name in ("one", parallel)
        )
        difference = max(abs(a - b) / abs(a) for a, b in zip(one, two, strict=True))
        fall = f"loss {one[0]:.3f} to {one[-1]:.3f}"
        say(f"{parallel}, {len(two)} steps, {fall}: at most {difference:.1e} apart, relatively")
        worst = max(worst, difference)
    return worst < 1e-5


if __name__ == "__main__":
    torch.set_num_threads(1)
    say(stamp_line(hardware_stamp()))
    check = {"kills": kills, "exits": exits, "losses": losses}[sys.argv[1]]
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(not check(int(sys.argv[2]), Path(temporary)))
