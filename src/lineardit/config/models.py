"""Shapes of the networks: frozen, validated, and free of torch so that they load at once."""

import difflib
from abc import abstractmethod
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lineardit.errors import ConfigError

FeatureMap = Literal["relu", "elu1"]
Position = Literal["none", "sincos"]
Normalisation = Literal["rms", "batch"]
Activation = Literal["silu", "relu"]


class Config(BaseModel):
    """A frozen set of options. Raises `ConfigError` for an unknown key (with a suggestion) or a bad value."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, **fields: Any) -> None:
        known = type(self).model_fields
        for key in fields:
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1)
                remedy = f"; did you mean {close[0]}?" if close else f". Known keys: {', '.join(known)}"
                raise ConfigError(f"unknown key {key} in {type(self).__name__}{remedy}")
        try:
            super().__init__(**fields)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or type(self).__name__
            given = "" if first["type"] in {"missing", "value_error"} else f"={first['input']!r}"
            raise ConfigError(f"{place}{given}: {first['msg'].removeprefix('Value error, ')}") from None


class TransformerConfig(Config):
    """A SANA transformer (arXiv:2410.10629, section 2.2)."""

    latent_channels: int = Field(32, gt=0)
    """Channels of the autoencoder's latents, in and out."""
    patch_size: int = Field(1, gt=0)
    """Latent pixels per token and side; not the autoencoder's stride."""
    depth: int = Field(gt=0)
    """Number of blocks."""
    width: int = Field(gt=0)
    """Channels of a token."""
    head_dim: int = Field(32, gt=0)
    """Channels of a self-attention head; `width` must be a multiple."""
    cross_head_dim: int = Field(gt=0)
    """Channels of a cross-attention head; `width` must be a multiple."""
    feed_forward_ratio: float = Field(2.5, gt=0)
    """Hidden width of the GLUMBConv over `width`, before the gate doubles it."""
    text_width: int = Field(2304, gt=0)
    """Channels of the text encoder's last hidden state."""
    qk_norm: bool = False
    """RMSNorm over the full width of queries and keys, in self- and cross-attention (SANA-1.5, Sprint)."""
    guidance_embedding: bool = False
    """The guidance scale is an input that is embedded beside the time (SANA-Sprint)."""
    guidance_embedding_scale: float = 0.1
    """What the guidance scale is multiplied by before it is embedded."""
    prompt_norm_start: float = Field(0.01, gt=0)
    """Weight that the RMSNorm of the projected prompt starts from: 0.01 as published; 1 lets a small model
    that is trained from nothing hear the words at once."""
    position: Position = "none"
    """Position signal added to the tokens: none (512 and 1024 px) or fixed sines and cosines (2K, 4K)."""
    position_base: int = Field(32, gt=0)
    """Tokens per side that the sine-cosine positions were made for."""
    position_interpolation: float = Field(1.0, gt=0)
    """The sine-cosine coordinates are divided by this: 1 at 2K, 2 at 4K."""
    time_scale: float = 1000.0
    """The network sees t times this."""

    @model_validator(mode="after")
    def heads_fill_the_width(self) -> Self:
        for name in ("head_dim", "cross_head_dim"):
            each = getattr(self, name)
            left = self.width % each
            if left:
                below = self.width - left
                choices = f"width={below} or width={below + each}" if below else f"width={each}"
                raise ValueError(
                    f"width={self.width} does not split into heads of {name}={each}: "
                    f"{left} channels are left over. Use {choices}."
                )
        return self

    @model_validator(mode="after")
    def positions_fill_the_width(self) -> Self:
        left = self.width % 4
        if self.position == "sincos" and left:
            raise ValueError(
                f"width={self.width} does not split into sines and cosines of x and y: "
                f"{left} channels are left over. Use a multiple of 4, or position='none'."
            )
        return self

    @property
    def hidden_width(self) -> int:
        """Hidden channels of the feed-forward after the gate."""
        return int(self.feed_forward_ratio * self.width)


class StageConfig(Config):
    """One resolution of the autoencoder."""

    width: int = Field(gt=0)
    """Channels at this resolution."""
    depth: int = Field(ge=0)
    """Number of blocks; 0 in the first stage lets the stem (or head) change the resolution directly."""
    block: Literal["residual", "efficientvit"] = "residual"
    """Two 3x3 convolutions, or linear attention followed by a GLUMBConv."""
    kernels: tuple[int, ...] = ()
    """Depthwise kernel sizes of the extra attention scales of an EfficientViT block."""
    norm: Normalisation = "rms"
    """Normalisation of residual blocks."""
    activation: Activation = "silu"
    """Activation of residual blocks."""


class LatentsConfig(Config):
    """What every autoencoder says of its latents."""

    latent_channels: int = Field(gt=0)
    latent_scale: tuple[float, ...] = (1.0,)
    """Latents handed to the transformer are (latents - shift) * scale: one number, or one per channel."""
    latent_shift: tuple[float, ...] = (0.0,)

    @model_validator(mode="after")
    def scales_fit_the_channels(self) -> Self:
        for name in ("latent_scale", "latent_shift"):
            count = len(getattr(self, name))
            if count not in {1, self.latent_channels}:
                raise ValueError(
                    f"{name} has {count} numbers: give 1 or latent_channels={self.latent_channels}."
                )
        return self

    @property
    @abstractmethod
    def stride(self) -> int:
        """Pixels per latent and side."""


class AutoencoderConfig(LatentsConfig):
    """A deep-compression autoencoder (DC-AE, arXiv:2410.10733)."""

    encoder: tuple[StageConfig, ...] = Field(min_length=2)
    """From the highest resolution to the lowest; each further stage halves the side."""
    decoder: tuple[StageConfig, ...] = Field(min_length=2)
    """From the highest resolution to the lowest, as the encoder; run in the reverse order."""
    attention_head_dim: int = Field(32, gt=0)
    downsample: Literal["conv", "pixel_unshuffle"] = "pixel_unshuffle"
    """Strided convolution, or convolution then space-to-channel."""
    upsample: Literal["interpolate", "pixel_shuffle"] = "pixel_shuffle"
    """Nearest interpolation then convolution, or convolution then channel-to-space."""

    @model_validator(mode="after")
    def stages_fit(self) -> Self:
        if len(self.encoder) != len(self.decoder):
            raise ValueError(
                f"the encoder has {len(self.encoder)} stages and the decoder {len(self.decoder)}: "
                "give both the same."
            )
        for name, stages in (("encoder", self.encoder), ("decoder", self.decoder)):
            for number, stage in enumerate(stages[1:-1], start=1):
                if not stage.depth:
                    raise ValueError(
                        f"{name}[{number}] has depth=0, and nothing would change the resolution there. "
                        "Only the first and the last stage can be empty: use depth=1, or leave the stage out."
                    )
        for stage in (*self.encoder, *self.decoder):
            if stage.block == "efficientvit" and stage.width % self.attention_head_dim:
                raise ValueError(
                    f"width={stage.width} of an EfficientViT stage is no multiple of "
                    f"attention_head_dim={self.attention_head_dim}."
                )
        return self

    @property
    def stride(self) -> int:
        """Pixels per latent and side: 8 for f8, 16 for f16, 32 for f32."""
        return int(2 ** (len(self.encoder) - 1))


class TextConfig(Config):
    """What text encoders that run from files alone have in common."""

    vocabulary: int = Field(gt=0)
    width: int = Field(gt=0)
    depth: int = Field(gt=0)
    head_dim: int = Field(32, gt=0)
    max_tokens: int = Field(48, gt=0)
    """Token budget of a prompt; what is beyond is cut, with a warning that names it."""

    @model_validator(mode="after")
    def heads_fill_the_width(self) -> Self:
        if self.width % self.head_dim:
            raise ValueError(f"width={self.width} is no multiple of head_dim={self.head_dim}.")
        return self


class SceneTextConfig(TextConfig):
    """A small text encoder that is trained here, on the captions of scenes."""


class BertConfig(TextConfig):
    """A pre-trained encoder of the BERT family, such as MiniLM (width 384, depth 6)."""

    hidden: int = Field(gt=0)
    """Channels inside the feed-forward."""
    norm_eps: float = Field(1e-12, gt=0)
    max_tokens: int = Field(128, gt=0)
