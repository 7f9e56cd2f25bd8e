"""How long a piece of work takes: the median of several calls after a first one."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lineardit.bench.memory import peak_memory
from lineardit.kernels.allocator import keep_freed_memory, return_freed_memory

LEAST_CALLS, MOST_CALLS = 3, 50
SETTLING = 3
"""Calls on a CPU after which memory that is kept has found its places."""
PROBES = 10
"""Calls of which the fastest tells a machine's rate."""


class Cost(NamedTuple):
    """What one call costs."""

    seconds: float
    """Median."""
    calls: int
    """Of which this is the median; 1 where the first took half of the budget or more."""
    peak: int | None
    """Bytes held at most beyond what was held before, in the first call; None where the system is silent."""


def measure(work: Callable[[], object], device: torch.device, budget: float) -> Cost:
    """Time `work`, about `budget` seconds long. The first call warms up and counts its memory.

    On a CPU large blocks are given back to the system in the first call, so that what it takes is seen, and
    kept in those that are timed, as in every process that draws or trains; some calls before these settle
    where they lie.
    """
    if device.type == "cpu":
        return_freed_memory()
    with peak_memory(device) as peak:
        first = _seconds(work, device)
    if device.type == "cpu":
        keep_freed_memory()
    if first > budget:
        return Cost(first, 1, peak.bytes)
    least = LEAST_CALLS if first <= budget / 2 else 1
    if device.type == "cpu" and SETTLING * first <= budget:
        for _ in range(SETTLING):
            work()
    calls = min(MOST_CALLS, max(least, int(budget / max(first, 1e-9)) - 1))
    return Cost(statistics.median(_seconds(work, device) for _ in range(calls)), calls, peak.bytes)


def operations_per_second(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """How fast this machine multiplies square matrices of that side at best; a multiply-add is two."""
    left, right = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))

    def multiply() -> Tensor:
        if device.type == "cpu" and dtype != torch.float16:
            # torch would ask MKL for products of float32, which is slow on processors that are not Intel's.
            product: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")
            return product
        return left @ right

    with torch.no_grad():
        return 2 * side**3 / min(_seconds(multiply, device) for _ in range(PROBES))


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    _synchronise(device)
    start = time.perf_counter()
    result = work()
    _synchronise(device)
    taken = time.perf_counter() - start
    del result
    return taken


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
