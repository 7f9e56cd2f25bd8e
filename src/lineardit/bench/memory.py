"""How much memory a piece of work takes, and how much there is."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from lineardit.kernels.select import inspect_machine

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peak:
    """Bytes, once its work is done; None where the system does not say."""

    bytes: int | None = None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """The most memory held inside the block beyond what was held before it.

    On a GPU what torch allocated there; on Linux the resident memory of this process, in which small tensors
    (some 16 MB) may hide in memory that was freed before.
    """
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    try:
        _RESET.write_text("5", "ascii")
    except OSError:
        yield peak
        return
    resident = _resident("VmRSS")
    yield peak
    highest = _resident("VmHWM")
    if resident is not None and highest is not None:
        peak.bytes = max(0, highest - resident)


def available_memory(device: torch.device) -> int:
    """Bytes that can still be allocated, as far as the system says; else all that it has."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    whole = inspect_machine().memory
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return whole
    found = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text("ascii"), re.MULTILINE)
    return min(whole, int(found[1]) * 1024) if found else whole


def _resident(name: str) -> int | None:
    found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text("ascii"), re.MULTILINE)
    return int(found[1]) * 1024 if found else None
