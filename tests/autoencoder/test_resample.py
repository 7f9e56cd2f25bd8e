"""Changing the resolution: what the shortcuts carry past the convolutions, and diffusers' blocks."""

from typing import Literal

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_dc import DCDownBlock2d, DCUpBlock2d
from einops import reduce, repeat
from torch import Tensor, nn
from torch.nn import functional

from lineardit.autoencoder.resample import Downsample, Upsample, average_channels, duplicate_channels
from lineardit.errors import ConfigError

EQUAL = {"rtol": 0.0, "atol": 1e-5}


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def silenced(layer: nn.Module) -> nn.Module:
    """Only the shortcut is left."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


@pytest.mark.parametrize("kind", ["conv", "pixel_unshuffle"])
@pytest.mark.parametrize("shortcut", [False, True])
@pytest.mark.parametrize(("width", "out"), [(4, 8), (12, 12), (8, 4), (3, 12)])
@torch.no_grad()
def test_downsampling_is_that_of_diffusers(
    kind: Literal["conv", "pixel_unshuffle"], shortcut: bool, width: int, out: int
) -> None:
    theirs = DCDownBlock2d(width, out, downsample=kind == "pixel_unshuffle", shortcut=shortcut)
    ours = Downsample(width, out, kind, shortcut=shortcut)
    ours.load_state_dict(theirs.state_dict())
    x = randn(2, width, 6, 10)
    assert ours(x).shape == (2, out, 3, 5)
    torch.testing.assert_close(ours(x), theirs(x), **EQUAL)


@pytest.mark.parametrize("kind", ["interpolate", "pixel_shuffle"])
@pytest.mark.parametrize("shortcut", [False, True])
@pytest.mark.parametrize(("width", "out"), [(8, 4), (12, 12), (4, 8), (12, 3)])
@torch.no_grad()
def test_upsampling_is_that_of_diffusers(
    kind: Literal["interpolate", "pixel_shuffle"], shortcut: bool, width: int, out: int
) -> None:
    theirs = DCUpBlock2d(width, out, interpolate=kind == "interpolate", shortcut=shortcut)
    ours = Upsample(width, out, kind, shortcut=shortcut)
    ours.load_state_dict(theirs.state_dict())
    x = randn(2, width, 3, 5)
    assert ours(x).shape == (2, out, 6, 10)
    torch.testing.assert_close(ours(x), theirs(x), **EQUAL)


def there_and_back(width: int, out: int, down: str, up: str) -> tuple[Tensor, Tensor]:
    x = randn(2, width, 6, 10)
    smaller = silenced(Downsample(width, out, down, shortcut=True))(x)
    return x, silenced(Upsample(out, width, up, shortcut=True))(smaller)


KINDS = pytest.mark.parametrize(
    ("down", "up"), [("conv", "interpolate"), ("pixel_unshuffle", "pixel_shuffle")]
)


@KINDS
def test_four_times_the_channels_keep_every_number(down: str, up: str) -> None:
    x, back = there_and_back(3, 12, down, up)
    assert torch.equal(back, x)


@KINDS
def test_twice_the_channels_keep_the_mean_of_two_neighbours_in_a_row(down: str, up: str) -> None:
    x, back = there_and_back(4, 8, down, up)
    means = reduce(x, "b c h (w two) -> b c h w", "mean", two=2)
    torch.testing.assert_close(back, repeat(means, "b c h w -> b c h (w two)", two=2))


@KINDS
def test_as_many_channels_keep_the_mean_of_four_pixels(down: str, up: str) -> None:
    x, back = there_and_back(4, 4, down, up)
    means = reduce(x, "b c (h p) (w q) -> b c h w", "mean", p=2, q=2)
    torch.testing.assert_close(back, repeat(means, "b c h w -> b c (h p) (w q)", p=2, q=2))


def test_averaging_undoes_duplicating() -> None:
    x = randn(2, 3, 5, 7)
    wide = duplicate_channels(x, 21)
    assert torch.equal(wide[:, 7:14], x[:, 1:2].expand(-1, 7, -1, -1))
    torch.testing.assert_close(average_channels(wide, 3), x)
    torch.testing.assert_close(
        average_channels(randn(2, 6, 5, 7), 3), randn(2, 6, 5, 7).unflatten(1, (3, 2)).mean(2)
    )


@pytest.mark.parametrize(
    ("build", "complaint"),
    [
        (
            lambda: Downsample(5, 12, "conv", shortcut=True),
            "downsampling 5 to 12: 20 channels do not fold evenly",
        ),
        (
            lambda: Upsample(12, 5, "interpolate", shortcut=True),
            "upsampling 12 to 5: 20 channels do not fold",
        ),
        (lambda: Downsample(4, 6, "pixel_unshuffle", shortcut=False), "6 channels do not fold evenly into 4"),
    ],
)
def test_widths_that_do_not_fold_are_refused(build, complaint: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=complaint):
        build()


def test_without_a_shortcut_any_widths_do() -> None:
    assert Downsample(5, 12, "conv", shortcut=False)(randn(2, 5, 6, 10)).shape == (2, 12, 3, 5)
    assert Upsample(12, 5, "interpolate", shortcut=False)(randn(2, 12, 3, 5)).shape == (2, 5, 6, 10)


@pytest.mark.parametrize("shortcut", [True, False])
@pytest.mark.parametrize(("width", "out", "height", "columns"), [(6, 12, 3, 5), (12, 6, 1, 2), (24, 6, 2, 1)])
def test_doubling_before_a_convolution_is_four_small_convolutions(
    width: int, out: int, height: int, columns: int, shortcut: bool
) -> None:
    upsample = Upsample(width, out, "interpolate", shortcut=shortcut).double()
    x = torch.randn(
        2, width, height, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    expected = upsample.conv(functional.interpolate(x, scale_factor=2, mode="nearest"))
    if shortcut:
        expected = expected + functional.pixel_shuffle(x.repeat_interleave(4 * out // width, 1), 2)
    torch.testing.assert_close(upsample(x), expected, rtol=0, atol=1e-13)
    assert upsample(x.requires_grad_()).sum().backward() is None and x.grad is not None
