"""The two blocks of the autoencoder: convolutional where pixels are many, attentive where they are few."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lineardit.config.models import StageConfig
from lineardit.kernels.convolution import convolved
from lineardit.nn.attention import MultiScaleLinearAttention
from lineardit.nn.feed_forward import GLUMBConv
from lineardit.nn.norm import ChannelRMSNorm, RMSNorm
from lineardit.nn.wide import BatchNorm2d, Conv2d

PIXEL_CHANNELS = 3
ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "relu": nn.ReLU}
GLU_RATIO = 4


class ResidualBlock(nn.Module):
    """x + norm(conv(activation(conv(x)))), 3x3 convolutions."""

    def __init__(self, stage: StageConfig) -> None:
        super().__init__()
        self.first = Conv2d(stage.width, stage.width, 3, padding=1)
        self.activation = ACTIVATIONS[stage.activation]()
        self.second = Conv2d(stage.width, stage.width, 3, padding=1, bias=False)
        self.norm: nn.Module = (
            BatchNorm2d(stage.width) if stage.norm == "batch" else ChannelRMSNorm(stage.width, bias=True)
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Refine every pixel from its 5x5 neighbourhood."""
        inner = self.second(self._activated(x))
        if isinstance(self.norm, ChannelRMSNorm):
            refined: Tensor = self.norm(inner, residual=x)
            return refined
        return x + self.norm(inner)

    def _activated(self, x: Tensor) -> Tensor:
        layer = self.first
        if isinstance(self.activation, nn.SiLU) and layer.weight.dtype != torch.float16:
            return convolved(x, layer.weight, layer.bias, silu=True)
        activated: Tensor = self.activation(layer(x))
        return activated


class EfficientViTBlock(nn.Module):
    """Linear attention over all pixels, then a GLUMBConv, each with its norm and residual."""

    def __init__(self, stage: StageConfig, head_dim: int) -> None:
        super().__init__()
        norm = ChannelRMSNorm(stage.width, bias=True)
        self.attention = MultiScaleLinearAttention(stage.width, head_dim, stage.kernels, norm)
        self.feed_forward = GLUMBConv(stage.width, GLU_RATIO * stage.width)
        self.feed_forward_norm = RMSNorm(stage.width, bias=True)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Mix all pixels, then each with its neighbours."""
        x = x + self.attention(x)
        return self.fed(x)

    def fed(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The second half: x and its feed-forward, normalised."""
        pixels = x.movedim(1, -1)
        mixed: Tensor = self.feed_forward_norm(self.feed_forward(pixels), residual=pixels)
        return mixed.movedim(-1, 1)


def stage_blocks(stage: StageConfig, head_dim: int) -> list[nn.Module]:
    """The `depth` blocks of one resolution."""
    if stage.block == "efficientvit":
        return [EfficientViTBlock(stage, head_dim) for _ in range(stage.depth)]
    return [ResidualBlock(stage) for _ in range(stage.depth)]
