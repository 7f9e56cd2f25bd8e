"""The article's DC-AE: five strided convolutions down, five up, a residual block between each pair.

What was repaired, and why, is in docs/article.md.
"""

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from lineardit.autoencoder.blocks import PIXEL_CHANNELS
from lineardit.config.article import ArticleAutoencoderConfig
from lineardit.nn.norm import ChannelRMSNorm
from lineardit.nn.wide import Conv2d


class PlainBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), 3x3 convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first_norm, self.second_norm = ChannelRMSNorm(width, bias=True), ChannelRMSNorm(width, bias=True)
        self.first = Conv2d(width, width, 3, padding=1)
        self.second = Conv2d(width, width, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Refine every pixel from its 5x5 neighbourhood."""
        hidden = self.first(functional.silu(self.first_norm(x)))
        refined: Tensor = self.second(functional.silu(self.second_norm(hidden)))
        return x + refined


class PlainUpsample(nn.Sequential):
    """Every pixel four times, then a 3x3 convolution."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__(nn.Upsample(scale_factor=2, mode="nearest"), Conv2d(width, out, 3, padding=1))


class ArticleEncoder(nn.Sequential):
    """Pixels in [-1, 1] to latents: strided convolutions, a residual block after each but the last."""

    def __init__(self, config: ArticleAutoencoderConfig) -> None:
        layers: list[nn.Module] = []
        for width, out in pairwise((PIXEL_CHANNELS, *config.widths)):
            layers += [Conv2d(width, out, 3, stride=2, padding=1), PlainBlock(out)]
        super().__init__(*layers, Conv2d(config.widths[-1], config.latent_channels, 3, 2, 1))


class ArticleDecoder(nn.Sequential):
    """The encoder's mirror: latents to pixels, not clamped."""

    def __init__(self, config: ArticleAutoencoderConfig) -> None:
        layers: list[nn.Module] = []
        for width, out in pairwise((config.latent_channels, *reversed(config.widths))):
            layers += [PlainUpsample(width, out), PlainBlock(out)]
        super().__init__(*layers, PlainUpsample(config.widths[0], PIXEL_CHANNELS))
