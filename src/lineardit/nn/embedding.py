"""Times and places as vectors."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from lineardit.nn.wide import Linear

TIME_FREQUENCIES = 256
MAX_PERIOD = 10_000.0


def sinusoids(x: Float[Tensor, "*b"], width: int) -> Float[Tensor, "*b {width}"]:
    """[cos(x f), sin(x f)], width / 2 frequencies f from 1 to almost 1 / 10,000, in float32 or wider."""
    half = width // 2
    wide = x if x.dtype == torch.float64 else x.float()
    exponents = torch.arange(half, device=x.device, dtype=wide.dtype) / half
    frequencies = torch.exp(-math.log(MAX_PERIOD) * exponents)
    angles = wide.unsqueeze(-1) * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class ScalarEmbedding(nn.Module):
    """A number (a time, a guidance scale) as a vector: sinusoids, then a two-layer MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = Linear(TIME_FREQUENCIES, width)
        self.second = Linear(width, width)

    def forward(self, x: Float[Tensor, " b"]) -> Float[Tensor, "b c"]:
        """The embedding, in the dtype of the weights."""
        signal = sinusoids(x, TIME_FREQUENCIES).to(self.first.weight.dtype)
        embedded: Tensor = self.second(functional.silu(self.first(signal)))
        return embedded


def grid_positions(
    height: int,
    width: int,
    channels: int,
    *,
    base: int,
    interpolation: float = 1.0,
    device: torch.device | None = None,
) -> Float[Tensor, "1 n {channels}"]:
    """Fixed sine-cosine positions of a (height, width) grid, row by row; half the channels tell x, half y.

    A grid of `base` tokens has coordinates 0 ... base - 1 (over `interpolation`); other grids are stretched
    to the same range, so that a model sees familiar positions at every size.
    """
    y = torch.arange(height, dtype=torch.float32, device=device) / (height / base) / interpolation
    x = torch.arange(width, dtype=torch.float32, device=device) / (width / base) / interpolation
    half = channels // 2
    rows = _sine_first(y, half)[:, None, :].expand(height, width, half)
    columns = _sine_first(x, half)[None, :, :].expand(height, width, half)
    return torch.cat([columns, rows], dim=-1).reshape(1, height * width, channels)


def line_positions(
    count: int, channels: int, *, device: torch.device | None = None
) -> Float[Tensor, "{count} {channels}"]:
    """Fixed sine-cosine positions of the places 0 ... count - 1, never stretched."""
    return _sine_first(torch.arange(count, device=device), channels)


def _sine_first(x: Tensor, width: int) -> Tensor:
    # Positions in float64: at 4K the angles are large enough for float32 to lose the third decimal.
    return torch.cat(sinusoids(x.double(), width).chunk(2, dim=-1)[::-1], dim=-1).float()
