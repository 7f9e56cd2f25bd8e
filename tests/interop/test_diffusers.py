"""diffusers, an oracle that is only run: with the same weights both libraries give the same numbers."""

import inspect
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderDC, SanaControlNetModel, SanaTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lineardit.autoencoder.model import Autoencoder
from lineardit.config.models import AutoencoderConfig, StageConfig, TransformerConfig
from lineardit.config.presets import AUTOENCODERS, TRANSFORMERS, differing
from lineardit.errors import CheckpointError, ConfigError
from lineardit.interop.diffusers import (
    from_diffusers_autoencoder,
    from_diffusers_transformer,
    to_diffusers_autoencoder,
    to_diffusers_transformer,
)
from lineardit.interop.diffusers_config import (
    AUTOENCODER_DEFAULTS,
    CONTROLNET_DEFAULTS,
    TRANSFORMER_DEFAULTS,
    autoencoder_config_from_diffusers,
    autoencoder_config_to_diffusers,
    transformer_config_from_diffusers,
    transformer_config_to_diffusers,
)
from lineardit.transformer.model import Transformer

# Relative to outputs of size 10 and more, 1e-6 is a rounding or two.
EQUAL = {"rtol": 1e-6, "atol": 1e-5}


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def filled(network: nn.Module) -> nn.Module:
    """Random weights such that every tensor matters and activations stay about 1."""
    for number, (name, tensor) in enumerate(network.state_dict().items()):
        draw = randn(*tensor.shape, seed=number) if tensor.is_floating_point() else tensor
        if name.endswith("running_var"):
            tensor.copy_(0.5 + draw.abs())
        elif tensor.dim() > 1 and not name.endswith("scale_shift_table"):
            tensor.copy_(draw / tensor[0].numel() ** 0.5)
        elif name.endswith("weight"):
            tensor.copy_(1 + 0.2 * draw)
        elif tensor.is_floating_point():
            tensor.copy_(0.2 * draw)
        else:
            tensor.fill_(7)
    return network.eval()


def built(kind: Any, options: Mapping[str, Any]) -> Any:
    return kind(**{key: value for key, value in options.items() if key != "_class_name"})


# The transformer.

SMALL = TransformerConfig(
    latent_channels=3,
    depth=2,
    width=60,
    head_dim=12,
    cross_head_dim=20,
    text_width=11,
    position_base=5,
)


def transformers(config: TransformerConfig) -> tuple[Transformer, Any]:
    theirs = filled(built(SanaTransformer2DModel, transformer_config_to_diffusers(config)))
    ours = Transformer(config)
    ours.load_state_dict(from_diffusers_transformer(config, theirs.state_dict()))
    return ours.eval(), theirs


@torch.no_grad()
def both_velocities(config: TransformerConfig, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Three prompts of different lengths, of which one says nothing at all, at three times."""
    ours, theirs = transformers(config)
    latents, text = randn(3, 3, height, width, seed=1), randn(3, 13, 11, seed=2)
    mask = torch.arange(13) < torch.tensor([[13], [1], [7]])
    mask[2, 3] = False
    times, scales = torch.tensor([0.0, 0.371, 1.0]), torch.tensor([1.0, 4.5, 7.0])
    guidance = scales if config.guidance_embedding else None
    output = theirs(
        latents,
        text,
        timestep=times * config.time_scale,
        guidance=None if guidance is None else guidance * config.guidance_embedding_scale,
        encoder_attention_mask=mask.long(),
        return_dict=False,
    )[0]
    return ours(latents, times, text, mask, guidance), output


@pytest.mark.parametrize(
    ("qk_norm", "guided", "interpolation", "patch_size"),
    list(itertools.product([False, True], [False, True], [None, 1.0, 2.0], [1, 2])),
)
def test_the_transformer_gives_the_velocity_that_diffusers_gives(
    qk_norm: bool, guided: bool, interpolation: float | None, patch_size: int
) -> None:
    config = differing(
        SMALL,
        qk_norm=qk_norm,
        guidance_embedding=guided,
        time_scale=1.0 if guided else 1000.0,
        position="none" if interpolation is None else "sincos",
        position_interpolation=interpolation or 1.0,
        patch_size=patch_size,
    )
    ours, theirs = both_velocities(config, 6, 14)
    assert ours.std() > 0.1
    torch.testing.assert_close(ours, theirs, **EQUAL)


def test_positions_at_the_size_they_were_made_for_are_those_of_diffusers() -> None:
    config = differing(SMALL, position="sincos", position_interpolation=2.0)
    torch.testing.assert_close(*both_velocities(config, 5, 5), **EQUAL)


def test_without_a_mask_the_velocity_is_that_of_diffusers() -> None:
    ours, theirs = transformers(SMALL)
    latents, text, times = randn(2, 3, 3, 7, seed=1), randn(2, 5, 11, seed=2), torch.tensor([0.2, 0.9])
    with torch.no_grad():
        expected = theirs(latents, text, timestep=1000 * times, return_dict=False)[0]
        torch.testing.assert_close(ours(latents, times, text), expected, **EQUAL)


def test_an_all_false_mask_gives_what_the_bias_of_diffusers_gives() -> None:
    ours, theirs = transformers(SMALL)
    # In float64, because next to a bias of -10000 float32 keeps three decimals of a logit.
    ours, theirs = ours.double(), theirs.double()
    latents, text = randn(2, 3, 3, 7, seed=1).double(), randn(2, 5, 11, seed=2).double()
    times, mask = torch.tensor([0.25, 0.75]), torch.tensor([[False] * 5, [True] * 3 + [False] * 2])
    with torch.no_grad():
        expected = theirs(
            latents, text, timestep=1000 * times, encoder_attention_mask=mask.long(), return_dict=False
        )[0]
        velocity = ours(latents, times, text, mask)
    assert velocity.isfinite().all()
    torch.testing.assert_close(velocity, expected, **EQUAL)


# bfloat16 keeps 8 bits, and errors of many layers add up: this share of the output's deviation.
IN_BFLOAT16 = 0.03


def off(found: Tensor, exact: Tensor) -> float:
    """Root mean square of the difference over the deviation."""
    return float((found.float() - exact).square().mean().sqrt() / exact.std())


@pytest.mark.parametrize("changes", [{}, {"qk_norm": True, "guidance_embedding": True, "time_scale": 1.0}])
def test_in_bfloat16_the_transformer_stays_as_near_as_that_of_diffusers(changes: dict[str, Any]) -> None:
    config = differing(SMALL, **changes)
    ours, theirs = transformers(config)
    latents, text, times = randn(2, 3, 6, 14, seed=1), randn(2, 13, 11, seed=2), torch.tensor([0.25, 1.0])
    guidance = torch.tensor([1.0, 4.5]) if config.guidance_embedding else None
    scaled = None if guidance is None else guidance * config.guidance_embedding_scale

    @torch.no_grad()
    def both(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        found = ours.to(dtype)(latents, times, text, None, guidance)
        given = theirs.to(dtype)(
            latents.to(dtype),
            text.to(dtype),
            timestep=times * config.time_scale,
            guidance=None if scaled is None else scaled.to(dtype),
            return_dict=False,
        )
        return found, given[0]

    (near, other), (exact, _) = both(torch.bfloat16), both(torch.float32)
    assert near.dtype == other.dtype == torch.bfloat16
    # The weights were rounded on the way there, for both alike.
    assert 0 < off(near, exact) < IN_BFLOAT16
    assert off(near, exact) < 1.5 * off(other, exact)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_published_transformer_fits_tensor_for_tensor(name: str) -> None:
    config = TRANSFORMERS[name]
    with torch.device("meta"):
        ours = Transformer(config)
        theirs = built(SanaTransformer2DModel, transformer_config_to_diffusers(config))
    ours.load_state_dict(from_diffusers_transformer(config, theirs.state_dict()), assign=True)
    shapes = {key: tensor.shape for key, tensor in theirs.state_dict().items()}
    back = to_diffusers_transformer(config, ours.state_dict())
    assert {key: tensor.shape for key, tensor in back.items()} == shapes
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize("changes", [{}, {"qk_norm": True, "guidance_embedding": True, "patch_size": 2}])
def test_transformer_weights_come_back_bit_by_bit_through_a_file(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    config = differing(SMALL, **changes, time_scale=1.0)
    theirs = filled(built(SanaTransformer2DModel, transformer_config_to_diffusers(config))).bfloat16()
    own = from_diffusers_transformer(config, theirs.state_dict())
    save_file(dict(to_diffusers_transformer(config, own)), tmp_path / "back.safetensors")
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(back[name], tensor, rtol=0, atol=0)


PUBLISHED_0_6B = {
    "_class_name": "SanaTransformer2DModel",
    "_diffusers_version": "0.32.0.dev0",
    "in_channels": 32,
    "out_channels": 32,
    "num_attention_heads": 36,
    "attention_head_dim": 32,
    "num_layers": 28,
    "num_cross_attention_heads": 16,
    "cross_attention_head_dim": 72,
    "cross_attention_dim": 1152,
    "caption_channels": 2304,
    "mlp_ratio": 2.5,
    "attention_bias": False,
    "dropout": 0.0,
    "sample_size": 32,
    "patch_size": 1,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
}


def test_the_published_configuration_of_a_transformer_is_its_preset() -> None:
    assert transformer_config_from_diffusers(PUBLISHED_0_6B) == TRANSFORMERS["sana-0.6b"]
    larger = {"num_attention_heads": 70, "num_cross_attention_heads": 20, "cross_attention_head_dim": 112}
    sprint = larger | {"num_layers": 20, "cross_attention_dim": 2240, "guidance_embeds": True}
    given = PUBLISHED_0_6B | sprint | {"qk_norm": "rms_norm_across_heads"}
    assert transformer_config_from_diffusers(given) == TRANSFORMERS["sana-sprint-1.6b"]


@pytest.mark.parametrize(
    "config",
    [
        *TRANSFORMERS.values(),
        SMALL,
        differing(SMALL, position="sincos", position_interpolation=2.0, patch_size=2, position_base=64),
        differing(SMALL, feed_forward_ratio=3.0, time_scale=1.0),
    ],
)
def test_the_configuration_of_a_transformer_comes_back(config: TransformerConfig) -> None:
    options = transformer_config_to_diffusers(config)
    assert transformer_config_from_diffusers(options) == config
    registered = (
        dict(built(SanaTransformer2DModel, options).config) if config.width == SMALL.width else options
    )
    assert transformer_config_from_diffusers(registered) == config
    assert transformer_config_to_diffusers(transformer_config_from_diffusers(options)) == options


@pytest.mark.parametrize(
    ("kind", "defaults"),
    [
        (SanaTransformer2DModel, TRANSFORMER_DEFAULTS),
        (SanaControlNetModel, CONTROLNET_DEFAULTS),
        (AutoencoderDC, AUTOENCODER_DEFAULTS),
    ],
)
def test_options_left_out_mean_what_they_mean_in_diffusers(kind: Any, defaults: Mapping[str, Any]) -> None:
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    assert {parameter.name: parameter.default for parameter in parameters} == defaults


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (
            {"_class_name": "FluxTransformer2DModel"},
            "is of a FluxTransformer2DModel; what fits here is a Sana",
        ),
        ({"qk_norms": None, "tails": 1}, "options that are not known here: qk_norms, tails"),
        ({"num_layers": "many"}, "num_layers='many': it must be a number"),
        ({"num_layers": 0}, "depth=0"),
        ({"patch_size": 0}, "patch_size=0"),
        ({"out_channels": 64}, "out_channels=64 is not supported: only 32 or None is"),
        ({"cross_attention_dim": 2304}, "cross_attention_dim=2304 is not supported: only 1152 is"),
        ({"num_cross_attention_heads": 8}, "cross-attention heads are 576 wide together, those of self-att"),
        ({"qk_norm": "layer_norm"}, "qk_norm='layer_norm' is not supported: only None or 'rms_norm_across_h"),
        ({"attention_bias": True}, "attention_bias=True is not supported: only False is"),
        ({"dropout": 0.1}, "dropout=0.1 is not supported"),
        ({"norm_eps": 1e-5}, "norm_eps=1e-05 is not supported"),
        ({"norm_elementwise_affine": True}, "norm_elementwise_affine=True is not supported"),
    ],
)
def test_a_transformer_that_cannot_be_built_here_is_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        transformer_config_from_diffusers(PUBLISHED_0_6B | changes)
    assert complaint in str(caught.value)


def test_a_time_that_diffusers_would_not_pass_on_is_refused() -> None:
    with pytest.raises(ConfigError, match="time_scale=1000.0 with guidance_embedding"):
        transformer_config_to_diffusers(differing(SMALL, guidance_embedding=True))


# The autoencoder.


def stages(
    widths: tuple[int, ...], depths: tuple[int, ...], kernels: tuple[int, ...] = (), norm: str = "rms"
) -> tuple[StageConfig, ...]:
    """Residual blocks, and EfficientViT blocks at the two lowest resolutions."""
    activation = "relu" if norm == "batch" else "silu"
    split = len(widths) - 2
    high = [
        StageConfig(width=width, depth=depth, norm=norm, activation=activation)
        for width, depth in zip(widths[:split], depths[:split], strict=True)
    ]
    low = [
        StageConfig(width=width, depth=depth, block="efficientvit", kernels=kernels)
        for width, depth in zip(widths[split:], depths[split:], strict=True)
    ]
    return (*high, *low)


WIDTHS = (12, 24, 24, 24, 48, 48, 96, 96)
SANA = AutoencoderConfig(
    latent_channels=16,
    encoder=stages(WIDTHS[:6], (2, 1, 1, 1, 1, 2), kernels=(5,)),
    decoder=stages(WIDTHS[:6], (1, 1, 2, 1, 1, 1), kernels=(5,)),
    attention_head_dim=12,
    downsample="conv",
    upsample="interpolate",
    latent_scale=(0.41407,),
)
MIX = AutoencoderConfig(
    latent_channels=16,
    encoder=stages(WIDTHS[:6], (0, 1, 2, 1, 1, 1)),
    decoder=stages(WIDTHS[:6], (0, 2, 1, 1, 1, 2), norm="batch"),
    attention_head_dim=12,
    latent_scale=(0.4552,),
)
F8 = AutoencoderConfig(
    latent_channels=8,
    encoder=stages(WIDTHS[:4], (1, 1, 1, 1), kernels=(3, 5)),
    decoder=stages(WIDTHS[:4], (0, 1, 1, 1)),
    attention_head_dim=8,
    upsample="interpolate",
)
F16 = AutoencoderConfig(
    latent_channels=16,
    encoder=stages(WIDTHS[:5], (0, 1, 1, 1, 1)),
    decoder=stages(WIDTHS[:5], (1, 1, 1, 1, 0)),
    attention_head_dim=24,
    downsample="conv",
)
F64 = AutoencoderConfig(
    latent_channels=32,
    encoder=stages(WIDTHS[:7], (0, 1, 1, 1, 1, 1, 1)),
    decoder=stages(WIDTHS[:7], (0, 1, 1, 1, 1, 1, 1), norm="batch"),
    attention_head_dim=24,
    latent_scale=(0.4538,),
)
F128 = AutoencoderConfig(
    latent_channels=48,
    encoder=stages(WIDTHS, (0, 1, 1, 1, 1, 1, 1, 1)),
    decoder=stages(WIDTHS, (0, 1, 1, 1, 1, 1, 1, 1), norm="batch"),
    attention_head_dim=24,
    latent_scale=(0.3620,),
)
SMALL_AUTOENCODERS = {"sana": SANA, "mix": MIX, "f8": F8, "f16": F16, "f64": F64, "f128": F128}


@pytest.mark.parametrize("name", SMALL_AUTOENCODERS)
@torch.no_grad()
def test_the_autoencoder_encodes_and_decodes_as_diffusers_does(name: str) -> None:
    config = SMALL_AUTOENCODERS[name]
    theirs = filled(built(AutoencoderDC, autoencoder_config_to_diffusers(config)))
    ours = Autoencoder(config).eval()
    ours.load_state_dict(from_diffusers_autoencoder(config, theirs.state_dict()))
    # 2 and 3 latents a side run the attention that diffusers spells out, more of them the linear one.
    rows, columns = (2, 3) if config.stride > 16 else (5, 7)
    images = randn(2, 3, rows * config.stride, columns * config.stride, seed=1)
    latents = ours.encode(images)
    expected = theirs.encode(images).latent * theirs.config.scaling_factor
    assert latents.shape == (2, config.latent_channels, rows, columns) and latents.std() > 0.1
    torch.testing.assert_close(latents, expected, **EQUAL)
    torch.testing.assert_close(
        ours.decode(latents), theirs.decode(latents / theirs.config.scaling_factor).sample, **EQUAL
    )


@pytest.mark.parametrize("name", ["sana", "mix", "f64"])
@torch.no_grad()
def test_in_bfloat16_the_autoencoder_stays_as_near_as_that_of_diffusers(name: str) -> None:
    config = SMALL_AUTOENCODERS[name]
    theirs = filled(built(AutoencoderDC, autoencoder_config_to_diffusers(config))).bfloat16()
    ours = Autoencoder(config).eval()
    ours.load_state_dict(from_diffusers_autoencoder(config, theirs.state_dict()))
    latents = randn(1, config.latent_channels, 2, 3, seed=1)
    exact = ours.decode(latents)
    near = ours.bfloat16().decode(latents.bfloat16())
    other = theirs.decode((latents / theirs.config.scaling_factor).bfloat16()).sample
    assert near.dtype == other.dtype == torch.bfloat16
    assert 0 < off(near, exact) < IN_BFLOAT16
    assert off(near, exact) < 1.5 * off(other, exact)


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_a_published_autoencoder_fits_tensor_for_tensor(name: str) -> None:
    config = AUTOENCODERS[name]
    with torch.device("meta"):
        ours = Autoencoder(config)
        theirs = built(AutoencoderDC, autoencoder_config_to_diffusers(config))
    ours.load_state_dict(from_diffusers_autoencoder(config, theirs.state_dict()), assign=True)
    shapes = {key: tensor.shape for key, tensor in theirs.state_dict().items()}
    back = to_diffusers_autoencoder(config, ours.state_dict())
    assert {key: tensor.shape for key, tensor in back.items()} == shapes
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize("name", ["sana", "mix"])
def test_autoencoder_weights_come_back_bit_by_bit_through_a_file(name: str, tmp_path: Path) -> None:
    config = SMALL_AUTOENCODERS[name]
    theirs = filled(built(AutoencoderDC, autoencoder_config_to_diffusers(config)))
    own = from_diffusers_autoencoder(config, theirs.state_dict())
    save_file(dict(to_diffusers_autoencoder(config, own)), tmp_path / "back.safetensors")
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == theirs.state_dict().keys()
    for key, tensor in theirs.state_dict().items():
        torch.testing.assert_close(back[key], tensor, rtol=0, atol=0)


RESIDUAL, ATTENTIVE = "ResBlock", "EfficientViTBlock"
PUBLISHED_SANA = {
    "_class_name": "AutoencoderDC",
    "latent_channels": 32,
    "encoder_block_types": [RESIDUAL] * 3 + [ATTENTIVE] * 3,
    "decoder_block_types": [RESIDUAL] * 3 + [ATTENTIVE] * 3,
    "encoder_layers_per_block": [2, 2, 2, 3, 3, 3],
    "decoder_layers_per_block": [3, 3, 3, 3, 3, 3],
    "encoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
    "decoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
    "downsample_block_type": "conv",
    "upsample_block_type": "interpolate",
    "decoder_norm_types": "rms_norm",
    "decoder_act_fns": "silu",
    "scaling_factor": 0.41407,
}
PUBLISHED_MIX = {
    "latent_channels": 128,
    "encoder_block_types": [RESIDUAL] * 3 + [ATTENTIVE] * 4,
    "decoder_block_types": [RESIDUAL] * 3 + [ATTENTIVE] * 4,
    "encoder_block_out_channels": [128, 256, 512, 512, 1024, 1024, 2048],
    "decoder_block_out_channels": [128, 256, 512, 512, 1024, 1024, 2048],
    "encoder_layers_per_block": [0, 4, 8, 2, 2, 2, 2],
    "decoder_layers_per_block": [0, 5, 10, 2, 2, 2, 2],
    "encoder_qkv_multiscales": [[]] * 7,
    "decoder_qkv_multiscales": [[]] * 7,
    "decoder_norm_types": ["batch_norm"] * 3 + ["rms_norm"] * 4,
    "decoder_act_fns": ["relu"] * 3 + ["silu"] * 4,
    "scaling_factor": 0.4538,
}


def test_the_published_configuration_of_an_autoencoder_is_its_preset() -> None:
    assert autoencoder_config_from_diffusers(PUBLISHED_SANA) == AUTOENCODERS["dc-ae-f32c32-sana-1.0"]
    assert autoencoder_config_from_diffusers(PUBLISHED_MIX) == AUTOENCODERS["dc-ae-f64c128-mix-1.0"]


@pytest.mark.parametrize("config", [*AUTOENCODERS.values(), *SMALL_AUTOENCODERS.values()])
def test_the_configuration_of_an_autoencoder_comes_back(config: AutoencoderConfig) -> None:
    options = autoencoder_config_to_diffusers(config)
    assert autoencoder_config_from_diffusers(options) == config
    assert autoencoder_config_to_diffusers(autoencoder_config_from_diffusers(options)) == options


def test_what_diffusers_builds_from_nothing_is_understood() -> None:
    config = autoencoder_config_from_diffusers({})
    with torch.device("meta"):
        theirs = AutoencoderDC()
    from_diffusers_autoencoder(config, theirs.state_dict())


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"_class_name": "AutoencoderKL"}, "is of a AutoencoderKL; what fits here is a AutoencoderDC"),
        ({"sample_size": 32}, "options that are not known here: sample_size"),
        ({"in_channels": 4}, "in_channels=4 is not supported: only 3 is"),
        ({"latent_channels": None}, "latent_channels=None: it must be a number"),
        ({"decoder_layers_per_block": 3}, "decoder_layers_per_block=3: it must be a word or a list"),
        ({"decoder_layers_per_block": [3, 3]}, "decoder has 6 widths, but other numbers of depth"),
        (
            {"encoder_block_types": "Mamba"},
            "encoder_block_types='Mamba' is not supported: only 'ResBlock' or",
        ),
        ({"decoder_norm_types": "batch_norm"}, "decoder_norm_types of an EfficientViTBlock"),
        ({"decoder_act_fns": "gelu"}, "decoder_act_fns='gelu' is not supported: only 'silu' or 'relu' is"),
        ({"decoder_act_fns": ["silu"] * 5 + [[]]}, "decoder_act_fns=[] is not supported"),
        ({"encoder_out_shortcut": False}, "encoder_out_shortcut=False is not supported"),
        ({"decoder_in_shortcut": False}, "decoder_in_shortcut=False is not supported"),
        ({"decoder_conv_act_fn": "silu"}, "decoder_conv_act_fn='silu' is not supported"),
        ({"upsample_block_type": "bicubic"}, "upsample_block_type='bicubic' is not supported"),
        ({"encoder_layers_per_block": [2, 2, 0, 3, 3, 3]}, "encoder[2] has depth=0"),
    ],
)
def test_an_autoencoder_that_cannot_be_built_here_is_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        autoencoder_config_from_diffusers(PUBLISHED_SANA | changes)
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (
            {"latent_scale": (1.0,) * 15 + (2.0,)},
            "knows one scaling_factor for all latent channels and no shift",
        ),
        ({"latent_shift": (0.1,)}, "knows one scaling_factor for all latent channels and no shift"),
        ({"encoder": stages(WIDTHS[:6], (1,) * 6, norm="batch")}, "norm=batch and activation=relu cannot be"),
    ],
)
def test_an_autoencoder_that_diffusers_cannot_build_is_refused(
    changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        autoencoder_config_to_diffusers(differing(SANA, **changes))


def test_one_scale_repeated_per_channel_is_one_scale_to_diffusers() -> None:
    config = differing(SANA, latent_scale=(0.5,) * 16, latent_shift=(0.0,) * 16)
    assert autoencoder_config_to_diffusers(config)["scaling_factor"] == 0.5
