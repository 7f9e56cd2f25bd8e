"""The article's DC-AE: five strided convolutions down, five up, a residual block between each pair.

What was repaired, and why, is in docs/article.md.
"""

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from lineardit.autoencoder.model import PIXEL_CHANNELS
from lineardit.config.article import ArticleAutoencoderConfig
from lineardit.errors import check_multiple
from lineardit.nn.norm import ChannelRMSNorm


class PlainBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), 3x3 convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first_norm, self.second_norm = ChannelRMSNorm(width, bias=True), ChannelRMSNorm(width, bias=True)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Refine every pixel from its 5x5 neighbourhood."""
        hidden = self.first(functional.silu(self.first_norm(x)))
        refined: Tensor = self.second(functional.silu(self.second_norm(hidden)))
        return x + refined


class _Up(nn.Sequential):
    def __init__(self, width: int, out: int) -> None:
        super().__init__(nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(width, out, 3, padding=1))


class ArticleAutoencoder(nn.Module):
    """Pixels in [-1, 1] to latents at 1/32 of the side, and back; one latent per picture, no sampling."""

    def __init__(self, config: ArticleAutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        down: list[nn.Module] = []
        for width, out in pairwise((PIXEL_CHANNELS, *widths)):
            down += [nn.Conv2d(width, out, 3, stride=2, padding=1), PlainBlock(out)]
        self.encoder = nn.Sequential(*down, nn.Conv2d(widths[-1], config.latent_channels, 3, 2, 1))
        up: list[nn.Module] = []
        for width, out in pairwise((config.latent_channels, *reversed(widths))):
            up += [_Up(width, out), PlainBlock(out)]
        self.decoder = nn.Sequential(*up, _Up(widths[0], PIXEL_CHANNELS))

    def encode(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        """The latents. Raises: ShapeError where a side is no multiple of the stride."""
        stride = self.config.stride
        for name, side in zip(("height", "width"), images.shape[-2:], strict=True):
            check_multiple(name, side, stride, f"{stride}, the pixels per latent")
        latents: Tensor = self.encoder(images)
        return latents

    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """Pixels, not clamped."""
        pixels: Tensor = self.decoder(latents)
        return pixels

    def forward(
        self, images: Float[Tensor, "b 3 H W"]
    ) -> tuple[Float[Tensor, "b 3 H W"], Float[Tensor, "b c h w"]]:
        """The reconstruction and the latents."""
        latents = self.encode(images)
        return self.decode(latents), latents
