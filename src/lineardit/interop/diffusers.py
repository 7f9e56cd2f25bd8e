"""SANA transformers and DC-AEs as diffusers stores them: their tensors, in both directions.

Names are those of diffusers 0.42, which is never imported here.
"""

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

from lineardit.autoencoder.model import Autoencoder
from lineardit.config.models import AutoencoderConfig, TransformerConfig
from lineardit.interop.rename import Renaming, joined, nested, pointwise, renaming_of, same
from lineardit.interop.stored import LazyTensors
from lineardit.transformer.controlnet import ControlNet
from lineardit.transformer.model import Transformer

_GLUMBCONV = (
    pointwise("expand.weight", "conv_inverted.weight"),
    same("expand.bias", "conv_inverted.bias"),
    same("depthwise.{part}", "conv_depth.{part}"),
    pointwise("contract.weight", "conv_point.weight"),
)

_TRANSFORMER_BLOCK = (
    same("offset", "scale_shift_table"),
    joined("attention.to_qkv.weight", "attn1.to_q.weight", "attn1.to_k.weight", "attn1.to_v.weight"),
    same("attention.query_norm.weight", "attn1.norm_q.weight"),
    same("attention.key_norm.weight", "attn1.norm_k.weight"),
    same("attention.to_out.{part}", "attn1.to_out.0.{part}"),
    same("cross_attention.to_q.{part}", "attn2.to_q.{part}"),
    joined("cross_attention.to_kv.{part}", "attn2.to_k.{part}", "attn2.to_v.{part}"),
    same("cross_attention.query_norm.weight", "attn2.norm_q.weight"),
    same("cross_attention.key_norm.weight", "attn2.norm_k.weight"),
    same("cross_attention.to_out.{part}", "attn2.to_out.0.{part}"),
    *nested("feed_forward", "ff", _GLUMBCONV),
)

_TWO_LAYERS = (same("first.{part}", "linear_1.{part}"), same("second.{part}", "linear_2.{part}"))

_TRANSFORMER = (
    same("patchify.{part}", "patch_embed.proj.{part}"),
    same("conditioning.to_table.{part}", "time_embed.linear.{part}"),
    *nested("conditioning.guidance", "time_embed.guidance_embedder", _TWO_LAYERS),
    *nested("prompt_projection", "caption_projection", _TWO_LAYERS),
    same("prompt_projection.norm.weight", "caption_norm.weight"),
    *nested("blocks.{block}", "transformer_blocks.{block}", _TRANSFORMER_BLOCK),
    same("offset", "scale_shift_table"),
    same("to_velocity.{part}", "proj_out.{part}"),
)

_CONTROLNET = (
    *(rule for rule in _TRANSFORMER if not rule.own.startswith(("offset", "to_velocity"))),
    same("control_in.{part}", "input_block.{part}"),
    same("outs.{block}.{part}", "controlnet_blocks.{block}.{part}"),
)

_AUTOENCODER_BLOCK = (
    same("conv.{part}", "conv.{part}"),
    same("first.{part}", "conv1.{part}"),
    same("second.{part}", "conv2.{part}"),
    same("norm.{part}", "norm.{part}"),
    joined("attention.to_qkv.weight", "attn.to_q.weight", "attn.to_k.weight", "attn.to_v.weight"),
    same("attention.scales.{scale}.0.weight", "attn.to_qkv_multiscale.{scale}.proj_in.weight"),
    same("attention.scales.{scale}.1.weight", "attn.to_qkv_multiscale.{scale}.proj_out.weight"),
    same("attention.to_out.weight", "attn.to_out.weight"),
    same("attention.norm.{part}", "attn.norm_out.{part}"),
    *nested("feed_forward", "conv_out", _GLUMBCONV),
    same("feed_forward_norm.{part}", "conv_out.norm.{part}"),
)

# A stem or head that changes the resolution has its convolution one level deeper, on both sides.
_AUTOENCODER = (
    same("encoder.stem.{part}", "encoder.conv_in.{part}"),
    same("encoder.stem.conv.{part}", "encoder.conv_in.conv.{part}"),
    *nested("encoder.stages.{stage}.{block}", "encoder.down_blocks.{stage}.{block}", _AUTOENCODER_BLOCK),
    same("encoder.head.{part}", "encoder.conv_out.{part}"),
    same("decoder.stem.{part}", "decoder.conv_in.{part}"),
    same("decoder.norm.{part}", "decoder.norm_out.{part}"),
    same("decoder.head.{part}", "decoder.conv_out.{part}"),
    same("decoder.head.conv.{part}", "decoder.conv_out.conv.{part}"),
)


def from_diffusers_transformer(
    config: TransformerConfig, tensors: Mapping[str, Tensor], source: object = "the checkpoint"
) -> LazyTensors:
    """The tensors of diffusers' transformer under the names of `Transformer(config)`.

    Raises:
        CheckpointError: lists every missing, unknown and differently shaped tensor.
    """
    return transformer_renaming(config).to_own(tensors, source)


def to_diffusers_transformer(
    config: TransformerConfig, tensors: Mapping[str, Tensor], source: object = "the state"
) -> LazyTensors:
    """The tensors of `Transformer(config)` under the names of diffusers' transformer.

    Raises:
        CheckpointError: the tensors are not those of `Transformer(config)`.
    """
    return transformer_renaming(config).to_foreign(tensors, source)


def from_diffusers_autoencoder(
    config: AutoencoderConfig, tensors: Mapping[str, Tensor], source: object = "the checkpoint"
) -> LazyTensors:
    """The tensors of diffusers' autoencoder under the names of `Autoencoder(config)`.

    Raises:
        CheckpointError: lists every missing, unknown and differently shaped tensor.
    """
    return autoencoder_renaming(config).to_own(tensors, source)


def to_diffusers_autoencoder(
    config: AutoencoderConfig, tensors: Mapping[str, Tensor], source: object = "the state"
) -> LazyTensors:
    """The tensors of `Autoencoder(config)` under the names of diffusers' autoencoder.

    Raises:
        CheckpointError: the tensors are not those of `Autoencoder(config)`.
    """
    return autoencoder_renaming(config).to_foreign(tensors, source)


@lru_cache(maxsize=8)
def transformer_renaming(config: TransformerConfig) -> Renaming:
    """Every tensor of `Transformer(config)` with its names in diffusers."""
    with torch.device("meta"):
        network = Transformer(config)
    place = "time_embed" if config.guidance_embedding else "time_embed.emb"
    time = nested("conditioning.time", f"{place}.timestep_embedder", _TWO_LAYERS)
    return renaming_of(network, [*_TRANSFORMER, *time])


@lru_cache(maxsize=8)
def controlnet_renaming(config: TransformerConfig) -> Renaming:
    """Every tensor of `ControlNet(config)` with its names in diffusers."""
    with torch.device("meta"):
        network = ControlNet(config)
    time = nested("conditioning.time", "time_embed.emb.timestep_embedder", _TWO_LAYERS)
    return renaming_of(network, [*_CONTROLNET, *time])


@lru_cache(maxsize=8)
def autoencoder_renaming(config: AutoencoderConfig) -> Renaming:
    """Every tensor of `Autoencoder(config)` with its names in diffusers."""
    with torch.device("meta"):
        network = Autoencoder(config)
    rules = list(_AUTOENCODER)
    # Ours run from the lowest resolution to the highest, diffusers numbers them the other way round.
    last = len(config.decoder) - 1
    for stage in range(last + 1):
        ours, theirs = f"decoder.stages.{stage}.{{block}}", f"decoder.up_blocks.{last - stage}.{{block}}"
        rules += nested(ours, theirs, _AUTOENCODER_BLOCK)
    return renaming_of(network, rules)
