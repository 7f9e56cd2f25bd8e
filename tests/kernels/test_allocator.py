"""Freed memory is kept where the C library can be told to."""

import subprocess
import sys
from pathlib import Path

import pytest

CHILD = """
import resource, torch
from lineardit.kernels.allocator import keep_freed_memory, resident_bytes
if {kept}:
    assert keep_freed_memory().name == "kept"
def faults(*sizes):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for size in sizes:
        torch.ones(size)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(30_000_000)
assert resident_bytes() > 0 and resident_bytes("VmHWM") >= resident_bytes() - 2**20
print(faults(25_000_000, 20_000_000))
"""


RETURNED = """
import torch
from lineardit.kernels.allocator import resident_bytes, return_freed_memory
if {returned}:
    assert return_freed_memory().name == "returned"
before = resident_bytes()
torch.ones(6_000_000)  # from now on glibc takes blocks of up to 24 MB from its heap
blocks = [torch.ones(4_000_000) for _ in range(10)]
last = [bytes(50_000) for _ in range(20)]  # on top of them
del blocks
print(resident_bytes() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_returned_blocks_leave_no_gaps() -> None:
    returned, left_alone = (
        int(
            subprocess.run(
                [sys.executable, "-c", RETURNED.format(returned=returned)],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for returned in (True, False)
    )
    assert returned < 20_000_000 < 100_000_000 < left_alone


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_kept_blocks_cost_no_fresh_pages() -> None:
    kept, returned = (
        int(
            subprocess.run(
                [sys.executable, "-c", CHILD.format(kept=kept)], check=True, capture_output=True, text=True
            ).stdout
        )
        for kept in (True, False)
    )
    # 100 and 80 MB: 44,000 pages of 4 kB, fewer where the system uses large ones.
    assert kept < 20 or kept < 0.1 * returned


CLOSED = """
import ctypes, torch
from lineardit.kernels.allocator import *
def work(size):
    blocks = [torch.ones(size) for _ in range(10)]
    return [bytes(3_000_000) for _ in range(3)]  # on top of them
def heap_end():
    library = ctypes.CDLL(None)
    library.sbrk.restype = ctypes.c_void_p
    return library.sbrk(0)
keep_freed_memory()
pins = work(4_000_000)
assert keeps_freed_memory()
return_freed_memory()
assert not keeps_freed_memory()
before = resident_bytes()
torch.ones(6_000_000)
stayed = resident_bytes() - before
end = heap_end()
keep_freed_memory()
more = work(3_000_000)
print(stayed, heap_end() - end)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_holes_that_kept_blocks_leave_are_not_filled_until_blocks_are_kept_again() -> None:
    found = subprocess.run([sys.executable, "-c", CLOSED], check=True, capture_output=True, text=True)
    stayed, grown = (int(word) for word in found.stdout.split())
    assert stayed < 4_000_000, "24 MB went into a hole, and stay there"
    assert grown < 20_000_000, "120 MB have room in the holes"


LARGE = """
import os, resource, torch
from pathlib import Path
{before}
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(50_000_000)
assert "THP_MEM_ALLOC_ENABLE" not in os.environ
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
GENERATE = """
from lineardit.cli.app import main
words = ["generate", "a dog", "-o", {place!r}, "--num-inference-steps", "1", "--device", "cpu"]
assert main([*words, *{more!r}]) == 0
"""


def fresh_pages(before: str) -> int:
    """That 200 MB take after this code."""
    child = [sys.executable, "-c", LARGE.format(before=before)]
    done = subprocess.run(child, check=True, capture_output=True, text=True)
    return int(done.stdout.splitlines()[-1])


def makes_large_pages() -> bool:
    told = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return told.is_file() and "[madvise]" in told.read_text("ascii")


@pytest.mark.skipif(not makes_large_pages(), reason="this system makes no large pages for those who ask")
def test_tensors_lie_on_large_pages_where_they_are_asked_for_in_time(tmp_path: Path) -> None:
    ask = "from lineardit.kernels.allocator import ask_for_large_pages\n"
    place = str(tmp_path / "dog.png")
    assert fresh_pages(ask + "ask_for_large_pages()") < 2_000
    assert fresh_pages(GENERATE.format(place=place, more=["--force"])) < 2_000, (
        "generate asks before it works"
    )
    assert fresh_pages(ask + "torch.ones(1)\nask_for_large_pages()") > 40_000, "torch had decided"
    more = ["--force", "--no-keep-freed"]
    assert fresh_pages(GENERATE.format(place=place, more=more)) > 40_000
