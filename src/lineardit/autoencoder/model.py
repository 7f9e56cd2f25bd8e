"""The deep-compression autoencoder: pixels to latents at 1/8, 1/16 or 1/32 of the side, and back."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lineardit.autoencoder.article import ArticleDecoder, ArticleEncoder
from lineardit.autoencoder.blocks import PIXEL_CHANNELS, stage_blocks
from lineardit.autoencoder.resample import (
    Downsample,
    Upsample,
    average_channels,
    check_ratio,
    duplicate_channels,
)
from lineardit.config.article import ArticleAutoencoderConfig
from lineardit.config.models import AutoencoderConfig
from lineardit.errors import check_multiple
from lineardit.kernels import native
from lineardit.nn.norm import ChannelRMSNorm
from lineardit.nn.offload import loaded
from lineardit.nn.wide import Conv2d

AnyAutoencoderConfig = AutoencoderConfig | ArticleAutoencoderConfig
"""Shapes that an `Autoencoder` is built from."""


class Encoder(nn.Module):
    """Stages from the highest resolution to the lowest, then latents, with an averaging shortcut.

    A first stage of depth 0 has no resolution of its own: the stem already halves the side.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        first, second = config.encoder[:2]
        self.latent_channels = config.latent_channels
        self.stem: nn.Module = (
            Conv2d(PIXEL_CHANNELS, first.width, 3, padding=1)
            if first.depth
            else Downsample(PIXEL_CHANNELS, second.width, config.downsample, shortcut=False)
        )
        following = [*config.encoder[1:], None]
        self.stages = nn.ModuleList()
        for stage, smaller in zip(config.encoder, following, strict=True):
            blocks = stage_blocks(stage, config.attention_head_dim)
            if smaller is not None and stage.depth:
                blocks.append(Downsample(stage.width, smaller.width, config.downsample, shortcut=True))
            self.stages.append(nn.Sequential(*blocks))
        check_ratio(config.encoder[-1].width, config.latent_channels, "the encoder's last shortcut")
        self.head = Conv2d(config.encoder[-1].width, config.latent_channels, 3, padding=1)

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        """Latents before shift and scale."""
        x = self.stem(pixels_first(images))
        for stage in self.stages:
            x = stage(x)
        return self.head(x) + average_channels(x, self.latent_channels)


class Decoder(nn.Module):
    """The encoder's mirror: a duplicating shortcut to the lowest resolution, then stages up to the pixels."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        first, second = config.decoder[:2]
        self.bottom_width = config.decoder[-1].width
        check_ratio(self.bottom_width, config.latent_channels, "the decoder's first shortcut")
        self.stem = Conv2d(config.latent_channels, self.bottom_width, 3, padding=1)
        following = [*config.decoder[1:], None]
        self.stages = nn.ModuleList()
        for stage, smaller in reversed(list(zip(config.decoder, following, strict=True))):
            blocks = stage_blocks(stage, config.attention_head_dim)
            if smaller is not None and stage.depth:
                blocks.insert(0, Upsample(smaller.width, stage.width, config.upsample, shortcut=True))
            self.stages.append(nn.Sequential(*blocks))
        top = first if first.depth else second
        self.norm = ChannelRMSNorm(top.width, bias=True)
        self.head: nn.Module = (
            Conv2d(top.width, PIXEL_CHANNELS, 3, padding=1)
            if first.depth
            else Upsample(top.width, PIXEL_CHANNELS, config.upsample, shortcut=False)
        )

    def forward(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """Pixels, not clamped."""
        latents = pixels_first(latents)
        x = self.stem(latents) + duplicate_channels(latents, self.bottom_width)
        for stage in self.stages:
            x = stage(x)
        pixels: Tensor = self.head(self.norm(x, relu=True))
        return pixels


class Autoencoder(nn.Module):
    """Encoder and decoder, with the latents' measured shift and scale between them and the transformer.

    Deterministic: one latent per picture, no sampling, as all published DC-AEs are. The article's DC-AE has
    halves of its own.
    """

    encoder: nn.Module
    decoder: nn.Module
    shift: Tensor
    scale: Tensor

    def __init__(self, config: AnyAutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        if isinstance(config, ArticleAutoencoderConfig):
            self.encoder, self.decoder = ArticleEncoder(config), ArticleDecoder(config)
        else:
            self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.register_buffer("shift", _per_channel(config.latent_shift), persistent=False)
        self.register_buffer("scale", _per_channel(config.latent_scale), persistent=False)

    def encode(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        """(encoder(images) - shift) * scale: latents of about zero mean and unit deviation.

        `images` hold pixels in [-1, 1].

        Raises:
            ShapeError: a side is no multiple of the stride.
        """
        stride = self.config.stride
        for name, side in zip(("height", "width"), images.shape[-2:], strict=True):
            check_multiple(name, side, stride, f"{stride}, the pixels per latent")
        with loaded(self.encoder):
            latents: Tensor = (self.encoder(images) - self.shift) * self.scale
        return latents

    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """Pixels of the latents that `encode` gives; not clamped to [-1, 1]."""
        with loaded(self.decoder):
            pixels: Tensor = self.decoder(latents / self.scale + self.shift)
        return pixels

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        """The reconstruction, past shift and scale: what autoencoder training compares with `images`."""
        with loaded(self.encoder):
            latents = self.encoder(images)
        with loaded(self.decoder):
            pixels: Tensor = self.decoder(latents)
        return pixels


def pixels_first(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """`x` with the channels of a pixel side by side in memory, where that is faster.

    Convolutions keep that layout, and norms, products over channels and attention read it as it lies.
    """
    faster = native.takes(x) is not None or (x.dtype == torch.bfloat16 and not torch.is_grad_enabled())
    return x.contiguous(memory_format=torch.channels_last) if faster else x


def _per_channel(numbers: Sequence[float]) -> Tensor:
    # They come from the configuration, not from a file: a network built on the meta device has them already.
    device = "cpu" if torch.get_default_device().type == "meta" else None
    return torch.tensor(numbers, dtype=torch.float32, device=device).view(1, -1, 1, 1)
