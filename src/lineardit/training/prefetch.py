"""The next step's data is read while this one computes."""

from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from lineardit.training.waiting import waiting

Part = TypeVar("Part", bound=Hashable)
T = TypeVar("T")


class Prefetch(Generic[Part, T]):
    """Whenever a part of a step is asked for, the same part of the step after it is made in a thread.

    What is returned is what `make(step, part)` returns, whatever the order of the steps; what it raises is
    raised when that step is asked for.
    """

    def __init__(self, make: Callable[[int, Part], T]) -> None:
        self._make = make
        # One thread makes them all, so that `make` never runs twice at a time.
        self._thread = ThreadPoolExecutor(1, "prefetch")
        self._ahead: dict[tuple[int, Part], Future[T]] = {}

    def __call__(self, step: int, part: Part) -> T:
        """What belongs to a part of a step."""
        ahead = self._ahead.pop((step, part), None)
        with waiting():
            made = (ahead or self._thread.submit(self._make, step, part)).result()
        stale = [key for key in self._ahead if key[0] not in (step, step + 1)]
        for key in stale:
            self._ahead.pop(key).cancel()
        self._ahead[step + 1, part] = self._thread.submit(self._make, step + 1, part)
        return made
