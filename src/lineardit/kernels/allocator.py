"""How this process gets its memory from the system, and how much it has."""

import ctypes
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from lineardit.kernels.select import Choice

# Names of glibc's malloc.h, see mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER, _LARGEST, _RETURNED = -1, 2**31 - 1, 2**20
"""Bytes. The first stands for more than any block has."""
_LARGEST_STOPPER = 2**26
_LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"

_keeps = False
_stoppers: list[int] = []


def keep_freed_memory() -> Choice:
    """Let glibc keep large blocks that are freed, for the rest of this process, and say whether it does.

    By default each block beyond some megabytes is mapped when it is made and unmapped when it is freed, so
    that every pass over a picture meets fresh pages, which the system has to clear: up to half the time of
    whatever is bound by memory. Kept blocks of up to two gigabytes are used again; the process holds its peak
    until it ends, or `return_freed_memory` is called. `ask_for_large_pages` comes with it, where that still
    helps. This is for processes that draw, not for a library to decide.
    """
    global _keeps
    ask_for_large_pages()
    if _told({_TRIM_THRESHOLD: _NEVER, _MMAP_THRESHOLD: _LARGEST}):
        _keeps = True
        _remove_stoppers()
        return Choice("kept", "glibc keeps what is freed: fresh pages cost up to half of a pass over memory")
    return Choice("returned", "this C library has no mallopt, or it refused")


def ask_for_large_pages() -> None:
    """Let tensors of two megabytes and more lie on pages as large, if torch has allocated nothing yet.

    A fresh page takes a fault of its own, and of large pages there are 512 times fewer. It costs up to two
    megabytes for each tensor. A system that was told never to make them leaves it.
    """
    if _LARGE_PAGES not in os.environ:
        os.environ[_LARGE_PAGES] = "1"
        torch.empty(1)  # torch reads the variable when it first allocates
        del os.environ[_LARGE_PAGES]  # children of this process decide for themselves


def return_freed_memory() -> Choice:
    """Let glibc give blocks of a megabyte and more back to the system as soon as they are freed.

    What was kept until now goes back at once, and the holes that it leaves in the heap are closed until
    blocks are kept again: what is put into a hole stays with the process when it is freed. Left alone glibc
    keeps blocks of up to 32 MB in one heap, where they leave gaps: a process then holds up to twice what its
    tensors take. This is for processes that draw within a bound.
    """
    global _keeps
    if _told({_TRIM_THRESHOLD: _RETURNED, _MMAP_THRESHOLD: _RETURNED}):
        _keeps = False
        ctypes.CDLL(None).malloc_trim(0)
        _close_holes()
        return Choice("returned", "glibc gives back at once what is freed")
    return Choice("left alone", "this C library has no mallopt, or it refused")


def keeps_freed_memory() -> bool:
    """Whether this process was told to keep it, and has not been told otherwise since."""
    return _keeps


def _close_holes() -> None:
    """Allocate whatever is free in the heap in pieces of a megabyte and more, and never touch it.

    Pieces that have no room there are mapped elsewhere, and given back.
    """
    ends = re.findall(r"^(\w+)-(\w+) .*\[heap\]$", Path("/proc/self/maps").read_text("utf-8"), re.MULTILINE)
    heap = [range(int(start, 16), int(end, 16)) for start, end in ends]
    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p
    library.malloc.argtypes, library.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
    size = _LARGEST_STOPPER
    while size >= _RETURNED:
        piece = library.malloc(size)
        if piece is not None and any(piece in each for each in heap):
            _stoppers.append(piece)
            continue
        library.free(piece)
        size //= 2


def _remove_stoppers() -> None:
    library = ctypes.CDLL(None)
    library.free.argtypes = [ctypes.c_void_p]
    while _stoppers:
        library.free(_stoppers.pop())


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
