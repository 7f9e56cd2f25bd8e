"""Root-mean-square normalisation over channels, for tokens and for pictures."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight (+ bias) over the last axis, in float32 (arXiv:1910.07467)."""

    def __init__(self, width: int, *, bias: bool = False, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Float[Tensor, "*b c"]) -> Float[Tensor, "*b c"]:
        """Normalise the last axis; the result has the dtype of `x`."""
        wide = x.float() if x.dtype.itemsize < 4 else x
        scaled = functional.rms_norm(wide, x.shape[-1:], self.weight.to(wide.dtype), self.eps)
        return (scaled if self.bias is None else scaled + self.bias).to(x.dtype)


class ChannelRMSNorm(RMSNorm):
    """`RMSNorm` over the channels of a picture."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Normalise the channel axis of every pixel."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)
