"""Feed-forward layers: of each token by itself, and of pixels that look at their neighbours."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from lineardit.kernels.passes import depthwise_gated, linear
from lineardit.nn.int8 import Int8Linear
from lineardit.nn.packed import PackedLinear
from lineardit.nn.wide import Conv2d, Linear


class GLUMBConv(nn.Module):
    """Gated inverted bottleneck: 1x1 to 2H, SiLU, depthwise 3x3, a * SiLU(g), 1x1 (SANA, section 2.2).

    The depthwise convolution is what tells tokens where they are relative to each other; SANA needs no
    position embedding because of it. Works on (b h w c), where the 1x1 convolutions are plain linears.
    """

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.expand = Linear(width, 2 * hidden_width)
        self.depthwise = Conv2d(2 * hidden_width, 2 * hidden_width, 3, padding=1, groups=2 * hidden_width)
        self.contract = Linear(hidden_width, width, bias=False)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        """Mix every pixel with its eight neighbours and its channels."""
        if torch.is_grad_enabled() and not isinstance(self.expand, Int8Linear | PackedLinear):
            # The convolution applies SiLU to what it reads, so that nothing is kept of it for the way back.
            gated = _gated(self.depthwise, self.expand(x), activate=True)
        else:
            gated = _gated(self.depthwise, _activated(self.expand, x))
        mixed: Tensor = self.contract(gated)
        return mixed


def _activated(layer: nn.Module, x: Float[Tensor, "*b c"]) -> Float[Tensor, "*b d"]:
    """SiLU(layer(x)), in one pass where the layer is a plain one."""
    if isinstance(layer, Int8Linear | PackedLinear):
        activated: Tensor = layer(x, silu=True)
        return activated
    if type(layer) is Linear and layer.weight.dtype != torch.float16:
        return linear(x, layer.weight, layer.bias, silu=True)
    return functional.silu(layer(x))


def _gated(
    layer: Conv2d, x: Float[Tensor, "b h w c2"], *, activate: bool = False
) -> Float[Tensor, "b h w c"]:
    """content SiLU(gate), the halves of what the layer makes of x, or with `activate` of SiLU(x)."""
    assert layer.bias is not None
    if layer.weight.dtype != torch.float16:
        return depthwise_gated(x, layer.weight, layer.bias, activate=activate)
    x = functional.silu(x) if activate else x
    content, gate = layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).chunk(2, dim=-1)
    return content * functional.silu(gate)


class MLP(nn.Module):
    """Linear, GELU in its tanh form, linear (DiT, arXiv:2212.09748)."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.expand = Linear(width, hidden_width)
        self.contract = Linear(hidden_width, width)

    def forward(self, x: Float[Tensor, "*b c"]) -> Float[Tensor, "*b c"]:
        """Mix the channels of each token."""
        mixed: Tensor = self.contract(functional.gelu(self.expand(x), approximate="tanh"))
        return mixed
