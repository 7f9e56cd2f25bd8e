"""Products of int8: exact for what was rounded, rounded to half a step, on both paths."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lineardit.kernels import int8, native
from lineardit.kernels.int8 import int8_linear, quantized_rows

pytestmark = pytest.mark.usefixtures("path")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@DTYPES
def test_rows_are_rounded_to_half_a_step_and_reach_the_ends(dtype: torch.dtype) -> None:
    x = randn(9, 37).to(dtype)
    rows, scale = quantized_rows(x)
    assert rows.dtype == torch.int8 and scale.dtype == torch.float32
    assert rows.abs().amax(-1).eq(127).all()
    apart = (rows.double() * scale.double()[:, None] - x.double()).abs()
    assert (apart <= scale.double()[:, None] * (0.5 + 1e-5)).all()


def test_a_row_of_zeros_stays_zero() -> None:
    x = randn(3, 20)
    x[1] = 0
    rows, scale = quantized_rows(x)
    assert not rows[1].any() and scale[1] == 0
    out = int8_linear(x, *quantized_rows(randn(5, 20)))
    assert not out[1].any() and out[0].all()


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_seen_in_every_output_of_its_row(broken: float) -> None:
    x = randn(3, 40)
    x[1, 38] = broken
    out = int8_linear(x, *quantized_rows(randn(5, 40)))
    assert not out[1].isfinite().any()
    assert out[[0, 2]].isfinite().all()


@DTYPES
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("shape", [(7, 37, 21), (70, 64, 48)])
def test_the_product_is_that_of_the_rounded_rows(
    dtype: torch.dtype, silu: bool, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "ROWS_AT_ONCE", 32)
    n, c, d = shape
    x, bias = randn(n, c).to(dtype), randn(d).to(dtype)
    weight, scale = quantized_rows(randn(d, c))
    rows, row_scale = quantized_rows(x)
    wanted = (
        rows.double() @ weight.double().t() * row_scale.double()[:, None] * scale.double() + bias.double()
    )
    wanted = functional.silu(wanted) if silu else wanted
    found = int8_linear(x, weight, scale, bias, silu=silu)
    near = 2e-6 if dtype == torch.float32 else 4e-3
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), wanted, rtol=near, atol=near * float(wanted.abs().max()))


def test_leading_axes_are_kept() -> None:
    x, weight = randn(2, 3, 5, 16), quantized_rows(randn(8, 16))
    found = int8_linear(x, *weight)
    assert found.shape == (2, 3, 5, 8)
    torch.testing.assert_close(found[1, 2], int8_linear(x[1, 2], *weight))


def test_where_a_processor_multiplies_int8_in_tiles_it_is_left_to_torch(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight = randn(9, 40), quantized_rows(randn(50, 40))
    found = int8_linear(x, *weight)
    called: list[str] = []
    call = native.call

    def seen(library: native.Library, name: str, *rest: object) -> None:
        called.append(name)
        call(library, name, *rest)

    monkeypatch.setattr(native, "call", seen)
    monkeypatch.setattr(native, "has_tiles", lambda: True)
    torch.testing.assert_close(int8_linear(x, *weight), found)
    assert called == (["quantize_rows", "from_products"] if path == "native" else [])


@pytest.mark.parametrize(("n", "c", "d"), [(1, 16, 8), (17, 13, 5), (40, 8, 30)])
def test_what_a_gpu_multiplies_is_padded_and_cut(n: int, c: int, d: int) -> None:
    rows, weight = quantized_rows(randn(n, c))[0], quantized_rows(randn(d, c))[0]
    found = int8._products_on_gpu(rows, weight)
    assert torch.equal(found, (rows.long() @ weight.long().t()).int())
