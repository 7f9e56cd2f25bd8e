"""The processes of one job: how they find each other, agree, and end together.

torchrun starts the processes and tells each who it is; torch's process group connects them. Without torchrun
there is one process, and nothing here talks to anybody.

The first process prepares a run (draws and encodes what it learns from), the others wait at a gate until it
comes to the loop, and what follows the loop (measuring, exporting) is again the first one's alone.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from lineardit.errors import ConfigError, ProcessLostError

_log = logging.getLogger(__name__)

PREPARATION = timedelta(days=14)
"""How long the other processes wait for the first one to prepare a run. If it dies they notice at once."""
_SIGNS = ("gloo", "nccl", "connection", "timed out", "timeout", "socket")
"""Words in the errors by which torch says that another process does not answer."""


class Launch(NamedTuple):
    """What torchrun told this process."""

    rank: int
    size: int
    local_rank: int
    """Among the processes of this machine; also the number of its GPU."""


class World(NamedTuple):
    """All processes of the job, seen from this one."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")
    """Where numbers must lie that are sent to others."""

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all others."""
        if self.size > 1:
            dist.all_reduce(torch.zeros(1, device=self.device))

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """Of every number, the sum over the processes, the same on each, added in float64."""
        if self.size == 1:
            return list(numbers)
        tensor = torch.tensor(list(numbers), dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return [float(number) for number in tensor.tolist()]

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Make every tensor its mean over the processes, the same on each."""
        if self.size == 1:
            return
        for tensor in tensors:
            dist.all_reduce(tensor)
            tensor /= self.size

    def told(self, number: int) -> int:
        """The number that the first process has."""
        if self.size == 1:
            return number
        tensor = torch.tensor(number, dtype=torch.int64, device=self.device)
        dist.broadcast(tensor, src=0)
        return int(tensor)


class Finished(Exception):
    """Ends a process that is not the first one: its part of the run is done."""


class _Job:
    """The job of this process; torch's own process group is as global."""

    world = World()
    gate: dist.ProcessGroup | None = None


def world() -> World:
    """The processes of the job; one alone without torchrun."""
    return _Job.world


def read_launch(environment: Mapping[str, str]) -> Launch | None:
    """Who torchrun says this process is, or None where there is but one."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if not all(environment.get(name, "").isdigit() for name in names):
        return None
    launch = Launch(*(int(environment[name]) for name in names))
    return launch if launch.size > 1 else None


def join(launch: Launch, device: torch.device, timeout_minutes: float) -> World:
    """Connect this process with the others; they must all come, within the timeout.

    Raises:
        ProcessLostError: not all of them came.
    """
    timeout = timedelta(minutes=timeout_minutes)
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    with lost_processes(launch.rank, launch.size):
        dist.init_process_group(backend, timeout=timeout)
        _Job.gate = dist.new_group(backend="gloo", timeout=PREPARATION)
    _Job.world = World(launch.rank, launch.size, device)
    return _Job.world


def pass_gate() -> None:
    """The first process opens the gate, the others wait at it; from then on all run the loop."""
    gate, _Job.gate = _Job.gate, None
    if gate is not None:
        with lost_processes(_Job.world.rank, _Job.world.size):
            dist.all_reduce(torch.zeros(1), group=gate)


def leave() -> World:
    """Part from the others, and say what the job was; this process goes on alone."""
    before, _Job.world, _Job.gate = _Job.world, World(), None
    if dist.is_initialized():
        dist.destroy_process_group()
    return before


@contextmanager
def lost_processes(rank: int, size: int) -> Iterator[None]:
    """Inside, what torch says when another process does not answer becomes a ProcessLostError."""
    try:
        yield
    except RuntimeError as error:  # of which torch's own errors of communication are kinds
        text = str(error)
        if size == 1 or not any(sign in text.lower() for sign in _SIGNS):
            raise
        raise ProcessLostError(
            f"process {rank + 1} of {size} gets no answer from another one, which has died, hangs or cannot "
            f"be reached ({text.strip().splitlines()[0][:200]}). Its own last lines say why; if it was only "
            "slow, give train.timeout_minutes more. The checkpoints are whole: start again with --resume."
        ) from error


def check_divisible(batch_size: int, accumulate: int, size: int) -> None:
    """Raises ConfigError unless a batch divides evenly among processes and parts one after the other."""
    parts = size * accumulate
    if batch_size % parts:
        below = batch_size - batch_size % parts
        choices = f"{below} or {below + parts}" if below else f"{parts}"
        raise ConfigError(
            f"train.batch_size={batch_size} does not divide among {size} processes with "
            f"train.accumulate={accumulate}. Use train.batch_size={choices}."
        )
