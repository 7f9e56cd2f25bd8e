"""SANA transformers and DC-AEs as diffusers describes them: their config.json, in both directions.

Options and defaults are those of diffusers 0.42, which is never imported here.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from lineardit.config.models import AutoencoderConfig, Config, StageConfig, TransformerConfig
from lineardit.errors import CheckpointError, ConfigError

C = TypeVar("C", bound=Config)

PIPELINE_INDEX, WEIGHTS_STEM = "model_index.json", "diffusion_pytorch_model"
TRANSFORMER_CLASS = "SanaTransformer2DModel"
CONTROLNET_CLASS = "SanaControlNetModel"
AUTOENCODER_CLASS = "AutoencoderDC"

TRANSFORMER_DEFAULTS: Mapping[str, Any] = {
    "in_channels": 32,
    "out_channels": 32,
    "num_attention_heads": 70,
    "attention_head_dim": 32,
    "num_layers": 20,
    "num_cross_attention_heads": 20,
    "cross_attention_head_dim": 112,
    "cross_attention_dim": 2240,
    "caption_channels": 2304,
    "mlp_ratio": 2.5,
    "dropout": 0.0,
    "attention_bias": False,
    "sample_size": 32,
    "patch_size": 1,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "interpolation_scale": None,
    "guidance_embeds": False,
    "guidance_embeds_scale": 0.1,
    "qk_norm": None,
    "timestep_scale": 1.0,
}
"""What an option is that a configuration leaves out, as older ones do."""

_ONLY_OF_TRANSFORMERS = {"guidance_embeds", "guidance_embeds_scale", "qk_norm", "timestep_scale"}
CONTROLNET_DEFAULTS: Mapping[str, Any] = {
    key: value for key, value in TRANSFORMER_DEFAULTS.items() if key not in _ONLY_OF_TRANSFORMERS
} | {"num_layers": 7}
"""As `TRANSFORMER_DEFAULTS`."""

AUTOENCODER_DEFAULTS: Mapping[str, Any] = {
    "in_channels": 3,
    "latent_channels": 32,
    "attention_head_dim": 32,
    "encoder_block_types": "ResBlock",
    "decoder_block_types": "ResBlock",
    "encoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
    "decoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
    "encoder_layers_per_block": (2, 2, 2, 3, 3, 3),
    "decoder_layers_per_block": (3, 3, 3, 3, 3, 3),
    "encoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
    "decoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
    "upsample_block_type": "pixel_shuffle",
    "downsample_block_type": "pixel_unshuffle",
    "decoder_norm_types": "rms_norm",
    "decoder_act_fns": "silu",
    "encoder_out_shortcut": True,
    "decoder_in_shortcut": True,
    "decoder_conv_act_fn": "relu",
    "scaling_factor": 1.0,
}
"""As `TRANSFORMER_DEFAULTS`."""

_QK_NORM = "rms_norm_across_heads"
_TRAINING_TIMES = 1000.0
_BLOCKS = {"ResBlock": "residual", "EfficientViTBlock": "efficientvit"}
_NORMS = {"rms_norm": "rms", "batch_norm": "batch"}
_ACTIVATIONS = {"silu": "silu", "relu": "relu"}
_DOWN = {"pixel_unshuffle": "pixel_unshuffle", "conv": "conv", "Conv": "conv"}
_UP = {"pixel_shuffle": "pixel_shuffle", "interpolate": "interpolate"}
_WORDS = (str | list | tuple, "a word or a list")


def transformer_config_from_diffusers(options: Mapping[str, Any]) -> TransformerConfig:
    """What a transformer's config.json of diffusers says.

    Raises:
        CheckpointError: it is another class's, or has an option that no published SANA uses.
    """
    given = _complete(options, TRANSFORMER_CLASS, TRANSFORMER_DEFAULTS)
    width = given["num_attention_heads"] * given["attention_head_dim"]
    fixed = {
        "out_channels": (given["in_channels"], None),
        "cross_attention_dim": (width,),
        "qk_norm": (None, _QK_NORM),
        "dropout": (0.0,),
        "attention_bias": (False,),
        "norm_elementwise_affine": (False,),
        "norm_eps": (TRANSFORMER_DEFAULTS["norm_eps"],),
    }
    for key, values in fixed.items():
        _choose(TRANSFORMER_CLASS, key, given[key], {value: value for value in values})
    cross_width = given["num_cross_attention_heads"] * given["cross_attention_head_dim"]
    if cross_width != width:
        raise CheckpointError(
            f"{TRANSFORMER_CLASS}: the cross-attention heads are {cross_width} wide together, those of "
            f"self-attention {width}. They must be the same."
        )
    interpolation = given["interpolation_scale"]
    return _built(
        TransformerConfig,
        TRANSFORMER_CLASS,
        latent_channels=given["in_channels"],
        patch_size=given["patch_size"],
        depth=given["num_layers"],
        width=width,
        head_dim=given["attention_head_dim"],
        cross_head_dim=given["cross_attention_head_dim"],
        feed_forward_ratio=given["mlp_ratio"],
        text_width=given["caption_channels"],
        qk_norm=given["qk_norm"] is not None,
        guidance_embedding=given["guidance_embeds"],
        guidance_embedding_scale=given["guidance_embeds_scale"],
        position="none" if interpolation is None else "sincos",
        position_base=given["sample_size"] // max(given["patch_size"], 1),
        position_interpolation=1.0 if interpolation is None else interpolation,
        time_scale=1.0 if given["guidance_embeds"] else _TRAINING_TIMES * given["timestep_scale"],
    )


def transformer_config_to_diffusers(config: TransformerConfig) -> dict[str, Any]:
    """The config.json with which diffusers builds the same transformer.

    Raises:
        ConfigError: diffusers could not run the model.
    """
    # diffusers' Sprint pipeline hands the time in [0, 1] over as it is, whatever timestep_scale says.
    if config.guidance_embedding and config.time_scale != 1:
        raise ConfigError(
            f"time_scale={config.time_scale} with guidance_embedding cannot be told to diffusers, which "
            "shows such models the time itself. Use time_scale=1."
        )
    positions = {"none": None, "sincos": config.position_interpolation}
    return {
        "_class_name": TRANSFORMER_CLASS,
        **TRANSFORMER_DEFAULTS,
        "in_channels": config.latent_channels,
        "out_channels": config.latent_channels,
        "num_attention_heads": config.width // config.head_dim,
        "attention_head_dim": config.head_dim,
        "num_layers": config.depth,
        "num_cross_attention_heads": config.width // config.cross_head_dim,
        "cross_attention_head_dim": config.cross_head_dim,
        "cross_attention_dim": config.width,
        "caption_channels": config.text_width,
        "mlp_ratio": config.feed_forward_ratio,
        "sample_size": config.position_base * config.patch_size,
        "patch_size": config.patch_size,
        "interpolation_scale": positions[config.position],
        "guidance_embeds": config.guidance_embedding,
        "guidance_embeds_scale": config.guidance_embedding_scale,
        "qk_norm": _QK_NORM if config.qk_norm else None,
        "timestep_scale": 1.0 if config.guidance_embedding else config.time_scale / _TRAINING_TIMES,
    }


def controlnet_config_from_diffusers(options: Mapping[str, Any]) -> TransformerConfig:
    """What a ControlNet's config.json of diffusers says.

    Raises:
        CheckpointError: it is another class's, or has an option that no published ControlNet uses.
    """
    given = _complete(options, CONTROLNET_CLASS, CONTROLNET_DEFAULTS)
    return transformer_config_from_diffusers(given)


def controlnet_config_to_diffusers(config: TransformerConfig) -> dict[str, Any]:
    """The config.json with which diffusers builds the same ControlNet."""
    options = transformer_config_to_diffusers(config)
    known = {key: value for key, value in options.items() if key in CONTROLNET_DEFAULTS}
    return {"_class_name": CONTROLNET_CLASS, **known}


def autoencoder_config_from_diffusers(options: Mapping[str, Any]) -> AutoencoderConfig:
    """What an autoencoder's config.json of diffusers says.

    Raises:
        CheckpointError: it is another class's, or has an option that no published DC-AE uses.
    """
    given = _complete(options, AUTOENCODER_CLASS, AUTOENCODER_DEFAULTS)
    for key in ("in_channels", "encoder_out_shortcut", "decoder_in_shortcut", "decoder_conv_act_fn"):
        only = AUTOENCODER_DEFAULTS[key]
        _choose(AUTOENCODER_CLASS, key, given[key], {only: only})
    return _built(
        AutoencoderConfig,
        AUTOENCODER_CLASS,
        latent_channels=given["latent_channels"],
        encoder=_stages(given, "encoder", norms="rms_norm", activations="silu"),
        decoder=_stages(
            given, "decoder", norms=given["decoder_norm_types"], activations=given["decoder_act_fns"]
        ),
        attention_head_dim=given["attention_head_dim"],
        downsample=_choose(AUTOENCODER_CLASS, "downsample_block_type", given["downsample_block_type"], _DOWN),
        upsample=_choose(AUTOENCODER_CLASS, "upsample_block_type", given["upsample_block_type"], _UP),
        latent_scale=(given["scaling_factor"],),
    )


def autoencoder_config_to_diffusers(config: AutoencoderConfig) -> dict[str, Any]:
    """The config.json with which diffusers builds the same autoencoder.

    Raises:
        ConfigError: latents scaled per channel or shifted, or an encoder that diffusers cannot build.
    """
    if len(set(config.latent_scale)) > 1 or any(config.latent_shift):
        raise ConfigError(
            f"{AUTOENCODER_CLASS} knows one scaling_factor for all latent channels and no shift. "
            "Use one latent_scale and latent_shift=(0.0,)."
        )
    for stage in config.encoder:
        if stage.block == "residual" and (stage.norm, stage.activation) != ("rms", "silu"):
            raise ConfigError(
                f"an encoder stage with norm={stage.norm} and activation={stage.activation} cannot be told "
                f"to {AUTOENCODER_CLASS}, whose encoders have norm=rms and activation=silu."
            )
    options = {"_class_name": AUTOENCODER_CLASS, **AUTOENCODER_DEFAULTS}
    for side, stages in (("encoder", config.encoder), ("decoder", config.decoder)):
        options[f"{side}_block_types"] = [_name_of(stage.block, _BLOCKS) for stage in stages]
        options[f"{side}_block_out_channels"] = [stage.width for stage in stages]
        options[f"{side}_layers_per_block"] = [stage.depth for stage in stages]
        options[f"{side}_qkv_multiscales"] = [list(stage.kernels) for stage in stages]
    return options | {
        "latent_channels": config.latent_channels,
        "attention_head_dim": config.attention_head_dim,
        "upsample_block_type": config.upsample,
        "downsample_block_type": config.downsample,
        "decoder_norm_types": [
            "rms_norm" if stage.block == "efficientvit" else _name_of(stage.norm, _NORMS)
            for stage in config.decoder
        ],
        "decoder_act_fns": [stage.activation for stage in config.decoder],
        "scaling_factor": config.latent_scale[0],
    }


def _complete(options: Mapping[str, Any], class_name: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """All options, after checking that they are this class's and that numbers are numbers."""
    found = options.get("_class_name", class_name)
    if found != class_name:
        raise CheckpointError(f"the configuration is of a {found}; what fits here is a {class_name}.")
    given = {key: value for key, value in options.items() if not key.startswith("_")}
    unknown = [key for key in given if key not in defaults]
    if unknown:
        raise CheckpointError(f"{class_name} has options that are not known here: {', '.join(unknown)}.")
    complete = {**defaults, **given}
    for key, default in defaults.items():
        value = complete[key]
        kind, name = (int | float, "a number") if isinstance(default, int | float) else _WORDS
        optional = default is None or key == "out_channels"
        if not isinstance(value, kind) and not optional:
            raise CheckpointError(f"{class_name} has {key}={value!r}: it must be {name}.")
    return complete


def _choose(class_name: str, key: str, value: Any, choices: Mapping[Any, Any]) -> Any:
    """What a foreign value is called here."""
    try:
        return choices[value]
    except (KeyError, TypeError):
        supported = " or ".join(repr(choice) for choice in choices)
        raise CheckpointError(
            f"{class_name} with {key}={value!r} is not supported: only {supported} is."
        ) from None


def _name_of(value: str, names: Mapping[str, str]) -> str:
    return next(foreign for foreign, own in names.items() if own == value)


def _stages(given: Mapping[str, Any], side: str, *, norms: Any, activations: Any) -> tuple[StageConfig, ...]:
    columns = {
        "width": given[f"{side}_block_out_channels"],
        "depth": given[f"{side}_layers_per_block"],
        "block": given[f"{side}_block_types"],
        "kernels": given[f"{side}_qkv_multiscales"],
        "norm": norms,
        "activation": activations,
    }
    count = len(columns["width"])
    spread = {
        key: [value] * count if isinstance(value, str) else list(value) for key, value in columns.items()
    }
    uneven = [key for key, values in spread.items() if len(values) != count]
    if uneven:
        raise CheckpointError(
            f"{AUTOENCODER_CLASS}: the {side} has {count} widths, but other numbers of {', '.join(uneven)}."
        )
    stages = []
    for row in zip(*spread.values(), strict=True):
        options: dict[str, Any] = dict(zip(spread, row, strict=True))
        block = _choose(AUTOENCODER_CLASS, f"{side}_block_types", options["block"], _BLOCKS)
        norm = _choose(AUTOENCODER_CLASS, f"{side}_norm_types", options["norm"], _NORMS)
        if block == "efficientvit":
            _choose(AUTOENCODER_CLASS, f"{side}_norm_types of an EfficientViTBlock", norm, {"rms": "rms"})
        activation = _choose(AUTOENCODER_CLASS, f"{side}_act_fns", options["activation"], _ACTIVATIONS)
        options |= {"block": block, "norm": norm, "activation": activation}
        stages.append(_built(StageConfig, AUTOENCODER_CLASS, **options))
    return tuple(stages)


def _built(kind: type[C], class_name: str, **fields: Any) -> C:
    try:
        return kind(**fields)
    except ConfigError as error:
        raise CheckpointError(f"{class_name} with a configuration that does not hold: {error}") from None
