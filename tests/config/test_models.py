"""Shapes of networks: what is derived from them, and what is refused with a remedy."""

from typing import Any

import pytest

from lineardit.config.models import AutoencoderConfig, Config, SceneTextConfig, StageConfig, TransformerConfig
from lineardit.errors import ConfigError

TRANSFORMER = {"depth": 2, "width": 2240, "cross_head_dim": 112}
STAGE = {"width": 64, "depth": 1}
AUTOENCODER = {"latent_channels": 8, "encoder": [STAGE] * 4, "decoder": [STAGE] * 4}
TEXT = {"vocabulary": 512, "width": 64, "depth": 2}


def test_the_feed_forward_is_as_wide_as_published() -> None:
    assert TransformerConfig(**TRANSFORMER).hidden_width == 5600
    assert TransformerConfig(depth=2, width=1152, cross_head_dim=72).hidden_width == 2880


@pytest.mark.parametrize(("stages", "stride"), [(2, 2), (4, 8), (5, 16), (6, 32), (8, 128)])
def test_every_further_stage_doubles_the_stride(stages: int, stride: int) -> None:
    config = AutoencoderConfig(latent_channels=8, encoder=[STAGE] * stages, decoder=[STAGE] * stages)
    assert config.stride == stride


@pytest.mark.parametrize(
    ("kind", "fields"),
    [(TransformerConfig, TRANSFORMER), (AutoencoderConfig, AUTOENCODER), (SceneTextConfig, TEXT)],
)
def test_a_configuration_is_frozen_and_comes_back_from_json(
    kind: type[Config], fields: dict[str, Any]
) -> None:
    config = kind(**fields)
    with pytest.raises(ValueError, match="frozen"):
        config.width = 1  # type: ignore[attr-defined]
    assert kind(**config.model_dump(mode="json")) == config
    assert hash(kind(**fields)) == hash(config)


@pytest.mark.parametrize(
    ("kind", "fields", "complaint"),
    [
        (
            TransformerConfig,
            TRANSFORMER | {"widht": 3},
            "unknown key widht in TransformerConfig; did you mean width?",
        ),
        (
            SceneTextConfig,
            TEXT | {"zzz": 3},
            "unknown key zzz in SceneTextConfig. Known keys: vocabulary, width, depth, head_dim, max_tokens",
        ),
        (TransformerConfig, {"depth": 2, "width": 64}, "cross_head_dim: Field required"),
        (TransformerConfig, TRANSFORMER | {"depth": 0}, "depth=0: Input should be greater than 0"),
        (
            TransformerConfig,
            TRANSFORMER | {"position": "learned"},
            "position='learned': Input should be 'none' or 'sincos'",
        ),
        (
            TransformerConfig,
            TRANSFORMER | {"width": 2200},
            "TransformerConfig: width=2200 does not split into heads of head_dim=32: "
            "24 channels are left over. Use width=2176 or width=2208.",
        ),
        (
            TransformerConfig,
            TRANSFORMER | {"width": 64},
            "TransformerConfig: width=64 does not split into heads of cross_head_dim=112: "
            "64 channels are left over. Use width=112.",
        ),
        (
            TransformerConfig,
            {"depth": 1, "width": 30, "head_dim": 15, "cross_head_dim": 15, "position": "sincos"},
            "TransformerConfig: width=30 does not split into sines and cosines of x and y: "
            "2 channels are left over. Use a multiple of 4, or position='none'.",
        ),
        (StageConfig, STAGE | {"depth": -1}, "depth=-1: Input should be greater than or equal to 0"),
        (
            StageConfig,
            STAGE | {"block": "mamba"},
            "block='mamba': Input should be 'residual' or 'efficientvit'",
        ),
        (
            AutoencoderConfig,
            AUTOENCODER | {"decoder": [STAGE] * 3},
            "AutoencoderConfig: the encoder has 4 stages and the decoder 3: give both the same.",
        ),
        (
            AutoencoderConfig,
            AUTOENCODER | {"encoder": [STAGE]},
            "encoder=[{'width': 64, 'depth': 1}]: Tuple should",
        ),
        (
            AutoencoderConfig,
            AUTOENCODER | {"encoder": [STAGE, STAGE, STAGE | {"depth": 0}, STAGE]},
            "AutoencoderConfig: encoder[2] has depth=0, and nothing would change the resolution there. "
            "Only the first and the last stage can be empty: use depth=1, or leave the stage out.",
        ),
        (
            AutoencoderConfig,
            AUTOENCODER | {"decoder": [STAGE, STAGE | {"depth": 0}, STAGE, STAGE]},
            "AutoencoderConfig: decoder[1] has depth=0, and nothing would change the resolution there. "
            "Only the first and the last stage can be empty: use depth=1, or leave the stage out.",
        ),
        (
            AutoencoderConfig,
            AUTOENCODER | {"encoder": [STAGE] * 3 + [{"width": 70, "depth": 1, "block": "efficientvit"}]},
            "AutoencoderConfig: width=70 of an EfficientViT stage is no multiple of attention_head_dim=32.",
        ),
        (
            AutoencoderConfig,
            AUTOENCODER | {"latent_scale": (1.0, 2.0)},
            "AutoencoderConfig: latent_scale has 2 numbers: give 1 or latent_channels=8.",
        ),
        (
            AutoencoderConfig,
            AUTOENCODER | {"latent_shift": (0.0,) * 9},
            "AutoencoderConfig: latent_shift has 9 numbers: give 1 or latent_channels=8.",
        ),
        (SceneTextConfig, TEXT | {"width": 65}, "SceneTextConfig: width=65 is no multiple of head_dim=32."),
    ],
)
def test_a_mistake_is_answered_with_the_rule(
    kind: type[Config], fields: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        kind(**fields)
    assert str(caught.value).startswith(complaint)


def test_the_first_and_the_last_stage_may_be_empty() -> None:
    empty = STAGE | {"depth": 0}
    config = AutoencoderConfig(**AUTOENCODER | {"encoder": [empty, STAGE, STAGE, empty]})
    assert [stage.depth for stage in config.encoder] == [0, 1, 1, 0]


def test_a_scale_is_one_number_or_one_per_channel() -> None:
    for count in (1, 8):
        assert AutoencoderConfig(**AUTOENCODER, latent_scale=(0.5,) * count).latent_scale == (0.5,) * count
