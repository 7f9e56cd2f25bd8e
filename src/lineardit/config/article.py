"""Shapes of the network and the autoencoder that the article on SANA prints, and their presets."""

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, model_validator

from lineardit.config.models import Config, LatentsConfig


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
    position_base: int = Field(32, gt=0)
    """Tokens per side that the learned positions are kept for: 32 for 1024 px."""
    num_steps: int = Field(1000, gt=0)
    """Timesteps of the diffusion: 0 <= t < num_steps."""
    beta_schedule: Literal["linear", "scaled_linear", "cosine"] = "scaled_linear"
    """Variances of the steps: equally spaced, with equally spaced roots, or after a cosine."""
    beta_start: float = Field(0.0001, gt=0, lt=1)
    """The first variance, as diffusers has it where none is given; cosine has its own ends."""
    beta_end: float = Field(0.02, gt=0, lt=1)
    """The last variance."""
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
    """What the network predicts: the noise, the latents without noise, or the velocity of the path."""

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
    def prompt_blocks(self) -> int:
        """Cross-attentions in all blocks together."""
        return self.depth // self.cross_attention_every

    @property
    def hidden_width(self) -> int:
        """Hidden channels of the Mix-FFN."""
        return int(self.feed_forward_ratio * self.width)


class ArticleAutoencoderConfig(LatentsConfig):
    """The article's DC-AE (its section 3.3): strided convolutions and one residual block between them."""

    latent_channels: int = Field(32, gt=0)
    """Channels of the latents."""
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


ARTICLES: Mapping[str, ArticleConfig] = {"article-sana": ArticleConfig()}
ARTICLE_AUTOENCODERS: Mapping[str, ArticleAutoencoderConfig] = {"article-dc-ae": ArticleAutoencoderConfig()}
