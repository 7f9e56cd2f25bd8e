"""Root-mean-square normalisation over channels, for tokens and for pictures."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lineardit.kernels.passes import rms_normed


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight (+ bias) over the last axis, in float32 (arXiv:1910.07467)."""

    def __init__(self, width: int, *, bias: bool = False, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(
        self,
        x: Float[Tensor, "*b c"],
        *,
        residual: Float[Tensor, "*b c"] | None = None,
        relu: bool = False,
    ) -> Float[Tensor, "*b c"]:
        """Normalise the last axis, then add `residual` or apply ReLU; the result has the dtype of `x`."""
        return rms_normed(x, self.weight, self.bias, self.eps, residual=residual, relu=relu)


class ChannelRMSNorm(RMSNorm):
    """`RMSNorm` over the channels of a picture."""

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        *,
        residual: Float[Tensor, "b c h w"] | None = None,
        relu: bool = False,
    ) -> Float[Tensor, "b c h w"]:
        """Normalise the channel axis of every pixel."""
        kept = None if residual is None else residual.movedim(1, -1)
        return super().forward(x.movedim(1, -1), residual=kept, relu=relu).movedim(-1, 1)
