"""One training loop for everything that is trained: steps, averages, samples, logs and exact resume."""

import hashlib
import logging
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Optimizer

from lineardit.config.runs import LoopConfig
from lineardit.errors import CheckpointError, NotFiniteError, OutputError
from lineardit.kernels.select import autocast
from lineardit.training import checkpoint, optimizer_state
from lineardit.training.average import WeightAverage
from lineardit.training.finite import check_parameters, finite_outputs
from lineardit.training.optimizer import build_optimizers, learning_rate_at
from lineardit.training.progress import Progress
from lineardit.training.rival import Opponent, opponents

_log = logging.getLogger(__name__)


@runtime_checkable
class Task(Protocol):
    """What is trained: a network, its loss at a step, and pictures that show how far it is.

    A task may have a `rival`, a second player that learns after each of its steps (`training.rival`).
    """

    model: nn.Module

    def losses(self, step: int) -> Mapping[str, Tensor]:
        """Named scalars; `loss` is the one that is minimised. All randomness is a function of the step."""
        ...

    def sample(self, model: nn.Module, step: int) -> Float[Tensor, "b 3 H W"] | None:
        """Pictures in [-1, 1] made with `model`, the averaged weights, or None where nothing can be seen."""
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
    digest = hashlib.sha256(f"{seed}:{step}:{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def precision(dtype: str, device: torch.device) -> AbstractContextManager[Any]:
    """Autocast around the forward pass where `dtype` says so; weights stay float32."""
    stack = ExitStack()
    stack.enter_context(autocast(device, dtype))
    if (
        device.type == "cpu"
    ):  # for prompts of some 20 tokens the fused backward pass is slower than plain products
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
    return stack


def train(task: Task, loop: LoopConfig, folder: Path, *, resume: bool) -> Outcome:
    """Run `loop.steps` steps, writing checkpoints, samples and logs below `folder`.

    SIGTERM and Ctrl-C save and return after the step at hand.

    Raises:
        OutputError: the folder holds a run and `resume` is false.
        NotFiniteError: a loss is not finite; names the layer. The last checkpoint stays.
    """
    model, device = task.model, next(task.model.parameters()).device
    optimizers = build_optimizers(model, loop)
    average = WeightAverage(model, float(loop.ema_half_life))
    rivals = opponents(task)
    start = _restore(folder, model, average, optimizers, rivals, resume)
    progress = Progress(folder, loop.steps, loop.batch_size, start)
    saved_at, done = time.monotonic(), start
    with progress, _stop_signals() as stop:
        for step in range(start, loop.steps):
            rate = learning_rate_at(step, loop)
            with precision(loop.dtype, device):
                losses = task.losses(step)
            torch.autograd.backward(losses["loss"])
            norm = nn.utils.clip_grad_norm_(model.parameters(), loop.clip)
            if not torch.isfinite(losses["loss"]):
                _explain(task, step, loop.dtype, device)
            if torch.isfinite(norm):
                for optimizer in optimizers:
                    for group in optimizer.param_groups:
                        group["lr"] = rate
                    optimizer.step()
                average.update(model, step)
            else:
                progress.skipped(step)
            model.zero_grad(set_to_none=True)
            for rival in rivals:
                losses = {**losses, **rival.step(step, precision(loop.dtype, device))}
            done = step + 1
            logged = done % loop.log_every == 0 or done == loop.steps
            progress.advance(done, losses, float(norm), rate if logged else None)
            due = (
                done % loop.checkpoint_every == 0
                or time.monotonic() - saved_at > 60 * loop.checkpoint_minutes
            )
            if due or stop.asked or done == loop.steps:
                _save(folder, done, model, average, optimizers, rivals, loop.keep)
                saved_at = time.monotonic()
            if done % loop.sample_every == 0 or done == loop.steps:
                progress.pictures(done, task.sample(average.model, step))
            if stop.asked:
                _log.warning("stopped at step %d of %d; go on with --resume", done, loop.steps)
                break
    return Outcome(average.model, done, progress.last)


def _explain(task: Task, step: int, dtype: str, device: torch.device) -> None:
    check_parameters(task.model)
    # Compiled code runs no hooks, so the step is repeated without it.
    with torch.compiler.set_stance("force_eager"), finite_outputs(task.model), precision(dtype, device):
        task.losses(step)
    raise NotFiniteError(f"the loss of step {step} is not finite, although every layer's output is.")


def _save(
    folder: Path,
    step: int,
    model: nn.Module,
    average: WeightAverage,
    optimizers: Sequence[Optimizer],
    rivals: Sequence[Opponent],
    keep: int,
) -> None:
    tensors = {
        "model": model.state_dict(),
        "ema": average.state_dict(),
        "optimizer": optimizer_state.moments(optimizers),
    }
    state = {"groups": optimizer_state.groups(optimizers)}
    for rival in rivals:
        tensors |= rival.tensors()
        state |= rival.state()
    checkpoint.save(folder, step, tensors, state, keep)


def _restore(
    folder: Path,
    model: nn.Module,
    average: WeightAverage,
    optimizers: Sequence[Optimizer],
    rivals: Sequence[Opponent],
    resume: bool,
) -> int:
    found = checkpoint.load_newest(folder) if folder.exists() else None
    if found is None:
        return 0
    if not resume:
        raise OutputError(
            f"{folder} holds a run at step {found.step}: add --resume to go on, or name another folder."
        )
    try:
        model.load_state_dict(found.tensors["model"])
        average.model.load_state_dict(found.tensors["ema"])
        optimizer_state.restore(optimizers, found.tensors["optimizer"], found.state["groups"])
        for rival in rivals:
            rival.restore(found)
    except (RuntimeError, LookupError, ValueError) as error:
        raise CheckpointError(
            f"{found.path} is of another network or optimizer: {str(error).splitlines()[0]} "
            "Resume with the recipe it was made by."
        ) from None
    return found.step


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
