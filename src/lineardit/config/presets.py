"""Published models by name, each as its differences from one base."""

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from lineardit.config.article import (
    ARTICLE_AUTOENCODERS,
    ARTICLES,
    ArticleAutoencoderConfig,
    ArticleConfig,
)
from lineardit.config.models import AutoencoderConfig, Config, StageConfig, TransformerConfig
from lineardit.errors import ConfigError

C = TypeVar("C", bound=Config)


def differing(base: C, **changes: Any) -> C:
    """`base` with other values for some fields, validated anew."""
    return type(base)(**{name: getattr(base, name) for name in type(base).model_fields} | changes)


_SANA = TransformerConfig(depth=28, width=1152, cross_head_dim=72)
_WIDE = {"depth": 20, "width": 2240, "cross_head_dim": 112}
# Sprint sees the time itself, sin t / (sin t + cos t) in [0, 1].
_SPRINT = {"qk_norm": True, "guidance_embedding": True, "time_scale": 1.0}

TRANSFORMERS: Mapping[str, TransformerConfig] = {
    "sana-0.6b": _SANA,
    "sana-1.6b": differing(_SANA, **_WIDE),
    "sana-1.5-1.6b": differing(_SANA, **_WIDE, qk_norm=True),
    "sana-1.5-4.8b": differing(_SANA, **_WIDE | {"depth": 60}, qk_norm=True),
    "sana-sprint-0.6b": differing(_SANA, **_SPRINT),
    "sana-sprint-1.6b": differing(_SANA, **_WIDE, **_SPRINT),
}
"""SANA (arXiv:2410.10629), SANA-1.5 (arXiv:2501.18427) and SANA-Sprint (arXiv:2503.09641)."""

_WIDTHS = (128, 256, 512, 512, 1024, 1024, 2048, 2048)


def _stages(
    depths: tuple[int, ...], kernels: tuple[int, ...] = (), batch_norm: bool = False
) -> tuple[Any, ...]:
    """Residual blocks at the three highest resolutions, EfficientViT blocks below."""
    old = {"norm": "batch", "activation": "relu"} if batch_norm else {}
    high = (
        StageConfig(width=width, depth=depth, **old)
        for width, depth in zip(_WIDTHS[:3], depths[:3], strict=True)
    )
    low = zip(_WIDTHS[3 : len(depths)], depths[3:], strict=True)
    return (
        *high,
        *(
            StageConfig(width=width, depth=depth, block="efficientvit", kernels=kernels)
            for width, depth in low
        ),
    )


_DC_AE = AutoencoderConfig(
    latent_channels=32,
    encoder=_stages((0, 4, 8, 2, 2, 2)),
    decoder=_stages((0, 5, 10, 2, 2, 2), batch_norm=True),
    latent_scale=(0.3189,),
)
_DC_AE_SANA = differing(
    _DC_AE,
    encoder=_stages((2, 2, 2, 3, 3, 3), kernels=(5,)),
    decoder=_stages((3, 3, 3, 3, 3, 3), kernels=(5,)),
    downsample="conv",
    upsample="interpolate",
    latent_scale=(0.41407,),
)
_F64 = differing(
    _DC_AE,
    latent_channels=128,
    encoder=_stages((0, 4, 8, 2, 2, 2, 2)),
    decoder=_stages((0, 5, 10, 2, 2, 2, 2), batch_norm=True),
    latent_scale=(0.2889,),
)
_F128 = differing(
    _DC_AE,
    latent_channels=512,
    encoder=_stages((0, 4, 8, 2, 2, 2, 2, 2)),
    decoder=_stages((0, 5, 10, 2, 2, 2, 2, 2), batch_norm=True),
    latent_scale=(0.4883,),
)

AUTOENCODERS: Mapping[str, AutoencoderConfig] = {
    # 1.1 is 1.0 with a decoder that was trained further: the shapes are the same.
    "dc-ae-f32c32-sana-1.0": _DC_AE_SANA,
    "dc-ae-f32c32-sana-1.1": _DC_AE_SANA,
    "dc-ae-f32c32-in-1.0": _DC_AE,
    "dc-ae-f32c32-mix-1.0": differing(_DC_AE, latent_scale=(0.4552,)),
    "dc-ae-f64c128-in-1.0": _F64,
    "dc-ae-f64c128-mix-1.0": differing(_F64, latent_scale=(0.4538,)),
    "dc-ae-f128c512-in-1.0": _F128,
    "dc-ae-f128c512-mix-1.0": differing(_F128, latent_scale=(0.3620,)),
}
"""Deep-compression autoencoders (arXiv:2410.10733)."""


PRESETS: Mapping[str, TransformerConfig | AutoencoderConfig | ArticleConfig | ArticleAutoencoderConfig] = {
    **TRANSFORMERS,
    **AUTOENCODERS,
    **ARTICLES,
    **ARTICLE_AUTOENCODERS,
}
"""All of them, the article's among them."""


def transformer_preset(name: str) -> TransformerConfig:
    """The shape of a published transformer. Raises `ConfigError` for an unknown name."""
    return named(name, TRANSFORMERS, "transformer")


def autoencoder_preset(name: str) -> AutoencoderConfig:
    """The shape of a published autoencoder. Raises `ConfigError` for an unknown name."""
    return named(name, AUTOENCODERS, "autoencoder")


def named(name: str, presets: Mapping[str, C], what: str) -> C:
    """The preset of that name. Raises `ConfigError`, with the nearest name, where there is none."""
    if name in presets:
        return presets[name]
    close = difflib.get_close_matches(name, presets, n=1, cutoff=0.4)
    suggestion = f"; did you mean {close[0]}?" if close else "."
    raise ConfigError(f"unknown {what} preset {name}{suggestion} Known are {', '.join(presets)}.")
