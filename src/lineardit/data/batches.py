"""Batches of one bucket each, as a pure function of (seed, step): the same on every rank, nothing lost.

The pictures of a bucket form an endless stream: one random order of them after the other. Batch j of a bucket
of n pictures is part j B .. (j + 1) B - 1 of that stream, so nothing is dropped or repeated because n is no
multiple of the batch size B, and a bucket of fewer pictures than a batch is no special case. Epoch e runs the
batches floor(e n / B) .. floor((e + 1) n / B) - 1 of every bucket, in an order of its own.

A batch is one of all ranks together. Each takes an equal part of it, so every rank does the same number of
steps, at every step on the same bucket, whatever the sizes of the buckets and the number of ranks.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lineardit.errors import CheckpointError, ConfigError

STATE_FORMAT = 1


class Batch(NamedTuple):
    """What one step looks at."""

    bucket: int
    """Number of the bucket."""
    samples: tuple[int, ...]
    """Numbers of its pictures, from 0; those of bucket b come after those of the buckets before it."""


class BucketBatches:
    """The batches of a whole training, and how far it has come.

    Raises:
        ConfigError: there are no pictures, or the batch cannot be shared equally among the ranks.
    """

    def __init__(
        self, counts: Sequence[int], batch_size: int, seed: int, *, rank: int = 0, world_size: int = 1
    ) -> None:
        """`counts` are the pictures of each bucket, `batch_size` those of one step on all ranks together."""
        if any(count < 0 for count in counts) or not sum(counts):
            raise ConfigError(f"counts={tuple(counts)}: there is no picture to learn from.")
        if batch_size < 1 or world_size < 1 or batch_size % world_size or not 0 <= rank < world_size:
            fitting = max(batch_size - batch_size % max(world_size, 1), world_size)
            raise ConfigError(
                f"batch_size={batch_size} cannot be shared equally among {world_size} ranks "
                f"(this is rank {rank}). Use batch_size={fitting}."
            )
        self.counts, self.batch_size, self.seed = tuple(counts), batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.step = 0
        """The next step that iterating gives."""
        self._starts = np.concatenate([[0], np.cumsum(self.counts)]).tolist()
        self._order: tuple[int, list[tuple[int, int]]] | None = None
        self._turns: dict[int, dict[int, np.ndarray]] = {}

    def __iter__(self) -> Iterator[Batch]:
        """This rank's parts of the batches, from `step` on and without an end."""
        while True:
            self.step += 1
            yield self.share(self.step - 1)

    def share(self, step: int) -> Batch:
        """This rank's part of the batch of a step."""
        bucket, samples = self.batch(step)
        each = self.batch_size // self.world_size
        return Batch(bucket, samples[self.rank * each :][:each])

    def batch(self, step: int) -> Batch:
        """The batch of a step, of all ranks together."""
        epoch = self.epoch(step)
        bucket, number = self._epoch_order(epoch)[step - self.steps_before(epoch)]
        count, start = self.counts[bucket], self._starts[bucket]
        places = range(number * self.batch_size, (number + 1) * self.batch_size)
        orders = self._orders(bucket, {place // count for place in places})
        return Batch(bucket, tuple(start + int(orders[place // count][place % count]) for place in places))

    def steps_before(self, epoch: int) -> int:
        """Steps of all epochs before this one."""
        return sum(epoch * count // self.batch_size for count in self.counts)

    def epoch(self, step: int) -> int:
        """The epoch that a step belongs to; one of fewer pictures than a batch may have no step at all."""
        low, high = 0, 1
        while self.steps_before(high) <= step:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.steps_before(middle) <= step else (low, middle)
        return low

    def state_dict(self) -> dict[str, Any]:
        """The position that iterating has come to; as `position`."""
        return self.position(self.step)

    def position(self, step: int) -> dict[str, Any]:
        """Where in the data a step begins, and what it is a position in; JSON."""
        return {
            "format": STATE_FORMAT,
            "step": step,
            "epoch": self.epoch(step),
            "seed": self.seed,
            "batch_size": self.batch_size,
            "counts": list(self.counts),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on at a saved position; the number of ranks may be another.

        Raises:
            CheckpointError: it is a position in other data, or with another seed or batch size.
        """
        mine = self.state_dict()
        for name in ("format", "seed", "batch_size", "counts"):
            if state.get(name) != mine[name]:
                given, own = (_shown(of.get(name)) for of in (state, mine))
                raise CheckpointError(
                    f"the saved position in the data has {name}={given}, here it is {own}. "
                    "Go on with the data and the recipe of that run, or start a new one."
                )
        step = state.get("step")
        if not isinstance(step, int) or step < 0:
            raise CheckpointError(f"the saved position in the data is damaged: step={step!r}.")
        self.step = step

    def _epoch_order(self, epoch: int) -> list[tuple[int, int]]:
        """Bucket and number of each batch of an epoch, in the order in which they are seen."""
        if self._order is None or self._order[0] != epoch:
            batches = [
                (bucket, number)
                for bucket, count in enumerate(self.counts)
                for number in range(epoch * count // self.batch_size, (epoch + 1) * count // self.batch_size)
            ]
            order = _random(self.seed, "epoch", epoch).permutation(len(batches))
            self._order = epoch, [batches[place] for place in order]
        return self._order[1]

    def _orders(self, bucket: int, turns: set[int]) -> dict[int, np.ndarray]:
        """The random orders of a bucket's pictures in some turns of its stream; the last ones are kept."""
        kept, count = self._turns.get(bucket, {}), self.counts[bucket]
        orders = {
            turn: kept[turn]
            if turn in kept
            else _random(self.seed, "bucket", bucket, turn).permutation(count)
            for turn in turns
        }
        self._turns[bucket] = orders
        return orders


def _random(*parts: int | str) -> np.random.Generator:
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
