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
from lineardit.kernels.convolution import convolved_doubled
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

    A 3x3 convolution after doubling every pixel sees each small pixel once, twice or four times, and takes
    fewer products than it says (`kernels.convolution`).
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
            return convolved_doubled(x, weight, bias, shortcut=self.shortcut)
        if self.shortcut:
            y = y + functional.pixel_shuffle(duplicate_channels(x, self.out * FACTOR**2), FACTOR)
        return y
