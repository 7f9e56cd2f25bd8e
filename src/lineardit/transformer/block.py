"""The SANA block and how the timestep steers it."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lineardit.config.models import TransformerConfig
from lineardit.nn.attention import CrossAttention, LinearSelfAttention
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

    def steer(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """Shift and scale the input of the branch. Its output is multiplied by `gate`."""
        return x * (1 + self.scale) + self.shift


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
        self.attention_norm = nn.LayerNorm(config.width, eps=NORM_EPS, elementwise_affine=False)
        self.attention = LinearSelfAttention(config.width, config.head_dim, qk_norm=config.qk_norm)
        self.cross_attention = CrossAttention(config.width, config.cross_head_dim, qk_norm=config.qk_norm)
        self.feed_forward_norm = nn.LayerNorm(config.width, eps=NORM_EPS, elementwise_affine=False)
        self.feed_forward = GLUMBConv(config.width, config.hidden_width)

    def forward(
        self,
        x: Float[Tensor, "b n c"],
        prompt: Float[Tensor, "b m c"],
        mask: Bool[Tensor, "b m"] | None,
        time_table: Float[Tensor, "b 6 c"],
        grid: Grid,
    ) -> Float[Tensor, "b n c"]:
        """Refine the tokens once."""
        first, last = Modulation.pair(self.offset + time_table)
        x = x + first.gate * self.attention(first.steer(self.attention_norm(x)))
        x = x + self.cross_attention(x, prompt, mask)
        steered = torch.unflatten(last.steer(self.feed_forward_norm(x)), 1, grid)
        return x + last.gate * self.feed_forward(steered).flatten(1, 2)
