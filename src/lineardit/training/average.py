"""An average of the weights over the steps done, which is what samples and what ships."""

import copy
import math

import torch
from torch import Tensor, nn

from lineardit.config.runs import LoopConfig
from lineardit.errors import InputError


class WeightAverage:
    """Weights averaged so that those of `half_life` steps ago count half as much as today's.

    Early on the half-life is shortened to a tenth of the steps done, so that the random start is forgotten.
    With `width` the average grows with the run instead: the weights of step s count as s^gamma, gamma such
    that the deviation of the steps averaged is `width` times the steps done (power-function EMA,
    arXiv:2312.02696, section 3.1).
    """

    def __init__(self, model: nn.Module, half_life: float, width: float | None = None) -> None:
        self.half_life = half_life
        self.exponent = None if width is None else exponent_of(width)
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @staticmethod
    def of(model: nn.Module, loop: LoopConfig) -> "WeightAverage":
        """The average that a recipe asks for."""
        return WeightAverage(model, float(loop.ema_half_life), loop.ema_width)

    def share(self, step: int) -> float:
        """How far the average moves towards the weights after step `step` (from 0), from 0 to 1."""
        if self.exponent is not None:
            return float(1 - (1 - 1 / (step + 1)) ** (self.exponent + 1))
        half_life = min(self.half_life, (step + 1) / 10)
        return 1 - 0.5 ** (1 / half_life) if half_life > 0 else 1.0

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the weights after step `step` (from 0); buffers are copied."""
        own: list[Tensor] = [p for p in self.model.parameters() if p.is_floating_point()]
        new = [p.detach() for p in model.parameters() if p.is_floating_point()]
        torch._foreach_lerp_(own, new, self.share(step))
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights."""
        return self.model.state_dict()


def exponent_of(width: float) -> float:
    """The gamma with (gamma + 1)^(1/2) (gamma + 2)^-1 (gamma + 3)^-(1/2) = width, found by halving.

    Equation 3 of arXiv:2312.02696; the left side falls from 0.289 at gamma = 0 towards 0.

    Raises:
        InputError: no gamma of at least 0 has this width.
    """

    def relative(gamma: float) -> float:
        return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)

    if not 0 < width <= relative(0.0):
        raise InputError(f"width={width} lies outside 0 .. {relative(0.0):.3f}. 0.05 and 0.1 are usual.")
    low, high = 0.0, 2.0 / width
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if relative(middle) > width else (low, middle)
    return (low + high) / 2
