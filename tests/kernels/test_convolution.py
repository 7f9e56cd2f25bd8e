"""3x3 convolutions in fewer products, against torch's in float64 on the picture that they stand for."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lineardit.kernels import native
from lineardit.kernels.convolution import LEAST_CHANNELS, convolved, convolved_doubled

# Length of the error over that of the output, 2.4e-7 and 1.7e-3 for torch's own sums over 512 channels.
NEAR = {torch.float32: 9e-7, torch.bfloat16: 6e-3}
NEAR_WIDE = {torch.float32: 3e-6, torch.bfloat16: 6e-3}
MANY = 32 * 32
"""Pixels that are convolved in wide tiles, in float32."""
DTYPES = pytest.mark.parametrize("dtype", NEAR)
SHAPES = pytest.mark.parametrize(
    "shape",
    [
        (2, 64, 64, 5, 7),
        (1, 70, 38, 6, 3),
        (1, 512, 32, 9, 12),
        (1, 512, 32, 33, 38),
        (3, 34, 45, 21, 19),
        (1, 33, 40, 61, 50),
        (2, 34, 3, 4, 4),
        (1, 32, 64, 1, 1),
        (1, 6, 3, 5, 2),
    ],
)
"""Pictures, channels, channels out, height, width: whole vectors and not, odd sides, more tiles than a thread
takes at once, wide tiles of one picture and of several, few channels, one pixel."""


def drawn(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels, out, height, width = shape
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randn((batch, channels, height, width), generator=generator)
    weight = torch.randn((out, channels, 3, 3), generator=generator) / (9 * channels) ** 0.5
    return x.to(dtype), weight.to(dtype), torch.randn(out, generator=generator).to(dtype)


def direct(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    offset = None if bias is None else bias.double()
    return functional.conv2d(x.double(), weight.double(), offset, padding=1)


def apart(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape
    return float((found.double() - wanted).norm() / wanted.norm())


@DTYPES
@SHAPES
@torch.no_grad()
def test_it_is_the_convolution(shape: tuple[int, ...], dtype: torch.dtype, path: str) -> None:
    x, weight, bias = drawn(shape, dtype)
    out, near = convolved(x, weight, bias), NEAR if shape[0] * shape[3] * shape[4] < MANY else NEAR_WIDE
    assert out.dtype == dtype and apart(out, direct(x, weight, bias)) <= near[dtype]
    activated = functional.silu(direct(x, weight, None))
    assert apart(convolved(x, weight, None, silu=True), activated) <= near[dtype]


@DTYPES
@SHAPES
@torch.no_grad()
def test_doubled_it_is_the_convolution_of_a_picture_of_twice_the_side(
    shape: tuple[int, ...], dtype: torch.dtype, path: str
) -> None:
    x, weight, bias = drawn(shape, dtype)
    large = functional.interpolate(x.double(), scale_factor=2, mode="nearest")
    wanted = direct(large, weight, bias)
    out = convolved_doubled(x, weight, bias, shortcut=False)
    assert out.dtype == dtype and apart(out, wanted) <= NEAR[dtype]


@DTYPES
@pytest.mark.parametrize(("channels", "out"), [(36, 9), (38, 19), (64, 32), (20, 20), (40, 80), (19, 19)])
@torch.no_grad()
def test_doubled_the_shortcut_spreads_repeated_channels(
    channels: int, out: int, dtype: torch.dtype, path: str
) -> None:
    x, weight, bias = drawn((2, channels, out, 3, 5), dtype)
    if 4 * out % channels:
        pytest.skip("these widths do not fold")
    wanted = convolved_doubled(x.double(), weight.double(), bias.double(), shortcut=False)
    for row in range(6):
        for column in range(10):
            places = [(4 * o + 2 * (row % 2) + column % 2) // (4 * out // channels) for o in range(out)]
            wanted[:, :, row, column] += x[:, places, row // 2, column // 2].double()
    assert apart(convolved_doubled(x, weight, bias, shortcut=True), wanted) <= NEAR[dtype]


@DTYPES
@torch.no_grad()
def test_layouts_of_pictures_and_weights_do_not_matter(dtype: torch.dtype, path: str) -> None:
    x, weight, bias = drawn((2, 64, 32, 6, 7), dtype)
    wanted = convolved(x, weight, bias)
    by_pixel = {"memory_format": torch.channels_last}
    for given in (
        (x.to(**by_pixel), weight.to(**by_pixel)),
        (x.mT.contiguous().mT, weight.mT.contiguous().mT),
    ):
        out = convolved(*given, bias)
        if path == "native":
            assert torch.equal(out, wanted)
        assert apart(out, wanted.double()) <= NEAR[dtype]


def test_threads_do_not_change_a_bit() -> None:
    if native.compiler() is None:
        pytest.skip("there is no C++ compiler here")
    x, weight, bias = drawn((1, 48, 64, 40, 40), torch.float32)
    before = torch.get_num_threads()
    with native.using("native"), torch.no_grad():
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(convolved(x, weight, bias))
    torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_what_is_not_a_number_spreads_to_its_neighbours_and_no_further(path: str) -> None:
    x, weight, _ = drawn((1, 48, 64, 9, 9), torch.float32)
    x[0, 5, 4, 4] = float("nan")
    with torch.no_grad():
        broken = convolved(x, weight, None).isnan().any(1)[0]
    near = torch.zeros(9, 9, dtype=torch.bool)
    near[3:6, 3:6] = True
    assert torch.equal(broken, near)


def test_in_a_wide_tile_it_spreads_through_the_tile_and_no_further() -> None:
    if native.compiler() is None:
        pytest.skip("there is no C++ compiler here")
    x, weight, _ = drawn((1, 48, 64, 40, 40), torch.float32)
    x[0, 5, 22, 17] = float("nan")
    with native.using("native"), torch.no_grad():
        broken = convolved(x, weight, None).isnan().any(1)[0]
    tile = torch.zeros(40, 40, dtype=torch.bool)
    tile[20:24, 16:20] = True
    assert torch.equal(broken, tile)


def test_where_a_processor_multiplies_bfloat16_in_tiles_it_is_left_to_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called: list[str] = []
    monkeypatch.setattr(native, "call", lambda library, name, *_: called.append(name))
    if native.compiler() is None:
        pytest.skip("there is no C++ compiler here")
    with native.using("native"), torch.no_grad():
        for tiles, dtype in ((False, torch.bfloat16), (True, torch.bfloat16), (True, torch.float32)):
            monkeypatch.setattr(native, "has_tiles", lambda tiles=tiles: tiles)
            convolved(*drawn((1, 32, 32, 4, 4), dtype))
            called.append("next")
    assert called == ["convolve", "next", "next", "convolve", "next"]


def test_gradients_go_through_torch(path: str) -> None:
    x, weight, bias = drawn((1, LEAST_CHANNELS, LEAST_CHANNELS, 4, 4), torch.float32)
    convolved(x.requires_grad_(), weight, bias).sum().backward()
    assert x.grad is not None
    wanted = torch.autograd.grad(direct(again := x.detach().requires_grad_(), weight, bias).sum(), again)[0]
    assert apart(x.grad, wanted) < 1e-6
