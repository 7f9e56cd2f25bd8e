"""DPM-Solver++(2M), the second-order multistep solver of arXiv:2211.01095, for any path.

With lambda = log(alpha / sigma), h the step in lambda, h_1 the step before, x0 the image seen now and
x0_1 the one seen a step before, the step to (alpha', sigma') is

    D  = x0 + h / (2 h_1) (x0 - x0_1)
    x' = (sigma' / sigma) x + (alpha' - alpha sigma' / sigma) D

The second factor is alpha' (1 - exp(-h)), written without exp so that both ends of a path are exact:
where alpha = 0 and lambda = -inf at the start, and where sigma' = 0 and lambda' = inf at the end.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from lineardit.diffusion.paths import Samples
from lineardit.diffusion.states import State


class Level(NamedTuple):
    """How much image and how much noise a state holds."""

    alpha: float
    sigma: float

    @property
    def log_ratio(self) -> float:
        """lambda = log(alpha / sigma): -inf for noise alone, inf for the image alone."""
        if self.alpha == 0:
            return -math.inf
        return math.inf if self.sigma == 0 else math.log(self.alpha / self.sigma)


def second_order_multistep(
    denoise: Callable[[Tensor, float], Tensor], x: Samples, times: Sequence[float], levels: Sequence[Level]
) -> Iterator[State]:
    """States from times[0] to times[-1]. `denoise(x, time)` sees the image, levels[k] belongs to times[k].

    The first step, and the last one where it ends at sigma = 0, are of first order.
    """
    total = len(times) - 1
    seen: Tensor | None = None
    for k in range(total):
        now, after = levels[k], levels[k + 1]
        denoised = denoise(x, times[k])
        estimate = denoised
        if seen is not None:
            estimate = denoised + _extrapolation(levels[k - 1], now, after) * (denoised - seen)
        shrink = after.sigma / now.sigma
        x = shrink * x + (after.alpha - now.alpha * shrink) * estimate
        seen = denoised
        yield State(k + 1, total, times[k], times[k + 1], x, denoised)


def _extrapolation(before: Level, now: Level, after: Level) -> float:
    """h / (2 h_1), or 0 where either is infinite: to the image itself, or after a step from pure noise."""
    if after.sigma == 0:
        return 0.0
    return (after.log_ratio - now.log_ratio) / (2 * (now.log_ratio - before.log_ratio))
