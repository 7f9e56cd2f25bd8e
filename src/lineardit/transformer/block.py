"""The SANA block and how the timestep steers it."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lineardit.config.models import TransformerConfig
from lineardit.kernels import passes
from lineardit.nn.attention import CrossAttention, KeyValue, LinearSelfAttention
from lineardit.nn.feed_forward import GLUMBConv

NORM_EPS = 1e-6


class Modulation(NamedTuple):
    """How the timestep steers one residual branch (adaLN-single, arXiv:2310.00426, section 2.3)."""

    shift: Float[Tensor, "b 1 c"]
    scale: Float[Tensor, "b 1 c"]
    gate: Float[Tensor, "b 1 c"]

    @staticmethod
    def pair(table: Float[Tensor, "b 6 c"]) -> tuple["Modulation", "Modulation"]:
        """The modulations of the first and the last branch of a block."""
        rows = table.chunk(6, dim=1)
        return Modulation(*rows[:3]), Modulation(*rows[3:])

    def of(self, rows: int) -> "Modulation":
        """That of the first `rows` pictures."""
        return Modulation(self.shift[:rows], self.scale[:rows], self.gate[:rows])

    def steer(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """Shift and scale the input of the branch. Its output is multiplied by `gate`."""
        return x * (1 + self.scale) + self.shift


def for_prompts(x: Float[Tensor, "b *rest"], count: int) -> Float[Tensor, "p *rest"]:
    """What pictures have, again for each of their prompts, of which there are `count` for all pictures."""
    return x if len(x) == count else x.repeat(count // len(x), *(1,) * (x.ndim - 1))


class Grid(NamedTuple):
    """Tokens of a picture are its rows one after the other; this is how many rows and columns there are."""

    height: int
    width: int


class Block(nn.Module):
    """Linear self-attention, cross-attention to the prompt, then a convolutional feed-forward.

    The timestep reaches the first and last branch through one shared table; each block only adds its
    own learned offset to it. Cross-attention is neither normalised nor modulated, as published (SANA, section
    2.2).
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.empty(6, config.width))
        self.attention = LinearSelfAttention(config.width, config.head_dim, qk_norm=config.qk_norm)
        self.cross_attention = CrossAttention(config.width, config.cross_head_dim, qk_norm=config.qk_norm)
        self.feed_forward = GLUMBConv(config.width, config.hidden_width)

    def forward(
        self,
        x: Float[Tensor, "b n c"],
        prompt: Float[Tensor, "p m c"] | KeyValue,
        mask: Bool[Tensor, "p m"] | None,
        time_table: Float[Tensor, "p 6 c"],
        grid: Grid,
    ) -> Float[Tensor, "p n c"]:
        """Refine the tokens once. `prompt` may be what this block's cross-attention has read before.

        Of pictures with several prompts, those of i at i, b + i and so on, `x` may have one each: what is
        done before the prompt is read is then done once.
        """
        first, last = Modulation.pair(self.offset + time_table)
        first = first.of(len(x))
        steered = passes.steered(x, first.shift, first.scale, NORM_EPS)
        x = for_prompts(passes.added(x, self.attention(steered), first.gate), len(time_table))
        told = self.cross_attention(x, prompt, mask)
        x, steered = passes.added_steered(x, told, last.shift, last.scale, NORM_EPS)
        refined = self.feed_forward(torch.unflatten(steered, 1, grid)).flatten(1, 2)
        return passes.added(x, refined, last.gate)
