"""One training loop for everything that is trained, in one process or many: steps, averages, logs, exact
resume.

All randomness of a step is a function of the seed and the step, so there is no state of generators to keep:
what a resumed run does is what the uninterrupted one would have done. `training.distributed` says who takes
part, `training.shares` how a batch is divided, `training.parallel` how a network is, `training.run_state`
what is kept.
"""

import hashlib
import logging
import math
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lineardit.config.runs import LoopConfig
from lineardit.errors import ConfigError, NotFiniteError
from lineardit.kernels.select import autocast
from lineardit.nn.finite import check_parameters, finite_outputs
from lineardit.training import distributed
from lineardit.training.distributed import World
from lineardit.training.optimizer import learning_rate_at
from lineardit.training.parallel import clip, synchronise
from lineardit.training.progress import Progress
from lineardit.training.run_state import RunState
from lineardit.training.shares import Divisible, Share, divide_forward

_log = logging.getLogger(__name__)


@runtime_checkable
class Task(Protocol):
    """What is trained: a network, its loss at a step, and pictures that show how far it is.

    A task may also have a `rival`, a second player that learns after each of its steps (`training.rival`), be
    `Divisible` (`training.shares`), `Validated`, or `Positioned` (`training.run_state`).
    """

    model: nn.Module

    def losses(self, step: int) -> Mapping[str, Tensor]:
        """Named scalars; `loss` is the one that is minimised. All randomness is a function of the step."""
        ...

    def sample(self, model: nn.Module, step: int) -> Float[Tensor, "b 3 H W"] | None:
        """Pictures in [-1, 1] made with `model`, the averaged weights, or None where nothing can be seen."""
        ...


@runtime_checkable
class Validated(Protocol):
    """A task that is also measured on what it does not learn from, each time before samples are drawn."""

    def validate(self, model: nn.Module, step: int) -> Mapping[str, float]:
        """Named numbers about `model`, the averaged weights; the lower `loss`, the better the checkpoint."""
        ...


class Outcome(NamedTuple):
    """What `train` hands back."""

    average: nn.Module
    """The network with averaged weights."""
    step: int
    """Steps done; fewer than asked for when the run was told to stop."""
    losses: dict[str, float]
    """The last logged losses."""


def step_generator(seed: int, step: int, purpose: str = "") -> torch.Generator:
    """A generator that follows from (seed, step, purpose) alone, so that a resumed run repeats nothing."""
    return torch.Generator().manual_seed(_hashed(seed, step, purpose))


def precision(dtype: str, device: torch.device) -> AbstractContextManager[Any]:
    """Autocast around the forward pass where `dtype` says so; weights stay float32."""
    stack = ExitStack()
    half = dtype == "fp16"
    stack.enter_context(torch.autocast(device.type, torch.float16) if half else autocast(device, dtype))
    stack.enter_context(attention_kernels(device))
    return stack


def attention_kernels(device: torch.device) -> AbstractContextManager[Any]:
    """Plain products on a CPU, where for prompts of some 20 tokens the fused backward pass is slower.

    The backward pass needs it too: blocks that are computed again must be so by the same kernels.
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def train(task: Task, loop: LoopConfig, folder: Path, *, resume: bool) -> Outcome:
    """Run `loop.steps` steps, writing checkpoints, samples and logs below `folder`.

    SIGTERM and Ctrl-C save and return after the step at hand. In a job of several processes all call this,
    and only in the first one it returns.

    Raises:
        ConfigError: the batch does not divide as `loop` and the processes ask.
        OutputError: the folder holds a run and `resume` is false, or the disk is full; what was saved stays.
        NotFiniteError: a loss is not finite; names the layer. The last checkpoint stays.
        ProcessLostError: another process does not answer.
        distributed.Finished: this process is not the first one, and all is done.
    """
    distributed.pass_gate()
    world = distributed.world()
    _check_batch(task, loop, world)
    device = next(task.model.parameters()).device
    gpus = [device] if device.type == "cuda" else []
    with distributed.lost_processes(world.rank, world.size), torch.random.fork_rng(gpus):
        outcome = _run(task, loop, folder, resume, world, device)
        world.barrier()
    if world.size > 1:
        distributed.leave()
        if not world.first:
            raise distributed.Finished
    return outcome


def _run(
    task: Task, loop: LoopConfig, folder: Path, resume: bool, world: World, device: torch.device
) -> Outcome:
    state = RunState(task, loop, folder, world)
    if state.spread.group is not None and not isinstance(task, Divisible):
        divide_forward(task.model, state.spread.group)
    start = state.restore(resume)
    progress = Progress(folder, loop.steps, loop.batch_size, start, speaks=world.first)
    saved_at, since_saved, done = time.monotonic(), _Mean(), start
    with progress, _stop_signals() as stop:
        for step in range(start, loop.steps):
            rate = learning_rate_at(step, loop)
            losses = _gradients(task, step, loop, state, device)
            norm = clip(state.model, loop.clip)
            overdue = world.first and time.monotonic() - saved_at > 60 * loop.checkpoint_minutes
            losses, stopping, overdue = _agreed(losses, stop.asked, overdue, world)
            if not torch.isfinite(losses["loss"]):
                _explain(task, step, loop, state, device)
            since_saved.add(float(losses["loss"]))
            finite = math.isfinite(norm)
            state.scale.after(finite)
            if finite:
                state.update(step, rate)
            else:
                progress.skipped(step)
            state.model.zero_grad(set_to_none=True)
            for rival in state.rivals:
                losses = {**losses, **rival.step(step, precision(loop.dtype, device))}
            done = step + 1
            last = done == loop.steps
            logged = done % loop.log_every == 0 or last
            progress.advance(done, losses, norm, rate if logged else None)
            seen = done % loop.sample_every == 0 or last
            due = done % loop.checkpoint_every == 0 or overdue or stopping or last
            average = state.averaged() if seen else None
            score = None
            if average is not None and isinstance(task, Validated):
                score = _validated(task, average, step, state, progress, world)
            elif not isinstance(task, Validated):
                score = since_saved.value
            if due:
                state.save(done, score)
                saved_at, since_saved = time.monotonic(), _Mean()
            if average is not None and world.first:
                progress.pictures(done, task.sample(average, step))
            if stopping:
                if world.first:
                    _log.warning("stopped at step %d of %d; go on with --resume", done, loop.steps)
                break
    return Outcome(state.averaged(), done, progress.last)


def _check_batch(task: Task, loop: LoopConfig, world: World) -> None:
    if isinstance(task, Divisible):
        distributed.check_divisible(loop.batch_size, loop.accumulate, world.size)
    elif loop.accumulate > 1:
        raise ConfigError(
            f"train.accumulate={loop.accumulate}, but this kind of run computes a batch at once. Use "
            "train.checkpoint_activations=true or a smaller train.batch_size to save memory."
        )


def _gradients(
    task: Task, step: int, loop: LoopConfig, state: RunState, device: torch.device
) -> Mapping[str, Tensor]:
    """Leave the gradients of one batch in the model's parameters, and return the means of its losses."""
    world, parts = state.world, loop.accumulate
    sums: dict[str, Tensor] = {}
    for part in range(parts):
        synchronise(state.model, part == parts - 1)
        losses = _losses(task, step, loop, Share(world.rank * parts + part, world.size * parts), device)
        with attention_kernels(device):
            torch.autograd.backward(losses["loss"] * (state.scale.value / parts))
        for name, value in losses.items():
            sums[name] = value.detach() / parts + (sums[name] if part else 0)
    if state.scale.value != 1:
        gradients = [each.grad for each in state.model.parameters() if each.grad is not None]
        torch._foreach_mul_(gradients, 1 / state.scale.value)
    return sums


def _losses(
    task: Task, step: int, loop: LoopConfig, share: Share, device: torch.device
) -> Mapping[str, Tensor]:
    """The losses of a share, or of the batch where the task computes it at once."""
    # What draws from torch's own generators, such as dropout, follows from the step as well.
    torch.manual_seed(_hashed(loop.seed, step, f"share {share.index}"))
    with precision(loop.dtype, device):
        return task.losses_of_share(step, share) if isinstance(task, Divisible) else task.losses(step)


def _agreed(
    losses: Mapping[str, Tensor], stop: bool, overdue: bool, world: World
) -> tuple[Mapping[str, Tensor], bool, bool]:
    """Means of the losses, and whether any process was told to stop or finds a checkpoint overdue."""
    if world.size == 1:
        return losses, stop, overdue
    numbers = world.sum([float(stop), float(overdue), *(float(losses[name]) for name in sorted(losses))])
    means = [torch.tensor(number / world.size, dtype=torch.float64) for number in numbers[2:]]
    return dict(zip(sorted(losses), means, strict=True)), numbers[0] > 0, numbers[1] > 0


def _validated(
    task: Validated, average: nn.Module, step: int, state: RunState, progress: Progress, world: World
) -> float | None:
    """The validation loss; a validation that fails loses no step."""
    if not world.first:
        return None
    try:
        found = task.validate(average, step)
    except Exception:
        if world.size == 1:
            state.save(step + 1, None)
        raise
    progress.validated(step + 1, found)
    return found.get("loss")


class _Mean:
    """Of the numbers added so far."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, number: float) -> None:
        self.total, self.count = self.total + number, self.count + 1

    @property
    def value(self) -> float | None:
        return self.total / self.count if self.count else None


def _hashed(seed: int, step: int, purpose: str) -> int:
    digest = hashlib.sha256(f"{seed}:{step}:{purpose}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def _explain(task: Task, step: int, loop: LoopConfig, state: RunState, device: torch.device) -> None:
    """Repeat a step in no more memory than it had, and raise NotFiniteError naming the layer."""
    if not state.spread.sharded:  # else no process has a whole parameter to look at
        check_parameters(task.model)
    world, count = state.world, state.world.size * loop.accumulate
    divided = isinstance(task, Divisible)
    # Every process looks at the shares of all: what one alone finds would leave the others waiting for it.
    shares = [Share(index, count) for index in (range(count) if divided else [world.rank])]
    # Compiled code runs no hooks, so the step is repeated without it. A batch that is computed at once may
    # need gradients for its loss (`training.reconstruction`).
    with (
        torch.compiler.set_stance("force_eager"),
        finite_outputs(task.model),
        torch.set_grad_enabled(not divided),
    ):
        for share in shares:
            _losses(task, step, loop, share, device)
    raise NotFiniteError(f"the loss of step {step} is not finite, although every layer's output is.")


class _Stop:
    asked = False


@contextmanager
def _stop_signals() -> Iterator[_Stop]:
    """SIGTERM and SIGINT set a flag; a second SIGINT interrupts at once."""
    stop = _Stop()

    def ask(number: int, _: object) -> None:
        if stop.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.asked = True

    try:
        before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread: whoever owns the signals keeps them
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
