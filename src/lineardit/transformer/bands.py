"""A block over bands of rows: the same tokens in bounded memory.

Linear attention is a sum over tokens, so that its state adds up over bands; what follows is local but for the
depthwise convolution, which sees one row above and below. Three passes over the bands of one block:

    state    += state of (key, value) of the band
    out(band) = x + gate attention(query, state), then + cross-attention
    out(band) = out + gate feed-forward(the band with one row more on both sides)

Only the tokens before and after the block are held whole.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lineardit.errors import InputError
from lineardit.kernels import passes
from lineardit.kernels.linear_attention import LinearAttentionState
from lineardit.kernels.live import telling
from lineardit.nn.attention import KeyValue
from lineardit.transformer.block import NORM_EPS, Block, Grid, Modulation, for_prompts


class Band(NamedTuple):
    """Rows of the grid from `start` to `stop`, and its columns."""

    start: int
    stop: int
    width: int

    def of(self, x: Float[Tensor, "b n c"]) -> Tensor:
        """A view of its tokens."""
        return x[:, self.start * self.width : self.stop * self.width]


def bands_of(grid: Grid, rows: int) -> Iterator[Band]:
    """All of them from the top. Raises: InputError unless `rows` is positive."""
    if rows < 1:
        raise InputError(f"rows={rows}: take at least one row of tokens at a time.")
    for start in range(0, grid.height, rows):
        yield Band(start, min(start + rows, grid.height), grid.width)


def refined(
    block: nn.Module,
    x: Float[Tensor, "b n c"],
    prompt: Float[Tensor, "p m c"] | KeyValue,
    mask: Bool[Tensor, "p m"] | None,
    time_table: Float[Tensor, "p 6 c"],
    grid: Grid,
    rows: int | None,
) -> Float[Tensor, "p n c"]:
    """What the block gives, at once or, where `rows` are fewer than there are, in bands of so many."""
    if rows is None or rows >= grid.height:
        whole: Tensor = block(x, prompt, mask, time_table, grid)
        return whole
    assert isinstance(block, Block)
    return block_in_bands(block, x, prompt, mask, time_table, grid, rows)


@torch.no_grad()
def block_in_bands(
    block: Block,
    x: Float[Tensor, "b n c"],
    prompt: Float[Tensor, "p m c"] | KeyValue,
    mask: Bool[Tensor, "p m"] | None,
    time_table: Float[Tensor, "p 6 c"],
    grid: Grid,
    rows: int,
) -> Float[Tensor, "p n c"]:
    """What the block gives, computed from `rows` rows of tokens at a time. `x` stays as it is.

    Raises:
        InputError: rows is not positive.
    """
    first, last = Modulation.pair(block.offset + time_table)
    first = first.of(len(x))
    bands = telling(bands_of(grid, rows), x)
    state: LinearAttentionState | None = None
    for band in bands:
        own = block.attention.state(passes.steered(band.of(x), first.shift, first.scale, NORM_EPS))
        state = own if state is None else state + own
    assert state is not None
    out = torch.empty((len(time_table), *x.shape[1:]), dtype=x.dtype, device=x.device)
    for band in bands:
        part = band.of(x)
        steered = passes.steered(part, first.shift, first.scale, NORM_EPS)
        part = passes.added(part, block.attention.attend(steered, state), first.gate)
        part = for_prompts(part, len(out))
        band.of(out)[:] = part + block.cross_attention(part, prompt, mask)
    above: Tensor | None = None
    for band in bands:
        seen = Band(band.start, min(band.stop + 1, grid.height), grid.width).of(out)
        if above is not None:
            seen = torch.cat([above, seen], dim=1)
        # What the next band sees above itself is about to be written over.
        above = Band(band.stop - 1, band.stop, grid.width).of(out).clone()
        steered = passes.steered(seen, last.shift, last.scale, NORM_EPS)
        near = block.feed_forward(torch.unflatten(steered, 1, (-1, grid.width)))
        inner = near[:, min(1, band.start) :][:, : band.stop - band.start].flatten(1, 2)
        band.of(out)[:] = passes.added(band.of(out), inner, last.gate)
    return out
