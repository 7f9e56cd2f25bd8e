"""Shapes of the network and the autoencoder that the article on SANA prints, and their presets."""

from collections.abc import Mapping
from typing import Self

from pydantic import Field, model_validator

from lineardit.config.models import Config


class ArticleConfig(Config):
    """The article's SANA (its section 5)."""

    latent_channels: int = Field(32, gt=0)
    """Channels of the autoencoder's latents, in and out."""
    patch_size: int = Field(1, gt=0)
    """Latent pixels per token and side; not the autoencoder's stride, which the article's 32 is."""
    width: int = Field(1152, gt=0)
    """Channels of a token."""
    depth: int = Field(28, gt=0)
    """Number of blocks."""
    heads: int = Field(16, gt=0)
    """Heads of self- and cross-attention; `width` must be a multiple."""
    qk_dim: int = Field(64, gt=0)
    """Channels of a head's queries and keys, before and after the learned feature map."""
    feed_forward_ratio: float = Field(4.0, gt=0)
    """Hidden width of the Mix-FFN over `width`."""
    text_width: int = Field(4096, gt=0)
    """Channels of the text encoder's last hidden state: T5-XXL."""
    cross_attention_every: int = Field(4, gt=0)
    """Cross-attention follows every block whose number this divides."""
    position_side: int = Field(32, gt=0)
    """Tokens per side that the learned positions are kept for: 32 for 1024 px."""
    num_steps: int = Field(1000, gt=0)
    """Timesteps of the diffusion: 0 <= t < num_steps."""

    @model_validator(mode="after")
    def heads_fill_the_width(self) -> Self:
        if self.width % self.heads:
            below = self.width - self.width % self.heads
            choices = f"width={below} or width={below + self.heads}" if below else f"width={self.heads}"
            raise ValueError(f"width={self.width} does not split into heads={self.heads}. Use {choices}.")
        return self

    @model_validator(mode="after")
    def sinusoids_come_in_pairs(self) -> Self:
        if self.width % 2:
            raise ValueError(f"width={self.width} does not split into sines and cosines. Use an even number.")
        return self

    @property
    def head_dim(self) -> int:
        """Channels of a head's values."""
        return self.width // self.heads

    @property
    def hidden_width(self) -> int:
        """Hidden channels of the Mix-FFN."""
        return int(self.feed_forward_ratio * self.width)


class ArticleAutoencoderConfig(Config):
    """The article's DC-AE (its section 3.3): strided convolutions and one residual block between them."""

    latent_channels: int = Field(32, gt=0)
    base_width: int = Field(128, gt=0)
    """Channels at half of the side; each further halving doubles them."""
    halvings: int = Field(5, ge=2)
    """Times that the side is halved: 5 for 32 pixels per latent."""

    @property
    def stride(self) -> int:
        """Pixels per latent and side."""
        return int(2**self.halvings)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels after each halving but the last, which gives the latents."""
        return tuple(self.base_width * 2**number for number in range(self.halvings - 1))


class ArticleLossConfig(Config):
    """Weights of the four losses (its section 3.4)."""

    l1: float = Field(1.0, ge=0)
    """Of the mean absolute error, pixels in [-1, 1]."""
    perceptual: float = Field(0.5, ge=0)
    """Of the distance between features."""
    adversarial: float = Field(0.1, ge=0)
    """Of what the discriminator finds wrong."""
    latent: float = Field(1e-4, ge=0)
    """Of the distance of the latents' moments from zero mean and unit deviation."""


ARTICLES: Mapping[str, ArticleConfig] = {"article-sana": ArticleConfig()}
ARTICLE_AUTOENCODERS: Mapping[str, ArticleAutoencoderConfig] = {"article-dc-ae": ArticleAutoencoderConfig()}
