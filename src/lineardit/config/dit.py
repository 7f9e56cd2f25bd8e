"""Shapes of LinearDiT and of the softmax DiT that it is compared with, and their presets."""

import math
from collections.abc import Mapping
from typing import Any, Self, TypedDict

from pydantic import Field, model_validator

from lineardit.config.models import Config, FeatureMap, Position
from lineardit.config.presets import differing, named


class DiTOptions(TypedDict, total=False):
    """The options of `LinearDiT.build` beside `input_dim`, by the names that the documents give them."""

    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_ratio: float
    num_classes: int | None
    num_steps: int
    patch_size: int


class DiTConfig(Config):
    """What both transformers share (DiT, arXiv:2212.09748, section 3.2)."""

    input_dim: int = Field(gt=0)
    """Numbers of a token: patch_size^2 times the channels of an image."""
    hidden_size: int = Field(512, gt=0)
    """Channels of a token inside the network."""
    num_layers: int = Field(12, gt=0)
    """Number of blocks."""
    num_heads: int = Field(8, gt=0)
    """Attention heads; `hidden_size` must be a multiple."""
    mlp_ratio: float = Field(4.0, gt=0)
    """Hidden width of the MLP over `hidden_size`."""
    num_classes: int | None = Field(None, gt=0)
    """Classes that it can be asked for; the null class comes on top. None is an unconditional model."""
    num_steps: int = Field(1000, gt=0)
    """Timesteps of the diffusion: 0 <= t < num_steps."""
    patch_size: int = Field(2, gt=0)
    """Pixels per token and side where images go in; token lists are patches already."""
    learned_sigma: bool = False
    """Predicts as many numbers again, for the variance of the step (arXiv:2102.09672), as DiT does."""
    position: Position = "sincos"
    """Position signal: sines and cosines of rows and columns, or of the place in a token list; or none."""

    @model_validator(mode="before")
    @classmethod
    def input_dim_is_given(cls, fields: dict[str, Any]) -> dict[str, Any]:
        if fields.get("input_dim") is None:
            raise ValueError(
                "input_dim is missing. Give the numbers of a token, patch_size^2 times the channels of an "
                "image: input_dim=16 for 4 channels in patches of 2."
            )
        return fields

    @model_validator(mode="after")
    def heads_fill_the_width(self) -> Self:
        if self.hidden_size % self.num_heads:
            divisors = [n for n in range(1, self.hidden_size + 1) if self.hidden_size % n == 0]
            below = max(n for n in divisors if n < self.num_heads)
            above = [n for n in divisors if n > self.num_heads][:1]
            raise ValueError(
                f"hidden_size={self.hidden_size} does not split into num_heads={self.num_heads}. "
                f"Use {' or '.join(f'num_heads={n}' for n in (below, *above))}."
            )
        return self

    @model_validator(mode="after")
    def positions_fill_the_width(self) -> Self:
        if self.position == "sincos" and self.hidden_size % 4:
            raise ValueError(
                f"hidden_size={self.hidden_size} does not split into sines and cosines of rows and columns. "
                "Use a multiple of 4, or position='none'."
            )
        return self

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.hidden_size // self.num_heads

    @property
    def mlp_hidden(self) -> int:
        """Hidden channels of the MLP, rounded."""
        return math.floor(self.hidden_size * self.mlp_ratio + 0.5)

    @property
    def output_dim(self) -> int:
        """Numbers of a token that comes out."""
        return self.input_dim * (2 if self.learned_sigma else 1)


class LinearDiTConfig(DiTConfig):
    """A DiT with linear attention."""

    feature_map: FeatureMap = "elu1"
    """phi in phi(q) (phi(k)^T v) / (phi(q) . sum phi(k)): ELU + 1 as the documents have it, or ReLU."""


class SoftmaxDiTConfig(DiTConfig):
    """A DiT with softmax attention, as published."""


# Latents of 4 channels, 1000 classes of ImageNet, noise and variance predicted.
_DIT = SoftmaxDiTConfig(input_dim=16, num_classes=1000, learned_sigma=True)
_SIZES: Mapping[str, Mapping[str, int]] = {
    "s": {"num_layers": 12, "hidden_size": 384, "num_heads": 6},
    "b": {"num_layers": 12, "hidden_size": 768, "num_heads": 12},
    "l": {"num_layers": 24, "hidden_size": 1024, "num_heads": 16},
    "xl": {"num_layers": 28, "hidden_size": 1152, "num_heads": 16},
}

DITS: Mapping[str, DiTConfig] = {
    "linear-dit": LinearDiTConfig(input_dim=64),
    **{
        f"dit-{size}/{patch}": differing(_DIT, **shape, patch_size=patch, input_dim=4 * patch**2)
        for size, shape in _SIZES.items()
        for patch in (2, 4, 8)
    },
}
"""LinearDiT as the documents' example has it, and DiT (arXiv:2212.09748, table 1)."""


def dit_preset(name: str) -> DiTConfig:
    """The shape of a LinearDiT or softmax DiT. Raises `ConfigError` for an unknown name."""
    return named(name, DITS, "DiT")
