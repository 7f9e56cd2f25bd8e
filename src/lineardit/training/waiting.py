"""How long a run's steps wait for their data."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class _Clock:
    """Of this process, which trains one thing at a time."""

    seconds = 0.0


@contextmanager
def waiting() -> Iterator[None]:
    """Inside, the step that runs has nothing to compute with yet."""
    start = time.monotonic()
    try:
        yield
    finally:
        _Clock.seconds += time.monotonic() - start


def waited() -> float:
    """Seconds since this was asked last."""
    seconds, _Clock.seconds = _Clock.seconds, 0.0
    return seconds
