"""Pictures of any size through the autoencoder in bands of rows: the same numbers in bounded memory.

Where a layer looks at neighbours, a band brings along as many rows above and below as it can see, so that
nothing is blended and no seam is left. Where attention is global, one pass over the bands sums its state,
which adds up over tokens, and a second one applies it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lineardit.autoencoder.article import ArticleDecoder, ArticleEncoder, PlainBlock, PlainUpsample
from lineardit.autoencoder.blocks import EfficientViTBlock, ResidualBlock
from lineardit.autoencoder.model import Autoencoder, Decoder, Encoder, pixels_first
from lineardit.autoencoder.resample import Downsample, Upsample, average_channels, duplicate_channels
from lineardit.errors import InputError
from lineardit.kernels.linear_attention import LinearAttentionState, linear_attention, linear_attention_state
from lineardit.kernels.live import telling
from lineardit.nn.offload import loaded

Layer = Callable[[Tensor], Tensor]


class Local(NamedTuple):
    """A layer whose rows depend on near rows only."""

    layer: Layer
    reach: int
    """Rows above and below that it sees, of its input or output, whichever has more."""
    shrinks: int = 1
    grows: int = 1


@torch.no_grad()
def decode_in_bands(
    autoencoder: Autoencoder, latents: Float[Tensor, "b c h w"], rows: int
) -> Float[Tensor, "b 3 H W"]:
    """What `autoencoder.decode` gives, computed from `rows` rows of latents at a time.

    Raises:
        InputError: rows is not positive.
    """
    raw = latents / autoencoder.scale + autoencoder.shift
    stride = autoencoder.config.stride
    with loaded(autoencoder.decoder):
        return _through(_decoder_layers(autoencoder.decoder), raw, rows, stride, grows=True)


@torch.no_grad()
def encode_in_bands(
    autoencoder: Autoencoder, images: Float[Tensor, "b 3 H W"], rows: int
) -> Float[Tensor, "b c h w"]:
    """What `autoencoder.encode` gives, computed towards `rows` rows of latents at a time.

    Raises:
        InputError: rows is not positive.
    """
    layers, stride = _encoder_layers(autoencoder.encoder), autoencoder.config.stride
    with loaded(autoencoder.encoder):
        latents = _through(layers, images, rows, stride, grows=False)
    return (latents - autoencoder.shift) * autoencoder.scale


def _through(
    layers: Iterable[Local | EfficientViTBlock], x: Tensor, rows: int, stride: int, *, grows: bool
) -> Tensor:
    """Chains of local layers run from one stored tensor to the next; only attention ends a chain."""
    if rows < 1:
        raise InputError(f"rows={rows}: decode and encode at least one row of latents at a time.")
    # Pixels per row of `x` change along the way; a band always covers the same pixels.
    unit = stride if grows else 1
    chain: list[Local] = []
    for layer in layers:
        if isinstance(layer, Local):
            chain.append(layer)
            continue
        x, unit = _run(chain, x, rows * stride, unit)
        chain = [*_attending(layer, x, max(1, rows * stride // unit))]
    x, _ = _run(chain, x, rows * stride, unit)
    return x


def _run(chain: Sequence[Local], x: Tensor, pixels: int, unit: int) -> tuple[Tensor, int]:
    """A chain over all bands, and the pixels per row of its result."""
    if not chain:
        return x, unit
    reach, shrinks, grows = _seen(chain)
    height = x.shape[-2]
    band = max(shrinks, pixels // unit // shrinks * shrinks)
    out: Tensor | None = None
    for start in telling(range(0, height, band), x):
        stop = min(start + band, height)
        first, last = max(0, start - reach), min(height, stop + reach)
        part = pixels_first(x[..., first:last, :])
        for local in chain:
            part = local.layer(part)
        inner = part[..., (start - first) * grows // shrinks : (stop - first) * grows // shrinks, :]
        if out is None:
            shape = (*inner.shape[:-2], height * grows // shrinks, inner.shape[-1])
            by_pixel = part.is_contiguous(memory_format=torch.channels_last)
            layout = torch.channels_last if by_pixel else torch.contiguous_format
            out = torch.empty(shape, dtype=inner.dtype, device=inner.device, memory_format=layout)
        out[..., start * grows // shrinks : stop * grows // shrinks, :] = inner
    assert out is not None
    return out, unit * shrinks // grows


def _seen(chain: Sequence[Local]) -> tuple[int, int, int]:
    """Rows of the chain's input beyond a band that its output depends on, and how it changes the height."""
    reach, shrinks, grows = 0, 1, 1
    for local in reversed(chain):
        reach = -(-reach // local.grows) * local.shrinks + local.reach
        shrinks, grows = shrinks * local.shrinks, grows * local.grows
    # Bands start at rows that the layers that halve the height would not cut in two.
    return -(-reach // shrinks) * shrinks, shrinks, grows


def _attending(block: EfficientViTBlock, x: Tensor, band: int) -> Iterator[Local]:
    """The block with the state of all rows of `x` already summed: now it is local."""
    attention, height = block.attention, x.shape[-2]
    state: LinearAttentionState | None = None
    for start in telling(range(0, height, band), x):
        stop = min(start + band, height)
        first, last = max(0, start - attention.reach), min(height, stop + attention.reach)
        _, key, value = (
            part[..., start - first : stop - first, :].flatten(3).transpose(-1, -2)
            for part in attention.heads(x[..., first:last, :])
        )
        own = linear_attention_state(key, value)
        state = own if state is None else state + own

    def attend(part: Tensor) -> Tensor:
        query = attention.heads(part)[0].flatten(3).transpose(-1, -2)
        mixed = linear_attention(query, None, None, state=state)
        return part + attention.joined(mixed.transpose(-1, -2), part.shape[-2])

    yield Local(attend, attention.reach)
    yield Local(block.fed, 1)


def _decoder_layers(decoder: nn.Module) -> Iterator[Local | EfficientViTBlock]:
    if isinstance(decoder, ArticleDecoder):
        yield from map(_layer, decoder)
        return
    assert isinstance(decoder, Decoder)
    width = decoder.bottom_width
    yield Local(lambda x: decoder.stem(x) + duplicate_channels(x, width), 1)
    for stage in decoder.stages:
        assert isinstance(stage, nn.Sequential)
        yield from map(_layer, stage)
    yield Local(lambda x: decoder.norm(x, relu=True), 0)
    yield _layer(decoder.head)


def _encoder_layers(encoder: nn.Module) -> Iterator[Local | EfficientViTBlock]:
    if isinstance(encoder, ArticleEncoder):
        yield from map(_layer, encoder)
        return
    assert isinstance(encoder, Encoder)
    yield _layer(encoder.stem)
    for stage in encoder.stages:
        assert isinstance(stage, nn.Sequential)
        yield from map(_layer, stage)
    yield Local(lambda x: encoder.head(x) + average_channels(x, encoder.latent_channels), 1)


def _layer(module: nn.Module) -> Local | EfficientViTBlock:
    if isinstance(module, EfficientViTBlock):
        return module
    if isinstance(module, ResidualBlock | PlainBlock):
        return Local(module, 2)
    if isinstance(module, Upsample | PlainUpsample):
        return Local(module, 1, grows=2)
    if isinstance(module, Downsample):
        return Local(module, 1, shrinks=2)
    assert isinstance(module, nn.Conv2d)
    return Local(module, 1, shrinks=module.stride[0])
