"""How much memory drawing a picture takes beside the weights, from the shapes of the networks alone.

An estimate of what lives at once in the largest layer; kernels may need room of their own.
"""

import torch

from lineardit.autoencoder.blocks import GLU_RATIO
from lineardit.config.models import AutoencoderConfig, StageConfig, TransformerConfig


def activation_bytes(dtype: torch.dtype) -> int:
    """Bytes of a number between layers: with float16 weights it is a float32 (`nn.wide`)."""
    return 4 if dtype == torch.float16 else dtype.itemsize


def transformer_bytes(config: TransformerConfig, height: int, width: int, item: int) -> int:
    """Of one velocity at latents of (height, width), with `item` bytes a number.

    The feed-forward decides: the hidden tokens before and after its depthwise convolution, both twice as
    wide as the hidden width, the gate and what it lets through, beside three times the tokens themselves.
    """
    tokens = (height // config.patch_size) * (width // config.patch_size)
    return tokens * (3 * config.width + 6 * config.hidden_width) * item


def decoder_bytes(config: AutoencoderConfig, height: int, width: int, item: int) -> int:
    """Of decoding one picture of (height, width) pixels: the largest stage, with `item` bytes a number."""
    largest = 0
    for level, stage in enumerate(config.decoder):
        pixels = (height >> level) * (width >> level)
        largest = max(largest, pixels * _channels(stage) * item)
    return largest


def _channels(stage: StageConfig) -> int:
    """Numbers per pixel that live at once in one block."""
    if not stage.depth:
        return 0
    if stage.block == "residual":
        return 5 * stage.width
    return (3 + 6 * GLU_RATIO) * stage.width
