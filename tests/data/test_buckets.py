"""The sizes there are, and which of them a picture comes to."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lineardit.config.data import BucketConfig, CheckConfig
from lineardit.data.buckets import Bucket, bucket_families, fit
from lineardit.errors import ConfigError


def test_the_buckets_of_one_size_are_these() -> None:
    config = BucketConfig(sizes=(128,), step=16, max_aspect=2.0)
    (family,) = bucket_families(config)
    sides = [(176, 80), (160, 96), (144, 112), (128, 128), (112, 144), (96, 160), (80, 176)]
    # 176 / 80 is above 2, 160 / 96 below.
    assert family == tuple(Bucket(*each) for each in sides[1:-1])


@given(
    st.lists(st.integers(1, 24), min_size=1, max_size=3, unique=True),
    st.floats(1, 8),
    st.sampled_from([1, 16, 32]),
)
@settings(max_examples=60, deadline=None)
def test_buckets_have_whole_steps_at_most_the_area_and_mirror_each_other(
    sizes: list[int], max_aspect: float, step: int
) -> None:
    config = BucketConfig(sizes=tuple(size * step for size in sizes), step=step, max_aspect=max_aspect)
    families = bucket_families(config)
    assert len(families) == len(sizes)
    for size, family in zip(sorted(config.sizes), families, strict=True):
        assert (size, size) in family
        assert {Bucket(width, height) for height, width in family} == set(family)
        for height, width in family:
            assert height % step == 0 and width % step == 0 and height * width <= size**2
            assert height <= max_aspect * width and width <= max_aspect * height


@given(st.integers(1, 3000), st.integers(1, 3000))
@settings(max_examples=100, deadline=None)
def test_no_bucket_of_the_chosen_size_cuts_off_less(height: int, width: int) -> None:
    families = bucket_families(BucketConfig(sizes=(256, 512), step=32, max_aspect=2.0))
    found = fit(height, width, families)
    family = next(family for family in families if found.bucket in family)
    for bucket in family:
        scale = max(bucket.height / height, bucket.width / width)
        shown = bucket.height * bucket.width / (height * width * scale**2)
        assert 1 - shown >= found.cropped - 1e-9
    assert found.bucket.height <= height * found.enlargement + 1e-6
    assert found.bucket.width <= width * found.enlargement + 1e-6
    mirrored = fit(width, height, families)
    assert mirrored.cropped == pytest.approx(found.cropped)


def test_a_picture_comes_to_the_largest_size_that_it_fills() -> None:
    families = bucket_families(BucketConfig(sizes=(128, 256), step=32, max_aspect=2.0))
    assert fit(300, 300, families).bucket == (256, 256)
    assert fit(255, 255, families).bucket == (128, 128)
    small = fit(64, 64, families)
    assert small.bucket == (128, 128) and small.enlargement == 2
    assert fit(1000, 200, families).bucket.height > fit(1000, 200, families).bucket.width


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": (100,), "step": 32}, "size=100 is no multiple of step=32. Use 96 or 128"),
        ({"sizes": (16,), "step": 32}, "Use 32"),
        ({"sizes": (64, 64), "step": 32}, "each is given once"),
        ({"sizes": ()}, "sizes"),
        ({"max_aspect": 0.5}, "max_aspect"),
    ],
)
def test_sizes_that_cannot_be_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BucketConfig(**options)


def test_a_caption_for_all_says_something() -> None:
    with pytest.raises(ConfigError, match="caption is empty"):
        CheckConfig(caption=" ")
