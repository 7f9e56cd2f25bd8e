"""A stream of random numbers that is the same on every machine and in every version of Python."""

import hashlib
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")
_MASK = (1 << 64) - 1


def stable_hash(*parts: str | int) -> int:
    """64 bits that depend on nothing but the parts; Python's own `hash` differs between processes."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


class Draws:
    """SplitMix64 (Steele, Lea and Flood 2014), keyed by what the numbers are for, such as (seed, index)."""

    __slots__ = ("_state",)

    def __init__(self, *key: str | int) -> None:
        self._state = stable_hash(*key)

    def unit(self) -> float:
        """A number in [0, 1)."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        mixed = self._state
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        return ((mixed ^ (mixed >> 31)) >> 11) / (1 << 53)

    def chance(self, share: float) -> bool:
        """True in this share of the draws."""
        return self.unit() < share

    def one_of(self, items: Sequence[T]) -> T:
        """One of the items, each as likely as the others; an item that stands twice is twice as likely."""
        return items[int(self.unit() * len(items))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in random order."""
        mixed = list(items)
        for last in range(len(mixed) - 1, 0, -1):
            other = int(self.unit() * (last + 1))
            mixed[last], mixed[other] = mixed[other], mixed[last]
        return mixed
