"""Times and memory of a piece of work."""

import sys
import time

import pytest
import torch

from lineardit.bench import clock
from lineardit.bench.clock import LEAST_CALLS, MOST_CALLS, SETTLING, measure
from lineardit.bench.memory import available_memory, peak_memory
from lineardit.kernels.allocator import return_freed_memory
from lineardit.kernels.select import inspect_machine

CPU = torch.device("cpu")


def test_the_median_leaves_out_the_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([5.0, 1.0, 9.0, 2.0])
    monkeypatch.setattr(clock, "_seconds", lambda work, device: next(seconds))
    assert measure(lambda: None, CPU, 12.0)[:2] == (2.0, LEAST_CALLS)


@pytest.mark.parametrize(("budget", "expected"), [(9.0, 4.0), (4.0, 5.0)])
def test_a_call_of_half_of_the_budget_is_timed_once_and_of_all_of_it_not_again(
    budget: float, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter([5.0, 4.0])
    monkeypatch.setattr(clock, "_seconds", lambda work, device: next(seconds))
    assert measure(lambda: None, CPU, budget)[:2] == (expected, 1)


def test_quick_work_is_called_often_but_not_for_ever() -> None:
    calls: list[int] = []
    cost = measure(lambda: calls.append(1), CPU, 1.0)
    assert cost.calls == MOST_CALLS and len(calls) == 1 + SETTLING + MOST_CALLS


def test_seconds_are_seconds() -> None:
    cost = measure(lambda: time.sleep(0.02), CPU, 0.001)
    assert 0.02 <= cost.seconds < 1.0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the most memory a process held")
def test_memory_that_was_given_back_counts() -> None:
    def work() -> None:
        torch.ones(16 * 2**20)  # 64 MiB

    measure(work, CPU, 0.1)  # keeps what is freed
    return_freed_memory()
    with peak_memory(CPU) as peak:
        work()
    assert peak.bytes is not None and 60 * 2**20 < peak.bytes < 80 * 2**20
    with peak_memory(CPU) as after:
        pass
    assert after.bytes is not None and after.bytes < 4 * 2**20


def test_what_is_available_is_part_of_what_there_is() -> None:
    assert 0 < available_memory(CPU) <= inspect_machine().memory


def test_the_rate_of_a_machine_is_that_of_its_fastest_call(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([4.0, 2.0, *[8.0] * (clock.PROBES - 2)])
    monkeypatch.setattr(clock, "_seconds", lambda work, device: (work(), next(seconds))[1])
    for dtype in (torch.float32, torch.float16):
        seconds = iter([4.0, 2.0, *[8.0] * (clock.PROBES - 2)])
        assert clock.operations_per_second(CPU, dtype, 16) == 2 * 16**3 / 2.0
