"""Work spread over processes, handed back in its order, with a bounded number of jobs under way."""

import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import TypeVar

from lineardit.errors import LineardiTError

Tag = TypeVar("Tag")
Job = TypeVar("Job")
Result = TypeVar("Result")


@contextmanager
def worker_processes(count: int) -> Iterator[Executor | None]:
    """`count` processes that start anew, sharing nothing with this one; none where one is enough.

    Raises:
        LineardiTError: one of them was killed.
    """
    if count <= 1:
        yield None
        return
    pool = ProcessPoolExecutor(count, get_context("spawn"), initializer=_end_at_ctrl_c)
    try:
        yield pool
    except BrokenProcessPool:
        raise LineardiTError(
            "a worker process was killed, perhaps for lack of memory. The same command goes on where it "
            f"stopped; with --processes {count // 2} it needs less."
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def in_order(
    pool: Executor | None, work: Callable[[Job], Result], jobs: Iterable[tuple[Tag, Job]], ahead: int
) -> Iterator[tuple[Tag, Result]]:
    """`work(job)` of every job, beside its tag; at most `ahead` of them are under way in the pool."""
    if pool is None:
        yield from ((tag, work(job)) for tag, job in jobs)
        return
    waiting: deque[tuple[Tag, Future[Result]]] = deque()
    for tag, job in jobs:
        waiting.append((tag, pool.submit(work, job)))
        if len(waiting) >= ahead:
            first, future = waiting.popleft()
            yield first, future.result()
    for first, future in waiting:
        yield first, future.result()


def _end_at_ctrl_c() -> None:
    """Workers end without a word; the process that they work for says what happened."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
