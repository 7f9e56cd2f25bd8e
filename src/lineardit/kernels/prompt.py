"""Cross-attention with prompts multiplied into the layers around it.

What a prompt says to a picture's tokens x is

    softmax((x Q + q) k^T / sqrt(d)) v O + o,      head by head, summed over heads,

with k and v of the prompt's m tokens. In all steps of a generation Q, k, v and O stay what they are, so that
Q k^T and v O can be multiplied before: then a head takes m channels instead of d on the way in and out. With
fewer tokens than a head has channels these are fewer products, by far fewer for the empty prompt of guidance.
Training, where Q and O change with every step, multiplies them before each of its steps.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from lineardit.kernels import gradients, native


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

    @property
    def size_bytes(self) -> int:
        """Of its tensors."""
        return sum(each.nbytes for each in (self.keys, self.offsets, self.values, self.bias))

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


def are_short(counts: Sequence[int], tokens: int, width: int, heads: int) -> bool:
    """Whether training is ahead with prompts of `counts` tokens folded, for pictures of so many tokens.

    Folded, the layers give `heads` numbers for each token of a prompt instead of `width`, and folding takes
    as long as they would for the tokens of the prompts. A prompt without any token cannot be folded. One
    thread takes a picture, so that there must be as many.
    """
    total = sum(counts)
    if len(counts) < torch.get_num_threads():
        return False
    return 0 not in counts and heads * total * tokens + total * width <= len(counts) * tokens * width


def learned(
    x: Float[Tensor, "b n c"],
    around: Around,
    key: Float[Tensor, "m c"],
    value: Float[Tensor, "m c"],
    counts: Sequence[int],
    heads: int,
) -> Float[Tensor, "b n c"] | None:
    """What prompts of `counts` tokens, given one after the other, say to each token; for training.

    None where the native library cannot learn from such tensors. Whether it pays, `are_short` tells.
    """
    d, dtype = x.shape[-1] // heads, key.dtype
    library = native.learns(x, *around, key, value)
    if library is None:
        return None
    query = torch.unflatten(around.query, 0, (heads, d)).to(dtype)
    out = torch.unflatten(around.out, 1, (heads, d)).permute(1, 2, 0).to(dtype)
    key, value = (torch.unflatten(each, 1, (heads, d)).transpose(0, 1) for each in (key, value))
    offsets = (key.float() * around.query_bias.float().view(heads, 1, d)).sum(-1)
    given = x.to(dtype), key @ query, offsets, value @ out, around.out_bias.to(dtype)
    answered: Tensor = gradients.run(Learned, *given, tuple(counts), d**-0.5, library)
    return answered


class Learned(torch.autograd.Function):
    """What folded prompts say to the tokens (b n c): keys and values (heads m c), offsets (heads m)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        keys: Tensor,
        offsets: Tensor,
        values: Tensor,
        bias: Tensor,
        counts: tuple[int, ...],
        scale: float,
        library: native.Library,
    ) -> Tensor:
        x, keys, offsets, values = (each.contiguous() for each in (x, keys, offsets, values))
        out = torch.empty_like(x)
        shares = x.new_empty(x.shape[1] * len(keys) * sum(counts) + VECTOR)
        ctx.shape, ctx.starts = (*x.shape, *keys.shape[:2]), (*accumulate(counts, initial=0),)
        given = (x, keys, offsets, values, bias, out, shares)
        native.call(library, "learn_prompt", x.dtype, *given, ctx.shape, ctx.starts, scale)
        ctx.save_for_backward(x, keys, values, shares)
        ctx.scale, ctx.library = scale, library
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, keys, values, shares = ctx.saved_tensors
        by = [torch.empty_like(each) for each in (x, keys, keys[..., 0].float(), values)]
        native.call(
            ctx.library,
            "learn_prompt_backward",
            x.dtype,
            *(x, keys, values, shares, grad.contiguous(), *by),
            *(ctx.shape, ctx.starts, ctx.scale),
        )
        return *by, grad.sum((0, 1)), None, None, None


def _packed(library: native.Library, matrix: Float[Tensor, "r c"], *, by_columns: bool) -> Tensor:
    """The matrix in strips of columns; `by_columns` says that it is given transposed."""
    matrix = matrix.contiguous()
    columns, depth = matrix.shape if by_columns else matrix.shape[::-1]
    size = torch.zeros(1, dtype=torch.int64, device="cpu")
    native.call(library, "packed_bytes", matrix.dtype, columns, depth, size)
    packed = matrix.new_empty(int(size), dtype=torch.uint8)
    native.call(library, "pack", matrix.dtype, matrix, columns, depth, packed, by_columns)
    return packed
