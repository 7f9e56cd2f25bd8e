"""How this process gets its memory from the system, and how much it has."""

import ctypes
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from lineardit.kernels.select import Choice

# Names of glibc's malloc.h, see mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER, _RETURNED = 2**31 - 1, 2**20


def keep_freed_memory() -> Choice:
    """Let glibc keep large blocks that are freed, for the rest of this process, and say whether it does.

    By default each block beyond some megabytes is mapped when it is made and unmapped when it is freed, so
    that every pass over a picture meets fresh pages, which the system has to clear: up to half the time of
    whatever is bound by memory. Kept blocks of up to two gigabytes are used again; the process holds its peak
    until it ends. This is for processes that draw, not for a library to decide.
    """
    if _told({_TRIM_THRESHOLD: _NEVER, _MMAP_THRESHOLD: _NEVER}):
        return Choice("kept", "glibc keeps what is freed: fresh pages cost up to half of a pass over memory")
    return Choice("returned", "this C library has no mallopt, or it refused")


def return_freed_memory() -> Choice:
    """Let glibc give blocks of a megabyte and more back to the system as soon as they are freed.

    What was kept until now goes back at once. Left alone glibc keeps blocks of up to 32 MB in one heap, where
    they leave gaps: a process then holds up to twice what its tensors take. This is for processes that draw
    within a bound.
    """
    if _told({_TRIM_THRESHOLD: _RETURNED, _MMAP_THRESHOLD: _RETURNED}):
        ctypes.CDLL(None).malloc_trim(0)
        return Choice("returned", "glibc gives back at once what is freed")
    return Choice("left alone", "this C library has no mallopt, or it refused")


def _told(options: Mapping[int, int]) -> bool:
    """Whether the C library took all of them."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return all(mallopt(option, value) for option, value in options.items())


def resident_bytes(name: str = "VmRSS") -> int | None:
    """What this process holds of the machine's memory; with VmHWM the most it ever held. None if not told."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    found = re.search(rf"^{name}:\s+(\d+) kB", status.read_text("ascii"), re.MULTILINE)
    return int(found[1]) * 1024 if found else None
