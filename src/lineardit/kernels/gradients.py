"""The passes that training makes, as C++ loops in both directions: gradients.cpp behind torch's autograd.

Each is what its definition in `passes`, `linear_attention` or `nn.attention` says, in float32 whatever the
dtype, rounded once. They can be differentiated once; where more is asked for, leave the library off.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from lineardit.kernels import native
from lineardit.kernels.reference import EPS


def branch_dtype() -> torch.dtype:
    """Of what goes into products after a normalisation: that which autocast would round it to, or float32."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32


def run(kind: type[torch.autograd.Function], *arguments: Any) -> Any:
    """What one of the classes below computes."""
    return kind.apply(*arguments)  # type: ignore[no-untyped-call]


class GatedConvolution(torch.autograd.Function):
    """`passes.depthwise_gated`: (b h w 2c) to (b h w c)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, activate: bool, library: native.Library
    ) -> Tensor:
        b, h, w, both = x.shape
        x = x.contiguous()
        taps, offset = weight.detach().reshape(both, 9).t().float().contiguous(), bias.detach().float()
        out = x.new_empty((b, h, w, both // 2))
        native.call(library, "gated_forward", x.dtype, x, taps, offset, out, b, h, w, both // 2, activate)
        ctx.save_for_backward(x, weight, bias)
        ctx.activate, ctx.library = activate, library
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        b, h, w, both = x.shape
        taps, offset = weight.reshape(both, 9).t().float().contiguous(), bias.float()
        by_x, by_taps, by_bias = torch.empty_like(x), torch.empty_like(taps), torch.empty_like(offset)
        given = (x, taps, offset, grad.contiguous(), by_x, by_taps, by_bias)
        native.call(ctx.library, "gated_backward", x.dtype, *given, b, h, w, both // 2, ctx.activate)
        by_weight = by_taps.t().reshape(weight.shape).contiguous()
        return by_x, by_weight.to(weight.dtype), by_bias.to(bias.dtype), None, None


class AttentionState(torch.autograd.Function):
    """`linear_attention_state`: memory (b heads d e) and mass (b heads d) in float32."""

    @staticmethod
    def forward(
        ctx: Any, key: Tensor, value: Tensor, mask: Tensor | None, elu: bool, library: native.Library
    ) -> tuple[Tensor, Tensor]:
        key, value = _channels_together(key), _channels_together(value)
        mask = None if mask is None else mask.contiguous()
        shape = (*key.shape, value.shape[-1])
        memory = key.new_empty((*shape[:2], *shape[3:]), dtype=torch.float32)
        mass = key.new_empty((*shape[:2], shape[3]), dtype=torch.float32)
        given = (key, value, mask, memory, mass)
        native.call(library, "attention_state", key.dtype, *given, shape, _strides(key, value), elu)
        ctx.save_for_backward(key, value, mask)
        ctx.elu, ctx.library = elu, library
        return memory, mass

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_memory: Tensor, by_mass: Tensor) -> tuple[Tensor | None, ...]:
        key, value, mask = ctx.saved_tensors
        by_key, by_value = _tokens_first(key), _tokens_first(value)
        given = (key, value, mask, by_memory.contiguous(), by_mass.contiguous(), by_key, by_value)
        shape, strides = (*key.shape, value.shape[-1]), _strides(key, value, by_key, by_value)
        native.call(ctx.library, "state_backward", key.dtype, *given, shape, strides, ctx.elu)
        return by_key, by_value, None, None, None


class AttentionApplied(torch.autograd.Function):
    """`linear_attention` of a state: (b heads n e) in the query's dtype."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, memory: Tensor, mass: Tensor, elu: bool, library: native.Library
    ) -> Tensor:
        query, memory, mass = _channels_together(query), memory.contiguous(), mass.contiguous()
        shape = (*query.shape, memory.shape[-1])
        # Tokens before heads, as they are read next.
        out = query.new_empty((shape[0], shape[2], shape[1], shape[4])).transpose(1, 2)
        given = (query, memory, mass, out)
        native.call(library, "attention_apply", query.dtype, *given, shape, _strides(query, out), elu, EPS)
        ctx.save_for_backward(query, memory, mass)
        ctx.elu, ctx.library = elu, library
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, memory, mass = ctx.saved_tensors
        grad = _channels_together(grad)
        by_query, by_memory, by_mass = _tokens_first(query), torch.empty_like(memory), torch.empty_like(mass)
        given = (query, memory, mass, grad, by_query, by_memory, by_mass)
        shape, strides = (*query.shape, memory.shape[-1]), _strides(query, grad, by_query)
        native.call(ctx.library, "apply_backward", query.dtype, *given, shape, strides, ctx.elu, EPS)
        return by_query, by_memory, by_mass, None, None


class PromptAttention(torch.autograd.Function):
    """softmax(q k^T / sqrt(d)) v over the kept tokens of each prompt: (b heads n d)."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, library: native.Library
    ) -> Tensor:
        query, key, value = (_channels_together(each) for each in (query, key, value))
        mask = None if mask is None else mask.contiguous()
        out = _tokens_first(query)
        native.call(
            library,
            "prompt_forward",
            query.dtype,
            *(query, key, value, mask, out),
            *(_sizes(query, key), _strides(query, key, value, out), query.shape[-1] ** -0.5),
        )
        ctx.save_for_backward(query, key, value, mask)
        ctx.library = library
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask = ctx.saved_tensors
        grad = _channels_together(grad)
        by = [_tokens_first(each) for each in (query, key, value)]
        native.call(
            ctx.library,
            "prompt_backward",
            query.dtype,
            *(query, key, value, mask, grad, *by),
            *(_sizes(query, key), _strides(query, key, value, grad, *by), query.shape[-1] ** -0.5),
        )
        return *by, None, None


class Steered(torch.autograd.Function):
    """`passes.added_steered`, and `passes.steered` where there is no y: the sum in float32, and a branch."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor | None,
        shift: Tensor,
        scale: Tensor,
        eps: float,
        dtype: torch.dtype,
        library: native.Library,
    ) -> Any:
        x, y = x.contiguous(), None if y is None else y.contiguous()
        shift, scale, stride = _tables(shift, scale)
        out = torch.empty_like(x, dtype=dtype)
        total = x if y is None else torch.empty_like(x)
        rows = (x.shape[0] * x.shape[1], *x.shape[1:], stride)
        native.call(library, "steer_forward", dtype, x, y, None, shift, scale, total, out, *rows, eps)
        ctx.save_for_backward(total, scale)
        ctx.added, ctx.eps, ctx.dtype, ctx.library = y is not None, eps, dtype, library
        return out if y is None else (total, out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        total, scale = ctx.saved_tensors
        by_total = grads[0].contiguous() if ctx.added else None
        by_x = torch.empty_like(total)
        by_y = torch.empty_like(total, dtype=ctx.dtype) if ctx.added else None
        by_shift, by_scale = (scale.new_empty((len(total), 1, total.shape[-1])) for _ in range(2))
        (scale, stride) = _tables(scale)
        given = (total, scale, grads[-1].contiguous(), by_total, by_x, by_y, by_shift, by_scale)
        native.call(ctx.library, "steer_backward", ctx.dtype, *given, *total.shape, stride, ctx.eps)
        return by_x, by_y, by_shift, by_scale, None, None, None


class Added(torch.autograd.Function):
    """`passes.added`: x + gate y, where x is in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, gate: Tensor, library: native.Library) -> Tensor:
        x, y = x.contiguous(), y.contiguous()
        gate, stride = _tables(gate)
        total = torch.empty_like(x)
        rows = (x.shape[0] * x.shape[1], *x.shape[1:], stride)
        native.call(library, "steer_forward", y.dtype, x, y, gate, None, None, total, None, *rows, 0.0)
        ctx.save_for_backward(y, gate)
        ctx.library = library
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, gate = ctx.saved_tensors
        grad = grad.contiguous()
        by_y, by_gate = torch.empty_like(y), gate.new_empty((len(y), 1, y.shape[-1]))
        gate, stride = _tables(gate)
        native.call(ctx.library, "gate_backward", y.dtype, y, gate, grad, by_y, by_gate, *y.shape, stride)
        return grad, by_y, by_gate, None


def prompt_attention(
    query: Float[Tensor, "b heads n d"],
    key: Float[Tensor, "b heads m d"],
    value: Float[Tensor, "b heads m d"],
    mask: Bool[Tensor, "b m"] | None,
) -> Float[Tensor, "b heads n d"] | None:
    """Softmax attention to the tokens that `mask` keeps, some in every row; None where torch must do it."""
    library = native.learns(query, key, value)
    if library is None or not query.dtype == key.dtype == value.dtype:
        return None
    out: Tensor = run(PromptAttention, query, key, value, mask, library)
    return out


def _tokens_first(like: Tensor) -> Tensor:
    """Room for (b heads n d), the heads of a token together."""
    b, heads, n, d = like.shape
    return like.new_empty((b, n, heads, d)).transpose(1, 2)


def _channels_together(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _strides(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(stride for each in tensors for stride in each.stride()[:3])


def _sizes(query: Tensor, key: Tensor) -> tuple[int, ...]:
    return (*query.shape[:3], key.shape[2], query.shape[3])


def _tables(*tables: Tensor) -> Any:
    """Tables (b 1 c) with channels together and one stride between rows, and that stride."""
    strides = {(each.stride(0), each.stride(2)) for each in tables}
    if len(strides) > 1 or next(iter(strides))[1] != 1:
        tables = tuple(each.contiguous() for each in tables)
    return *tables, tables[0].stride(0)
