"""The autoencoder: sizes, strides, the scale of its latents, and what its shortcuts carry."""

import pytest
import torch
from torch import Tensor, nn

from lineardit.autoencoder.model import Autoencoder
from lineardit.config.models import AutoencoderConfig, StageConfig
from lineardit.config.presets import AUTOENCODERS, differing
from lineardit.errors import ConfigError, ShapeError
from lineardit.kernels import native

WIDTHS = (8, 16, 16, 32, 32)


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def config(levels: int, first_depth: int = 1, **changes: object) -> AutoencoderConfig:
    """`levels` halvings of the side, the lowest resolution attentive."""
    widths = (*WIDTHS, 64)[: levels + 1]
    stages = [StageConfig(width=width, depth=1) for width in widths]
    stages[0] = StageConfig(width=widths[0], depth=first_depth)
    stages[-1] = StageConfig(width=widths[-1], depth=1, block="efficientvit", kernels=(5,))
    fields = {"latent_channels": 8, "encoder": stages, "decoder": stages, "attention_head_dim": 8}
    return AutoencoderConfig(**fields | changes)


def model(options: AutoencoderConfig) -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(options).eval()


@pytest.mark.parametrize("levels", [3, 4, 5])
@pytest.mark.parametrize("first_depth", [0, 1])
@torch.no_grad()
def test_any_multiple_of_the_stride_goes_in_and_comes_out(levels: int, first_depth: int) -> None:
    autoencoder = model(config(levels, first_depth))
    stride = autoencoder.config.stride
    assert stride == 2**levels
    for rows, columns in ((1, 1), (1, 3), (3, 2)):
        images = randn(2, 3, rows * stride, columns * stride)
        latents = autoencoder.encode(images)
        assert latents.shape == (2, 8, rows, columns)
        assert autoencoder.decode(latents).shape == autoencoder(images).shape == images.shape


@pytest.mark.parametrize(
    ("height", "width", "complaint"),
    [
        (40, 32, "height=40 is not a multiple of 16, the pixels per latent. Use 32 or 48."),
        (32, 33, "width=33 is not a multiple of 16, the pixels per latent. Use 32 or 48."),
        (7, 32, "height=7 is not a multiple of 16, the pixels per latent. Use 16."),
        (32, 0, "width=0 is not a multiple of 16, the pixels per latent. Use 16."),
    ],
)
def test_another_size_is_refused_with_sizes_that_fit(height: int, width: int, complaint: str) -> None:
    with pytest.raises(ShapeError) as caught:
        model(config(4)).encode(torch.zeros(1, 3, height, width))
    assert str(caught.value) == complaint


@pytest.mark.parametrize("count", [1, 8])
@torch.no_grad()
def test_latents_are_shifted_then_scaled_and_decoding_undoes_it(count: int) -> None:
    shift, scale = tuple(randn(count, seed=2).tolist()), tuple((1 + randn(count, seed=3).abs()).tolist())
    plain = model(config(3))
    scaled = model(config(3, latent_shift=shift, latent_scale=scale))
    scaled.load_state_dict(plain.state_dict())
    images = randn(2, 3, 16, 24)
    raw = plain.encode(images)
    assert torch.equal(raw, plain.encoder(images))
    expected = (raw - torch.tensor(shift).view(1, -1, 1, 1)) * torch.tensor(scale).view(1, -1, 1, 1)
    torch.testing.assert_close(scaled.encode(images), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(scaled.decode(expected), plain.decode(raw), rtol=0, atol=1e-5)
    torch.testing.assert_close(scaled.decode(scaled.encode(images)), scaled(images), rtol=0, atol=1e-5)


def test_shift_and_scale_belong_to_the_configuration_not_to_the_weights() -> None:
    assert not {"shift", "scale"} & set(model(config(3)).state_dict())


def test_a_model_built_on_the_meta_device_has_its_scale_once_weights_are_assigned() -> None:
    options = config(3, latent_scale=(0.41407,), latent_shift=(0.5,))
    with torch.device("meta"):
        hollow = Autoencoder(options)
    assert all(parameter.is_meta for parameter in hollow.parameters())
    full = model(options)
    hollow.eval().load_state_dict(full.state_dict(), assign=True)
    images = randn(1, 3, 16, 24)
    with torch.no_grad():
        assert torch.equal(hollow.encode(images), full.encode(images))


def silence(autoencoder: Autoencoder) -> None:
    """All convolutions and all residual branches give zero; the shortcuts stay."""
    for name, parameter in autoencoder.named_parameters():
        if name not in {"encoder.stem.weight", "decoder.head.weight", "decoder.norm.weight"}:
            nn.init.zeros_(parameter)


@torch.no_grad()
def test_the_shortcuts_alone_carry_a_flat_picture_through_the_encoder() -> None:
    autoencoder = model(config(4))
    silence(autoencoder)
    nn.init.zeros_(autoencoder.encoder.stem.weight)
    # The stem copies red to all its channels; averages of a flat colour are that colour.
    autoencoder.encoder.stem.weight[:, 0, 1, 1] = 1
    images = torch.tensor([0.25, -0.5, 0.75]).view(1, 3, 1, 1).expand(1, 3, 32, 48)
    torch.testing.assert_close(autoencoder.encode(images), torch.full((1, 8, 2, 3), 0.25))


@torch.no_grad()
def test_the_shortcuts_alone_carry_every_latent_to_its_own_pixels() -> None:
    autoencoder = model(config(4))
    silence(autoencoder)
    latents = randn(1, 8, 2, 3)
    changed = latents.clone()
    changed[0, 0, 1, 2] += 1
    moved = (autoencoder.decode(changed) - autoencoder.decode(latents)).abs().amax(1)[0] > 0
    assert moved[16:, 32:].any()
    # The last convolution sees one pixel further.
    moved[15:, 31:] = False
    assert not moved.any()


@torch.no_grad()
def test_a_picture_is_what_it_is_alone_whatever_its_batch() -> None:
    autoencoder, images = model(config(3)), randn(3, 3, 16, 24)
    torch.testing.assert_close(autoencoder(images)[1:2], autoencoder(images[1:2]), rtol=0, atol=1e-5)


def test_gradients_reach_every_weight() -> None:
    for first_depth in (0, 1):
        autoencoder = model(config(3, first_depth)).train()
        autoencoder(randn(2, 3, 16, 24)).square().mean().backward()
        still = [n for n, p in autoencoder.named_parameters() if p.grad is None or not p.grad.any()]
        assert not still


@torch.no_grad()
def test_bfloat16_weights_give_bfloat16_pictures_close_to_those_of_float32() -> None:
    autoencoder, images = model(config(3)), randn(1, 3, 16, 24)
    expected = autoencoder(images)
    half = autoencoder.bfloat16()(images.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).norm() < 0.03 * expected.norm()


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("dc-ae-f32c32-sana-1.0", 312.25),
        ("dc-ae-f32c32-in-1.0", 323.36),
        ("dc-ae-f64c128-in-1.0", 676.90),
        ("dc-ae-f128c512-in-1.0", 1120.68),
    ],
)
def test_a_published_autoencoder_builds_on_the_meta_device(name: str, millions: float) -> None:
    with torch.device("meta"):
        autoencoder = Autoencoder(AUTOENCODERS[name])
    assert round(sum(p.numel() for p in autoencoder.parameters()) / 1e6, 2) == millions


def test_latents_that_do_not_fold_into_the_lowest_width_are_refused() -> None:
    with pytest.raises(
        ConfigError, match="the encoder's last shortcut: 32 channels do not fold evenly into 5"
    ):
        Autoencoder(differing(config(3), latent_channels=5))
    wide = [StageConfig(width=width, depth=1) for width in (8, 16, 16, 40)]
    with pytest.raises(
        ConfigError, match="the decoder's first shortcut: 40 channels do not fold evenly into 16"
    ):
        Autoencoder(differing(config(3), latent_channels=16, decoder=wide))


@pytest.mark.skipif(native.compiler() is None, reason="there is no C++ compiler here")
@torch.no_grad()
def test_the_native_passes_give_the_same_pixels_and_latents() -> None:
    stages = [
        {"width": 12, "depth": 1},
        {"width": 24, "depth": 1},
        {"width": 24, "depth": 1, "block": "efficientvit", "kernels": [5]},
    ]
    for upsample in ("interpolate", "pixel_shuffle"):
        config = AutoencoderConfig(
            latent_channels=4, encoder=stages, decoder=stages, attention_head_dim=12, upsample=upsample
        )
        torch.manual_seed(0)
        network = Autoencoder(config).eval()
        images = torch.randn(2, 3, 12, 20, generator=torch.Generator().manual_seed(1))
        latents = network.encode(images)
        pixels = network.decode(latents)
        with native.using("native"):
            torch.testing.assert_close(network.encode(images), latents, rtol=0, atol=1e-5)
            torch.testing.assert_close(network.decode(latents), pixels, rtol=0, atol=1e-5)
            half = network.bfloat16().decode(latents.bfloat16())
        assert half.dtype == torch.bfloat16
        assert 0 < (half.float() - pixels).norm() < 0.05 * pixels.norm()
