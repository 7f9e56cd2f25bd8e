"""Every rank the same steps, nothing lost or doubled, and a position that can be gone back to."""

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lineardit.data.batches import BucketBatches
from lineardit.errors import CheckpointError, ConfigError

buckets = st.lists(st.integers(0, 23), min_size=1, max_size=5).filter(any)
worlds = st.tuples(st.integers(1, 4), st.integers(1, 4))
"""Ranks, and pictures of each in a step."""


@given(buckets, worlds, st.integers(0, 2**40))
@settings(max_examples=60, deadline=None)
def test_all_ranks_do_the_same_steps_on_the_same_buckets_and_share_each_batch(
    counts: list[int], world: tuple[int, int], seed: int
) -> None:
    size, each = world
    ranks = [BucketBatches(counts, size * each, seed, rank=rank, world_size=size) for rank in range(size)]
    alone = BucketBatches(counts, size * each, seed)
    starts = [sum(counts[:bucket]) for bucket in range(len(counts))]
    for step, parts in enumerate(itertools.islice(zip(*ranks, strict=True), 40)):
        whole = alone.batch(step)
        assert {part.bucket for part in parts} == {whole.bucket}
        assert all(len(part.samples) == each for part in parts)
        assert tuple(sample for part in parts for sample in part.samples) == whole.samples
        start = starts[whole.bucket]
        assert all(start <= sample < start + counts[whole.bucket] for sample in whole.samples)


@given(buckets, st.integers(1, 7), st.integers(0, 2**40), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_after_any_epoch_every_picture_was_seen_as_often_as_its_bucket_s_stream_says(
    counts: list[int], batch_size: int, seed: int, epochs: int
) -> None:
    batches = BucketBatches(counts, batch_size, seed)
    seen = Counter(
        sample for step in range(batches.steps_before(epochs)) for sample in batches.batch(step).samples
    )
    start = 0
    for count in counts:
        total = epochs * count // batch_size * batch_size
        times = [seen[sample] for sample in range(start, start + count)]
        assert sum(times) == total
        # The stream shows all before it shows one again.
        assert not times or max(times) - min(times) <= 1
        assert epochs * count - total < batch_size
        start += count


@given(buckets, st.integers(1, 7), st.integers(0, 500))
@settings(max_examples=60, deadline=None)
def test_a_step_belongs_to_the_epoch_whose_steps_it_is_among(
    counts: list[int], batch_size: int, step: int
) -> None:
    batches = BucketBatches(counts, batch_size, 0)
    epoch = batches.epoch(step)
    assert batches.steps_before(epoch) <= step < batches.steps_before(epoch + 1)


@given(buckets, st.integers(1, 6), st.integers(0, 60), st.integers(0, 2**40))
@settings(max_examples=40, deadline=None)
def test_going_on_at_a_saved_position_gives_what_would_have_come_on_any_number_of_ranks(
    counts: list[int], each: int, position: int, seed: int
) -> None:
    one = BucketBatches(counts, 2 * each, seed)
    list(itertools.islice(one, position))
    state = one.state_dict()
    assert state["step"] == position
    two = [BucketBatches(counts, 2 * each, seed, rank=rank, world_size=2) for rank in range(2)]
    for rank in two:
        rank.load_state_dict(state)
    for whole, left, right in itertools.islice(zip(one, *two, strict=True), 5):
        assert whole.samples == left.samples + right.samples and whole.bucket == left.bucket


def test_epochs_differ_and_seeds_differ() -> None:
    batches = BucketBatches([40, 24], 8, 1)
    first, second = ([batches.batch(step) for step in range(8 * epoch, 8 * epoch + 8)] for epoch in range(2))
    assert first != second
    assert {sample for batch in first for sample in batch.samples} == set(range(64))
    assert [BucketBatches([40, 24], 8, 2).batch(step) for step in range(8)] != first
    assert len({batch.bucket for batch in first}) == 2


def test_batches_can_be_asked_for_in_any_order() -> None:
    batches = BucketBatches([7, 3, 12], 4, 5)
    forwards = [batches.batch(step) for step in range(30)]
    assert [BucketBatches([7, 3, 12], 4, 5).batch(step) for step in reversed(range(30))] == forwards[::-1]


def test_a_bucket_of_fewer_pictures_than_a_batch_is_seen_too() -> None:
    batches = BucketBatches([2, 9], 5, 0)
    seen = Counter(sample for step in range(11) for sample in batches.batch(step).samples)
    assert set(seen) == set(range(11))


@pytest.mark.parametrize(
    ("counts", "batch_size", "rank", "world_size", "message"),
    [
        ([0, 0], 4, 0, 1, "there is no picture"),
        ([], 4, 0, 1, "there is no picture"),
        ([8], 5, 0, 2, "cannot be shared equally among 2 ranks .* Use batch_size=4"),
        ([8], 1, 0, 2, "Use batch_size=2"),
        ([8], 4, 2, 2, "this is rank 2"),
        ([8], 0, 0, 1, "batch_size=0"),
    ],
)
def test_what_cannot_be_shared_is_refused(
    counts: list[int], batch_size: int, rank: int, world_size: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        BucketBatches(counts, batch_size, 0, rank=rank, world_size=world_size)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (BucketBatches([9], 2, 0), r"counts=\[9\], here it is \[8\]"),
        (BucketBatches([8], 4, 0), "batch_size=4, here it is 2"),
        (BucketBatches([8], 2, 1), "seed=1, here it is 0"),
    ],
)
def test_a_position_in_other_data_is_refused(other: BucketBatches, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        BucketBatches([8], 2, 0).load_state_dict(other.state_dict())
    with pytest.raises(CheckpointError, match="format=None"):
        BucketBatches([8], 2, 0).load_state_dict({})
    with pytest.raises(CheckpointError, match="damaged: step=-1"):
        BucketBatches([8], 2, 0).load_state_dict({**BucketBatches([8], 2, 0).state_dict(), "step": -1})
