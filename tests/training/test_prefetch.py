"""Read ahead, never out of order."""

import threading

import pytest

from lineardit.training.prefetch import Prefetch


def test_what_is_asked_for_comes_whatever_the_order() -> None:
    prefetch = Prefetch(lambda step, part: (step, part))
    for step, part in [(0, "a"), (0, "b"), (1, "a"), (1, "b"), (1, "b"), (7, "a"), (2, "a"), (3, "a")]:
        assert prefetch(step, part) == (step, part)


def test_the_next_step_is_made_while_this_one_is_used() -> None:
    made: list[int] = []
    ready = threading.Event()

    def make(step: int, part: int) -> int:
        made.append(step)
        if step == 1:
            ready.set()
        return step

    prefetch = Prefetch(make)
    assert prefetch(0, 0) == 0
    assert ready.wait(10)
    assert prefetch(1, 0) == 1
    assert made.count(1) == 1


def test_what_goes_wrong_ahead_is_raised_when_its_step_comes() -> None:
    def make(step: int, part: int) -> int:
        if step == 2:
            raise ValueError("damaged")
        return step

    prefetch = Prefetch(make)
    assert [prefetch(0, 0), prefetch(1, 0)] == [0, 1]
    with pytest.raises(ValueError, match="damaged"):
        prefetch(2, 0)
