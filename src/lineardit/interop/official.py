"""SANA transformers as NVlabs/Sana stores them and DC-AEs as efficientvit does, in both directions.

Their files hold tensors without a configuration, which is read off the names and shapes.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from lineardit.autoencoder.model import Autoencoder
from lineardit.config.models import AutoencoderConfig, TransformerConfig
from lineardit.config.presets import AUTOENCODERS, TRANSFORMERS, differing
from lineardit.errors import CheckpointError
from lineardit.interop.rename import Renaming, Rule, nested, pointwise, renaming_of, same
from lineardit.interop.stored import LazyTensors, Stored, joined, stored_of
from lineardit.nn.embedding import grid_positions
from lineardit.transformer.controlnet import ControlNet
from lineardit.transformer.model import Transformer

TRANSFORMER_MARK = "attention_y_norm.weight"
"""A tensor that every official transformer has, and nothing else."""
AUTOENCODER_MARK = "decoder.project_in.main.conv.weight"
"""The same of official autoencoders."""

POSITIONS = "pos_embed"
SPARE = ("y_embedder.y_embedding", "logvar_linear.weight", "logvar_linear.bias")
"""What training needs and drawing does not: the learned embedding of no prompt, and a weight of the loss."""
CONTROL = "controlnet."
"""What the names of a ControlNet begin with in the file of its transformer."""

HEAD_DIM = 32
_GUIDANCE = "cfg_embedder.mlp.0.weight"
_QK_NORM = "blocks.0.attn.q_norm.weight"

_GLUMBCONV = (
    pointwise("expand.weight", "inverted_conv.conv.weight"),
    same("expand.bias", "inverted_conv.conv.bias"),
    same("depthwise.{part}", "depth_conv.conv.{part}"),
    pointwise("contract.weight", "point_conv.conv.weight"),
)

_TRANSFORMER_BLOCK = (
    same("offset", "scale_shift_table"),
    same("attention.to_qkv.weight", "attn.qkv.weight"),
    same("attention.query_norm.weight", "attn.q_norm.weight"),
    same("attention.key_norm.weight", "attn.k_norm.weight"),
    same("attention.to_out.{part}", "attn.proj.{part}"),
    same("cross_attention.to_q.{part}", "cross_attn.q_linear.{part}"),
    same("cross_attention.to_kv.{part}", "cross_attn.kv_linear.{part}"),
    same("cross_attention.query_norm.weight", "cross_attn.q_norm.weight"),
    same("cross_attention.key_norm.weight", "cross_attn.k_norm.weight"),
    same("cross_attention.to_out.{part}", "cross_attn.proj.{part}"),
    *nested("feed_forward", "mlp", _GLUMBCONV),
)

_SCALAR = (same("first.{part}", "mlp.0.{part}"), same("second.{part}", "mlp.2.{part}"))

_TRANSFORMER = (
    same("patchify.{part}", "x_embedder.proj.{part}"),
    *nested("conditioning.time", "t_embedder", _SCALAR),
    *nested("conditioning.guidance", "cfg_embedder", _SCALAR),
    same("conditioning.to_table.{part}", "t_block.1.{part}"),
    same("prompt_projection.first.{part}", "y_embedder.y_proj.fc1.{part}"),
    same("prompt_projection.second.{part}", "y_embedder.y_proj.fc2.{part}"),
    same("prompt_projection.norm.weight", "attention_y_norm.weight"),
    *nested("blocks.{block}", "blocks.{block}", _TRANSFORMER_BLOCK),
    same("offset", "final_layer.scale_shift_table"),
    same("to_velocity.{part}", "final_layer.linear.{part}"),
)

_EMBEDDERS = tuple(
    rule for rule in _TRANSFORMER if not rule.own.startswith(("offset", "blocks", "to_velocity"))
)
"""What the two branches of a ControlNet's file share."""

_CONTROLNET = (
    *_EMBEDDERS,
    same("control_in.{part}", f"{CONTROL}0.before_proj.{{part}}"),
    *nested("blocks.{block}", f"{CONTROL}{{block}}.copied_block", _TRANSFORMER_BLOCK),
    same("outs.{block}.{part}", f"{CONTROL}{{block}}.after_proj.{{part}}"),
)

_AUTOENCODER_BLOCK = (
    same("first.{part}", "main.conv1.conv.{part}"),
    same("second.{part}", "main.conv2.conv.{part}"),
    same("norm.{part}", "main.conv2.norm.{part}"),
    pointwise("attention.to_qkv.weight", "context_module.main.qkv.conv.weight"),
    same("attention.scales.{scale}.{layer}.weight", "context_module.main.aggreg.{scale}.{layer}.weight"),
    pointwise("attention.to_out.weight", "context_module.main.proj.conv.weight"),
    same("attention.norm.{part}", "context_module.main.proj.norm.{part}"),
    *nested("feed_forward", "local_module.main", _GLUMBCONV),
    same("feed_forward_norm.{part}", "local_module.main.point_conv.norm.{part}"),
)

_AUTOENCODER = (
    same("encoder.stem.{part}", "encoder.project_in.conv.{part}"),
    same("encoder.head.{part}", "encoder.project_out.main.op_list.0.conv.{part}"),
    same("decoder.stem.{part}", "decoder.project_in.main.conv.{part}"),
    same("decoder.norm.{part}", "decoder.project_out.op_list.0.{part}"),
    same("decoder.head.{part}", "decoder.project_out.op_list.2.conv.{part}"),
    same("decoder.head.conv.{part}", "decoder.project_out.op_list.2.conv.conv.{part}"),
)


class Understood(NamedTuple):
    """An official transformer: what it is built from, its tensors here, and those that are only kept."""

    config: TransformerConfig
    tensors: LazyTensors
    spare: LazyTensors
    """Tensors that drawing has no use for, by their names there."""


def from_official_transformer(
    tensors: Mapping[str, Tensor], source: object, config: TransformerConfig | None = None
) -> Understood:
    """Tensors of NVlabs/Sana under our names, for `config` or for what their names and shapes say.

    Raises:
        CheckpointError: no published SANA has such shapes, or lists every tensor that does not fit.
    """
    config = config or guess_transformer(tensors, source)
    stored = stored_of(tensors)
    every = LazyTensors(stored, tensors.__getitem__)
    # Positions follow from the configuration.
    own = every.only(name for name in stored if name not in (*SPARE, POSITIONS))
    spare = every.only(name for name in SPARE if name in stored)
    return Understood(config, transformer_renaming(config).to_own(own, source), spare)


def to_official_transformer(
    config: TransformerConfig,
    tensors: Mapping[str, Tensor],
    source: object = "the state",
    spare: Mapping[str, Tensor] = MappingProxyType({}),
) -> LazyTensors:
    """The tensors of `Transformer(config)` under the names of NVlabs/Sana, and those that were only kept.

    Without `spare` there is no embedding of no prompt: the official code puts its own there when it loads.

    Raises:
        CheckpointError: the tensors are not those of `Transformer(config)`.
    """
    foreign = transformer_renaming(config).to_foreign(tensors, source)
    more = dict(spare) if config.position == "none" else {**spare, POSITIONS: _positions(config)}
    return joined(foreign, more)


def controlnet_of(tensors: LazyTensors, config: TransformerConfig, source: object) -> Understood:
    """The ControlNet in an official file, whose transformer has `config`; the embedders are those of both.

    Raises:
        CheckpointError: lists every tensor that does not fit.
    """
    depth = len({name.split(".")[1] for name in tensors if name.startswith(CONTROL)})
    config = TransformerConfig(**config.model_dump() | {"depth": depth, "position": "none"})
    renaming = controlnet_renaming(config)
    own = tensors.only(
        name for name in tensors if name.startswith(CONTROL) or name in renaming.foreign_shapes
    )
    return Understood(config, renaming.to_own(own, source), tensors.only(()))


def with_controlnet(
    transformer: LazyTensors, config: TransformerConfig, tensors: Mapping[str, Tensor], source: object
) -> LazyTensors:
    """An official transformer and the ControlNet that shares its embedders, as one file has them.

    Raises:
        CheckpointError: the tensors are not those of `ControlNet(config)`, or their embedders differ.
    """
    foreign = controlnet_renaming(config).to_foreign(tensors, source)
    shared = [name for name in foreign if not name.startswith(CONTROL)]
    unlike = [name for name in shared if not torch.equal(foreign[name], transformer[name])]
    if unlike:
        raise CheckpointError(
            f"{source}: an official file has one {unlike[0]} for the transformer and its ControlNet, but "
            "here they differ. It can be written as native or diffusers."
        )
    return joined(transformer, foreign.only(name for name in foreign if name.startswith(CONTROL)))


def guess_transformer(tensors: Mapping[str, Tensor], source: object) -> TransformerConfig:
    """The configuration that an official file does not state, from the names and shapes of its tensors.

    Raises:
        CheckpointError: they are not a SANA transformer's, or of a width that was never published.
    """
    stored = stored_of(tensors)
    patchify = _shape(stored, "x_embedder.proj.weight", source)
    text = _shape(stored, "y_embedder.y_proj.fc1.weight", source)
    hidden = _shape(stored, "blocks.0.mlp.inverted_conv.conv.weight", source)
    width = patchify[0]
    known = {preset.width: preset.cross_head_dim for preset in TRANSFORMERS.values()}
    if width not in known:
        widths = " and ".join(map(str, sorted(known)))
        raise CheckpointError(
            f"{source} is a transformer of width {width}, and its tensors do not tell how many heads it has. "
            f"Published are {widths}."
        )
    guidance = _GUIDANCE in stored
    config = TransformerConfig(
        latent_channels=patchify[1],
        patch_size=patchify[2],
        depth=len({name.split(".")[1] for name in stored if name.startswith("blocks.")}),
        width=width,
        head_dim=HEAD_DIM,
        cross_head_dim=known[width],
        feed_forward_ratio=hidden[0] / 2 / width,
        text_width=text[1],
        qk_norm=_QK_NORM in stored,
        guidance_embedding=guidance,
        time_scale=1.0 if guidance else 1000.0,
    )
    return _with_positions(config, tensors, source) if POSITIONS in stored else config


def from_official_autoencoder(
    config: AutoencoderConfig, tensors: Mapping[str, Tensor], source: object = "the checkpoint"
) -> LazyTensors:
    """The tensors of efficientvit's DC-AE under the names of `Autoencoder(config)`.

    Raises:
        CheckpointError: lists every missing, unknown and differently shaped tensor.
    """
    return autoencoder_renaming(config).to_own(tensors, source)


def to_official_autoencoder(
    config: AutoencoderConfig, tensors: Mapping[str, Tensor], source: object = "the state"
) -> LazyTensors:
    """The tensors of `Autoencoder(config)` under the names of efficientvit's DC-AE.

    Raises:
        CheckpointError: the tensors are not those of `Autoencoder(config)`.
    """
    return autoencoder_renaming(config).to_foreign(tensors, source)


def guess_autoencoder(tensors: Mapping[str, Tensor], source: object, hint: str = "") -> AutoencoderConfig:
    """The published DC-AE that has just these names and shapes. `hint` is any text that may name it.

    Raises:
        CheckpointError: none has, or several that differ in the scale of their latents and none is named.
    """
    stored = stored_of(tensors)
    latent_channels = _shape(stored, AUTOENCODER_MARK, source)[1]
    shapes = {name: each.shape for name, each in stored.items()}
    fitting = {
        name: config
        for name, config in AUTOENCODERS.items()
        if config.latent_channels == latent_channels
        and {key: tuple(shape) for key, shape in autoencoder_renaming(config).foreign_shapes.items()}
        == shapes
    }
    if not fitting:
        raise CheckpointError(
            f"{source} is a DC-AE with {latent_channels} latent channels, but none that was published. "
            f"Known are {', '.join(AUTOENCODERS)}."
        )
    named = {name: config for name, config in fitting.items() if name in hint} or fitting
    if len(set(named.values())) > 1:
        raise CheckpointError(
            f"{source} may be {' or '.join(named)}, which differ only in the scale of their latents. "
            "Put the name of the right one into the name of the file or its folder."
        )
    return next(iter(named.values()))


@lru_cache(maxsize=8)
def transformer_renaming(config: TransformerConfig) -> Renaming:
    """Every tensor of `Transformer(config)` with its name in NVlabs/Sana."""
    with torch.device("meta"):
        return renaming_of(Transformer(config), _TRANSFORMER)


@lru_cache(maxsize=8)
def controlnet_renaming(config: TransformerConfig) -> Renaming:
    """Every tensor of `ControlNet(config)` with its name in NVlabs/Sana."""
    with torch.device("meta"):
        return renaming_of(ControlNet(config), _CONTROLNET)


@lru_cache(maxsize=8)
def autoencoder_renaming(config: AutoencoderConfig) -> Renaming:
    """Every tensor of `Autoencoder(config)` with its name in efficientvit."""
    # What changes the resolution has its convolution one level deeper, but for a plain strided one.
    down = "conv" if config.downsample == "conv" else "conv.conv"
    rules: list[Rule] = [
        *_AUTOENCODER,
        same("encoder.stem.conv.{part}", f"encoder.project_in.{down}.{{part}}"),
        *_stages("encoder", down, range(len(config.encoder))),
        *_stages("decoder", "conv.conv", range(len(config.decoder))),
    ]
    with torch.device("meta"):
        return renaming_of(Autoencoder(config), rules)


def _stages(side: str, resampling: str, stages: Sequence[int]) -> list[Rule]:
    rules: list[Rule] = []
    for stage in stages:
        # Ours run from the latents to the pixels, theirs are numbered from the pixels on.
        ours = stage if side == "encoder" else len(stages) - 1 - stage
        block = (*_AUTOENCODER_BLOCK, same("conv.{part}", f"main.{resampling}.{{part}}"))
        rules += nested(f"{side}.stages.{ours}.{{block}}", f"{side}.stages.{stage}.op_list.{{block}}", block)
    return rules


def _positions(config: TransformerConfig) -> Tensor:
    base = config.position_base
    return grid_positions(base, base, config.width, base=base, interpolation=config.position_interpolation)


def _with_positions(
    config: TransformerConfig, tensors: Mapping[str, Tensor], source: object
) -> TransformerConfig:
    """Whether positions are added and how they are stretched; a buffer of zeros says that none are."""
    given = tensors[POSITIONS].float()
    base = round(given.shape[1] ** 0.5)
    if not given.any():
        return config if base**2 != given.shape[1] else differing(config, position_base=base)
    for interpolation in (1.0, 2.0):
        changes = {
            "position": "sincos",
            "position_base": base,
            "position_interpolation": interpolation,
        }
        candidate = TransformerConfig(**config.model_dump() | changes)
        # bfloat16 keeps 8 bits of a sine.
        if given.shape[1] == base**2 and torch.allclose(_positions(candidate), given, rtol=0, atol=1e-2):
            return candidate
    raise CheckpointError(f"{source} has positions that are neither those of SANA at 2K nor at 4K.")


def _shape(stored: Mapping[str, Stored], name: str, source: object) -> tuple[int, ...]:
    if name not in stored:
        raise CheckpointError(f"{source} lacks {name}: it is no whole SANA transformer or DC-AE.")
    return stored[name].shape
