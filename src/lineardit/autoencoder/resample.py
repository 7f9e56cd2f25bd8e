"""Halving and doubling the resolution, with shortcuts that move space into channels and lose nothing.

The convolution only learns what the shortcut misses (residual autoencoding, DC-AE, arXiv:2410.10733, section
3.2).
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from lineardit.errors import ConfigError
from lineardit.kernels.passes import interleaved
from lineardit.nn.wide import Conv2d

FACTOR = 2


def average_channels(x: Float[Tensor, "b c h w"], channels: int) -> Float[Tensor, "b {channels} h w"]:
    """Means of neighbouring channels, so that `channels` are left."""
    return torch.unflatten(x, 1, (channels, -1)).mean(2)


def duplicate_channels(x: Float[Tensor, "b c h w"], channels: int) -> Float[Tensor, "b {channels} h w"]:
    """Each channel repeated, so that there are `channels`."""
    return x.repeat_interleave(channels // x.shape[1], dim=1)


def check_ratio(many: int, few: int, place: str) -> None:
    """Raises ConfigError unless `many` channels fold evenly into `few`."""
    if many % few:
        raise ConfigError(
            f"{place}: {many} channels do not fold evenly into {few}. "
            "Choose widths of which one divides the other."
        )


def folded(weight: Float[Tensor, "out c 3 3"]) -> Float[Tensor, "out4 c 2 2"]:
    """The kernels of a 3x3 convolution after doubling, as four 2x2 kernels before it.

    Even rows see the small row above with the first tap and their own with the sum of the others; odd rows
    see their own with the sum of the first two and the row below with the last. Columns likewise.
    """
    wide = weight if weight.dtype.itemsize >= 4 else weight.float()
    parities = [_folded_pairs(half, 3) for half in _folded_pairs(wide, 2)]
    return torch.cat([kernel for pair in parities for kernel in pair]).to(weight.dtype)


def _folded_pairs(kernel: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    first, middle, last = kernel.unbind(dim)
    return torch.stack([first, middle + last], dim), torch.stack([first + middle, last], dim)


class Downsample(nn.Module):
    """(b c H W) to (b out H/2 W/2); the shortcut stacks 2x2 pixels into channels and averages these."""

    def __init__(
        self, width: int, out: int, kind: Literal["conv", "pixel_unshuffle"], *, shortcut: bool
    ) -> None:
        super().__init__()
        self.out, self.shortcut, self.unshuffles = out, shortcut, kind == "pixel_unshuffle"
        if shortcut:
            check_ratio(width * FACTOR**2, out, f"downsampling {width} to {out}")
        if self.unshuffles:
            check_ratio(out, FACTOR**2, f"downsampling {width} to {out}")
            self.conv = Conv2d(width, out // FACTOR**2, 3, padding=1)
        else:
            self.conv = Conv2d(width, out, 3, stride=FACTOR, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b out h2 w2"]:
        """Half the side."""
        y: Tensor = self.conv(x)
        if self.unshuffles:
            y = functional.pixel_unshuffle(y, FACTOR)
        return y + average_channels(functional.pixel_unshuffle(x, FACTOR), self.out) if self.shortcut else y


class Upsample(nn.Module):
    """(b c h w) to (b out 2h 2w); the shortcut repeats channels and spreads them over 2x2 pixels.

    A 3x3 convolution after doubling every pixel sees each small pixel once, twice or four times. It is four
    2x2 convolutions of the small picture, one for each parity of rows and columns: 16 products, not 36.
    """

    def __init__(
        self, width: int, out: int, kind: Literal["interpolate", "pixel_shuffle"], *, shortcut: bool
    ) -> None:
        super().__init__()
        self.out, self.shortcut, self.shuffles = out, shortcut, kind == "pixel_shuffle"
        if shortcut:
            check_ratio(out * FACTOR**2, width, f"upsampling {width} to {out}")
        self.conv = Conv2d(width, out * FACTOR**2 if self.shuffles else out, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b out h2 w2"]:
        """Twice the side."""
        weight, bias = self.conv.weight, self.conv.bias
        if self.shuffles:
            y = functional.pixel_shuffle(self.conv(x), FACTOR)
        elif weight.dtype == torch.float16:
            y = self.conv(functional.interpolate(x, scale_factor=FACTOR, mode="nearest"))
        else:
            phases = functional.conv2d(x, folded(weight), padding=1).movedim(1, -1)
            shortcut = x.movedim(1, -1) if self.shortcut else None
            return interleaved(phases, bias, shortcut).movedim(-1, 1)
        if self.shortcut:
            y = y + functional.pixel_shuffle(duplicate_channels(x, self.out * FACTOR**2), FACTOR)
        return y
