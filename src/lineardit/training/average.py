"""An exponential moving average of the weights, which is what samples and what ships."""

import copy

import torch
from torch import Tensor, nn


class WeightAverage:
    """Weights averaged so that those of `half_life` steps ago count half as much as today's.

    Early on the half-life is shortened to a tenth of the steps done, so that the random start is forgotten.
    """

    def __init__(self, model: nn.Module, half_life: float) -> None:
        self.half_life = half_life
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the weights after step `step` (from 0); buffers are copied."""
        half_life = min(self.half_life, (step + 1) / 10)
        share = 1 - 0.5 ** (1 / half_life) if half_life > 0 else 1.0
        own: list[Tensor] = [p for p in self.model.parameters() if p.is_floating_point()]
        new = [p.detach() for p in model.parameters() if p.is_floating_point()]
        torch._foreach_lerp_(own, new, share)
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights."""
        return self.model.state_dict()
