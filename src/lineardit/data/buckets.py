"""Buckets: the few sizes that pictures of any shape are brought to, so that those of a batch fit together."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from lineardit.config.data import BucketConfig


class Bucket(NamedTuple):
    """One size of training pictures, in pixels."""

    height: int
    width: int


class Fit(NamedTuple):
    """How a picture comes into its bucket: resized until it just covers it, then cut at two edges."""

    bucket: Bucket
    enlargement: float
    """Side of the picture afterwards over before; below 1 it is reduced."""
    cropped: float
    """Share of its pixels that is cut off."""


def bucket_families(config: BucketConfig) -> tuple[tuple[Bucket, ...], ...]:
    """For each size, from the smallest, its buckets from upright to oblong.

    For every shorter side in whole steps the longer one is the largest with which the bucket has at most
    size^2 pixels, as long as it is at most `max_aspect` times the shorter one.
    """
    return tuple(_family(size // config.step, config) for size in sorted(config.sizes))


def fit(height: int, width: int, families: Sequence[Sequence[Bucket]]) -> Fit:
    """The bucket for a picture of `height` x `width` pixels.

    Of each size that bucket is taken which cuts off least; of these the largest that the picture fills
    without being enlarged, or else the smallest.
    """
    best = [_least_cropped(height, width, family) for family in families]
    return next((each for each in reversed(best) if each.enlargement <= 1), best[0])


def _family(steps: int, config: BucketConfig) -> tuple[Bucket, ...]:
    shapes = {(steps, steps)}
    for short in range(1, steps):
        long = steps**2 // short
        if long <= config.max_aspect * short:
            # Upright and oblong buckets mirror each other, so that turning a picture turns its bucket.
            shapes |= {(short, long), (long, short)}
    step = config.step
    return tuple(Bucket(down * step, across * step) for down, across in sorted(shapes, reverse=True))


def _least_cropped(height: int, width: int, family: Sequence[Bucket]) -> Fit:
    def fitted(bucket: Bucket) -> Fit:
        enlargement = max(bucket.height / height, bucket.width / width)
        shown = bucket.height * bucket.width / (height * width * enlargement**2)
        return Fit(bucket, enlargement, 1 - min(shown, 1.0))

    # Of two that cut off the same, the one with more pixels.
    return min(map(fitted, family), key=lambda each: (each.cropped, -math.prod(each.bucket)))
