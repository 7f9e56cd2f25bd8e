"""Products of rows and weights that were both rounded to int8, each by a scale of its own.

The rows of x are measured and rounded as they come (dynamic quantisation), the rows of the weight once. The
sums of products are whole numbers and exact; all error is that of the two roundings, half a step each.
"""

import torch
from jaxtyping import Float, Int8, Int32
from torch import Tensor
from torch.nn import functional

from lineardit.kernels import native

LARGEST = 127
LEAST_ROWS = 32
"""Of a product on a GPU."""
ROWS_AT_ONCE = 512
"""Rows whose products stay in the cache until they are scaled."""


def quantized_rows(x: Float[Tensor, "n c"]) -> tuple[Int8[Tensor, "n c"], Float[Tensor, " n"]]:
    """Each row as int8, symmetric about zero, and the float32 scale that undoes it.

    A row that holds NaN or infinity has a scale that is not finite, so that what is computed from it is not
    either.
    """
    if (library := native.takes(x)) is not None:
        x = x.contiguous()
        rows, scale = torch.empty_like(x, dtype=torch.int8), x.new_empty(len(x), dtype=torch.float32)
        native.call(library, "quantize_rows", x.dtype, x, rows, scale, *x.shape)
        return rows, scale
    wide = x.float()
    largest = wide.abs().amax(-1)
    factor = torch.where(largest > 0, LARGEST / largest, 0)
    return (wide * factor[:, None]).round().to(torch.int8), largest / LARGEST


def int8_linear(
    x: Float[Tensor, "*b c"],
    weight: Int8[Tensor, "d c"],
    scale: Float[Tensor, " d"],
    bias: Float[Tensor, " d"] | None = None,
    *,
    silu: bool = False,
) -> Float[Tensor, "*b d"]:
    """x (scale weight)^T + bias in the dtype of x, whose rows are rounded to int8; SiLU of it if `silu`."""
    flat = x.reshape(-1, x.shape[-1])
    out = flat.new_empty(len(flat), len(weight))
    if (library := _multiplies(flat, bias)) is not None:
        given = (flat.contiguous(), weight, scale, bias, out)
        native.call(library, "int8_linear", x.dtype, *given, *flat.shape, len(weight), silu)
        return torch.unflatten(out, 0, x.shape[:-1])
    rows, row_scale = quantized_rows(flat)
    at_once = max(1, len(flat)) if flat.is_cuda else ROWS_AT_ONCE
    for start in range(0, len(flat), at_once):
        here = slice(start, start + at_once)
        products = _products_on_gpu(rows, weight) if flat.is_cuda else torch._int_mm(rows[here], weight.t())
        _from_products(products, row_scale[here], scale, bias, out[here], silu)
    return torch.unflatten(out, 0, x.shape[:-1])


def _products_on_gpu(rows: Int8[Tensor, "n c"], weight: Int8[Tensor, "d c"]) -> Int32[Tensor, "n d"]:
    """rows weight^T, with the zeros that the library there asks for: above 16 rows, multiples of 8 else."""
    (n, c), d = rows.shape, len(weight)
    missing = -c % 8
    padded = functional.pad(rows, (0, missing, 0, max(0, LEAST_ROWS - n)))
    products = torch._int_mm(padded, functional.pad(weight, (0, missing, 0, -d % 8)).t())
    return products[:n, :d].contiguous()


def _multiplies(x: Tensor, bias: Tensor | None) -> native.Library | None:
    """The library, if it multiplies int8 here: not beside tiles (AMX), which only oneDNN uses."""
    library = native.takes(x, bias)
    if library is None or native.has_tiles():
        return None
    return library if library.lineardit_multiplies_int8() else None


def _from_products(
    products: Int32[Tensor, "n d"],
    row_scale: Float[Tensor, " n"],
    scale: Float[Tensor, " d"],
    bias: Float[Tensor, " d"] | None,
    out: Float[Tensor, "n d"],
    silu: bool,
) -> None:
    if (library := native.takes(out, bias)) is not None:
        native.call(
            library, "from_products", out.dtype, products, row_scale, scale, bias, out, *products.shape, silu
        )
        return
    wide = products.float() * row_scale[:, None] * scale
    wide = wide if bias is None else wide + bias.float()
    out.copy_(functional.silu(wide) if silu else wide)
