"""Presets have the shapes of the published models."""

import pytest

from lineardit.config.models import TransformerConfig
from lineardit.config.presets import AUTOENCODERS, TRANSFORMERS, autoencoder_preset, transformer_preset
from lineardit.errors import ConfigError


def parameters(config: TransformerConfig) -> int:
    """Counted by hand from the published layers; the network itself is counted in tests/transformer."""
    d, hidden, text, c = config.width, config.hidden_width, config.text_width, config.latent_channels
    norms = 4 * d if config.qk_norm else 0
    attention = (3 * d**2) + (d**2 + d)
    cross = (d**2 + d) + (2 * d**2 + 2 * d) + (d**2 + d)
    feed_forward = (2 * d * hidden + 2 * hidden) + (9 * 2 * hidden + 2 * hidden) + hidden * d
    block = 6 * d + attention + cross + feed_forward + norms
    time = (256 * d + d) + (d**2 + d)
    guidance = time if config.guidance_embedding else 0
    prompt = (text * d + d) + (d**2 + d) + d
    ends = (c * d + d) + (2 * d) + (c * d + c)
    return config.depth * block + time + guidance + (6 * d**2 + 6 * d) + prompt + ends


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("sana-0.6b", 591.75),
        ("sana-1.6b", 1604.46),
        ("sana-1.5-1.6b", 1604.64),
        ("sana-1.5-4.8b", 4721.8),
        ("sana-sprint-0.6b", 593.50),
        ("sana-sprint-1.6b", 1610.24),
    ],
)
def test_a_transformer_has_the_published_parameter_count(name: str, millions: float) -> None:
    digits = len(str(millions).partition(".")[2])
    assert round(parameters(transformer_preset(name)) / 1e6, digits) == millions


def test_no_transformer_preset_is_left_uncounted() -> None:
    assert len(TRANSFORMERS) == 6


@pytest.mark.parametrize(
    ("name", "stride", "channels", "scale"),
    [
        ("dc-ae-f32c32-sana-1.0", 32, 32, 0.41407),
        ("dc-ae-f32c32-sana-1.1", 32, 32, 0.41407),
        ("dc-ae-f32c32-in-1.0", 32, 32, 0.3189),
        ("dc-ae-f32c32-mix-1.0", 32, 32, 0.4552),
        ("dc-ae-f64c128-in-1.0", 64, 128, 0.2889),
        ("dc-ae-f64c128-mix-1.0", 64, 128, 0.4538),
        ("dc-ae-f128c512-in-1.0", 128, 512, 0.4883),
        ("dc-ae-f128c512-mix-1.0", 128, 512, 0.3620),
    ],
)
def test_an_autoencoder_has_the_published_stride_channels_and_scale(
    name: str, stride: int, channels: int, scale: float
) -> None:
    config = autoencoder_preset(name)
    assert (config.stride, config.latent_channels, config.latent_scale) == (stride, channels, (scale,))
    assert [stage.block for stage in config.encoder[:4]] == ["residual"] * 3 + ["efficientvit"]
    assert {stage.block for stage in config.decoder[3:]} == {"efficientvit"}
    assert [stage.width for stage in config.encoder] == [stage.width for stage in config.decoder]
    widths = [128, 256, 512, 512, 1024, 1024, 2048, 2048]
    assert [stage.width for stage in config.encoder] == widths[: len(config.encoder)]
    assert len(AUTOENCODERS) == 8


def test_only_the_sana_autoencoders_attend_at_several_scales_and_only_the_others_use_batch_norm() -> None:
    sana, other = autoencoder_preset("dc-ae-f32c32-sana-1.0"), autoencoder_preset("dc-ae-f32c32-in-1.0")
    assert [stage.kernels for stage in sana.decoder] == [(), (), (), (5,), (5,), (5,)]
    assert {stage.kernels for stage in other.encoder} == {()}
    assert [stage.norm for stage in other.decoder] == ["batch"] * 3 + ["rms"] * 3
    assert {stage.norm for stage in (*sana.decoder, *sana.encoder, *other.encoder)} == {"rms"}
    assert [stage.depth for stage in other.decoder] == [0, 5, 10, 2, 2, 2]


def test_an_unknown_name_is_answered_with_the_nearest_and_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"^unknown transformer preset sana-0.6; did you mean sana-0.6b\? Known are"
    ):
        transformer_preset("sana-0.6")
    with pytest.raises(
        ConfigError, match=r"^unknown autoencoder preset qqq\. Known are dc-ae-f32c32-sana-1.0, "
    ):
        autoencoder_preset("qqq")
