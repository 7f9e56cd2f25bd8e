"""How much memory drawing a picture takes beside the weights, and in bands.

The networks run once on tensors that have shapes and no numbers, and what lives at once is counted. Kernels
may need some room of their own.
"""

from functools import lru_cache
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from lineardit.autoencoder.bands import decode_in_bands, encode_in_bands
from lineardit.autoencoder.blocks import PIXEL_CHANNELS
from lineardit.autoencoder.model import AnyAutoencoderConfig, Autoencoder
from lineardit.config.article import ArticleConfig
from lineardit.config.models import TransformerConfig
from lineardit.kernels import native
from lineardit.kernels.live import peak_bytes
from lineardit.transformer.controlnet import ControlNet
from lineardit.transformer.denoiser import Denoiser, DenoiserConfig, denoiser_of

PROMPT_TOKENS = 300
"""At most, of the published models."""
CACHED = 6
"""What a step cache holds or makes beside a step, in tokens of all pictures: those before the first block and
after it, what that added and what the middle added, of one branch alone, too, and a difference."""
LAYERS = 3
"""Blocks that are run: all are alike, and only one is in hand at a time."""


def transformer_bytes(
    config: DenoiserConfig,
    height: int,
    width: int,
    dtype: torch.dtype,
    pictures: int = 2,
    *,
    rows: int | None = None,
    control: TransformerConfig | None = None,
    folds: bool = True,
    caches: bool = False,
) -> int:
    """Of one velocity at latents of (height, width); `pictures` is 2 where each is guided.

    In bands of `rows` rows of tokens where given (SANA's transformer alone has them), and beside a ControlNet
    where its configuration is. `folds` says that short prompts may be folded, as `Transformer.read` has it,
    and `caches` that there is a `StepCache`.
    """
    return _transformer_bytes(
        *(config, height, width, dtype, pictures, rows, control), native.is_in_use(), folds, caches
    )


def decoder_bytes(
    config: AnyAutoencoderConfig, height: int, width: int, dtype: torch.dtype, rows: int | None = None
) -> int:
    """Of decoding one picture of (height, width) pixels, in bands of so many rows of latents where given."""
    return _coding_bytes(config, height, width, dtype, rows, native.is_in_use(), decodes=True)


def encoder_bytes(
    config: AnyAutoencoderConfig, height: int, width: int, dtype: torch.dtype, rows: int | None = None
) -> int:
    """Of encoding one picture, likewise."""
    return _coding_bytes(config, height, width, dtype, rows, native.is_in_use(), decodes=False)


@lru_cache(maxsize=64)
def _transformer_bytes(
    config: DenoiserConfig,
    height: int,
    width: int,
    dtype: torch.dtype,
    pictures: int,
    rows: int | None,
    control: TransformerConfig | None,
    _native: bool,
    folds: bool,
    caches: bool,
) -> int:
    with torch.device("meta"):
        network, readers = _few_blocks(config)
        network = network.to(dtype).eval()
        text = torch.empty(1, PROMPT_TOKENS, config.text_width, dtype=dtype)
        with torch.no_grad():
            read = network.read(text.expand(pictures, -1, -1))
        options: dict[str, Any] = {}
        if isinstance(config, TransformerConfig):
            options["rows"] = rows
            options["guidance"] = torch.empty(pictures) if config.guidance_embedding else None
        beside = None if control is None else ControlNet(_few(control)).to(dtype).eval()

        def run() -> None:
            latents = torch.empty(pictures, config.latent_channels, height, width, dtype=dtype)
            whole = isinstance(config, ArticleConfig)
            times = torch.empty(pictures, dtype=torch.long if whole else torch.float32)
            with _FusedAttention():
                if beside is not None:
                    shown = latents, times, text.expand(pictures, -1, -1), torch.empty_like(latents)
                    options["residuals"] = beside(*shown, rows=rows)
                network(latents, times, read, **options)

        tokens = pictures * height * width // config.patch_size**2
        prompts = pictures * PROMPT_TOKENS
        if _native and folds:  # shorter ones are folded into as much room as the layers around them take
            prompts = max(prompts, config.width)
        held = 2 * prompts * readers + (CACHED * tokens if caches else 0)
        if control is not None:  # what the blocks that are not run would add
            held += tokens * (control.depth - min(control.depth, LAYERS))
        return peak_bytes(run) + held * config.width * dtype.itemsize


def _few_blocks(config: DenoiserConfig) -> tuple[Denoiser, int]:
    """A network of a few of the blocks, and how many of all of them read the prompt."""
    if isinstance(config, ArticleConfig):
        depth = min(config.depth, max(LAYERS, config.cross_attention_every))
        return denoiser_of(config.model_copy(update={"depth": depth})), config.prompt_blocks
    return denoiser_of(_few(config)), config.depth


def _few(config: TransformerConfig) -> TransformerConfig:
    return config.model_copy(update={"depth": min(config.depth, LAYERS)})


@lru_cache(maxsize=64)
def _coding_bytes(
    config: AnyAutoencoderConfig,
    height: int,
    width: int,
    dtype: torch.dtype,
    rows: int | None,
    _native: bool,
    *,
    decodes: bool,
) -> int:
    with torch.device("meta"):
        network = Autoencoder(config).to("meta", dtype).eval()
        stride = config.stride
        sides = (height // stride, width // stride)

        def decode() -> None:
            latents = torch.empty(1, config.latent_channels, *sides, dtype=dtype)
            whole = rows is None
            out = network.decode(latents) if whole else decode_in_bands(network, latents, rows or 1)
            out.float().clamp(-1, 1)

        def encode() -> None:
            images = torch.empty(1, PIXEL_CHANNELS, height, width, dtype=dtype)
            network.encode(images) if rows is None else encode_in_bands(network, images, rows)

        return peak_bytes(decode if decodes else encode)


class _FusedAttention(TorchFunctionMode):
    """Attention to the prompt as the kernels of CPUs and GPUs run it: without a table of scores."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is functional.scaled_dot_product_attention:
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))
