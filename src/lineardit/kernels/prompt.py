"""Cross-attention with a prompt multiplied into the layers around it.

What a prompt says to a picture's tokens x is

    softmax((x Q + q) k^T / sqrt(d)) v O + o,      head by head, summed over heads,

with k and v of the prompt's m tokens. In all steps of a generation Q, k, v and O stay what they are, so that
Q k^T and v O can be multiplied before: then a head takes m channels instead of d on the way in and out. With
fewer tokens than a head has channels these are fewer products, by far fewer for the empty prompt of guidance.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from lineardit.kernels import native


class Around(NamedTuple):
    """The layers before and after the attention: weights (out in), as in `torch.nn.Linear`."""

    query: Float[Tensor, "c c"]
    query_bias: Float[Tensor, " c"]
    out: Float[Tensor, "c c"]
    out_bias: Float[Tensor, " c"]


class FoldedPrompt(NamedTuple):
    """A prompt's keys and values with the layers around them, as the native library reads them."""

    keys: Tensor
    """Q k^T, (c, heads m), packed."""
    offsets: Float[Tensor, " padded"]
    """q k^T in float32, with room for a vector more."""
    values: Tensor
    """v O, (heads m, c), packed."""
    bias: Float[Tensor, " c"]
    heads: int
    tokens: int
    scale: float
    """1 / sqrt(d)."""


VECTOR = 16
"""Numbers that the library reads at a time."""


def prompted(
    x: Float[Tensor, "n c"],
    around: Around,
    key: Float[Tensor, "heads m d"],
    value: Float[Tensor, "heads m d"],
) -> Float[Tensor, "n c"]:
    """What the prompt says to each token: the definition or, where the native library is in use, folded."""
    out = torch.empty_like(x)
    prompt = folded(around, key, value)
    if prompt is not None and answer(x, prompt, out):
        return out
    query = functional.linear(x, around.query, around.query_bias)
    heads = torch.unflatten(query, -1, (len(key), -1)).transpose(0, 1)
    mixed = functional.scaled_dot_product_attention(heads, key, value)
    return functional.linear(mixed.transpose(0, 1).flatten(1), around.out, around.out_bias)


def folded(
    around: Around, key: Float[Tensor, "heads m d"], value: Float[Tensor, "heads m d"]
) -> FoldedPrompt | None:
    """Of one prompt; None where the native library is not in use, or not for such tensors."""
    library = native.takes(*around, key, value)
    if library is None:
        return None
    heads, tokens, d = key.shape
    query = torch.unflatten(around.query, 0, (heads, d))
    out = torch.unflatten(around.out, 1, (heads, d)).permute(1, 2, 0)
    offsets = key.new_zeros(heads * tokens + VECTOR, dtype=torch.float32)
    query_bias = around.query_bias.view(heads, d, 1).float()
    offsets[: heads * tokens] = (key.float() @ query_bias).flatten()
    keys = _packed(library, (key @ query).flatten(0, 1), by_columns=True)
    values = _packed(library, (value @ out).flatten(0, 1), by_columns=False)
    return FoldedPrompt(keys, offsets, values, around.out_bias, heads, tokens, d**-0.5)


def answer(x: Float[Tensor, "n c"], prompt: FoldedPrompt, out: Float[Tensor, "n c"]) -> bool:
    """Write what the prompt says to each token into `out`, and return whether the library could."""
    library = native.takes(x, prompt.bias, out)
    if library is None:
        return False
    given = (x.contiguous(), prompt.keys, prompt.offsets, prompt.values, prompt.bias, out)
    native.call(
        library, "attend_prompt", x.dtype, *given, *x.shape, prompt.heads, prompt.tokens, prompt.scale
    )
    return True


def _packed(library: native.Library, matrix: Float[Tensor, "r c"], *, by_columns: bool) -> Tensor:
    """The matrix in strips of columns; `by_columns` says that it is given transposed."""
    matrix = matrix.contiguous()
    columns, depth = matrix.shape if by_columns else matrix.shape[::-1]
    size = torch.zeros(1, dtype=torch.int64, device="cpu")
    native.call(library, "packed_bytes", matrix.dtype, columns, depth, size)
    packed = matrix.new_empty(int(size), dtype=torch.uint8)
    native.call(library, "pack", matrix.dtype, matrix, columns, depth, packed, by_columns)
    return packed
