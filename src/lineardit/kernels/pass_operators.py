"""The passes of a GPU as registered operators of torch: differentiable, and no break for torch.compile."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lineardit.kernels import native
from lineardit.kernels.operators import HAS_TRITON, REFUSALS, ROUNDED, distance, refused, where

MANY = 1100
"""Channels of a token that take more threads than few do."""
LARGEST_WIDTH = 8192
"""Channels of a token that a program of the kernels can hold."""
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@torch.library.custom_op("lineardit::steer", mutates_args=())
def steer(x: Tensor, shift: Tensor, scale: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """LayerNorm(x) (1 + scale) + shift in `dtype`: (b n c) with tables (b 1 c), by Triton."""
    with where(x):
        out: Tensor = _kernels().steer(x, None, shift, scale, eps, dtype)[1]
    return out


@torch.library.custom_op("lineardit::add_steer", mutates_args=())
def add_steer(
    x: Tensor, y: Tensor, shift: Tensor, scale: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """x + y in the dtype of x, and what `steer` makes of it, by Triton."""
    with where(x):
        return _kernels().steer(x, y, shift, scale, eps, dtype)


@torch.library.custom_op("lineardit::steer_backward", mutates_args=())
def steer_backward(
    total: Tensor, scale: Tensor, grad: Tensor, grad_total: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the sum, and in float32 of shift and scale, given those of the results."""
    with where(total):
        return _kernels().steer_backward(total, scale, grad, grad_total, eps)


@torch.library.custom_op("lineardit::gated_convolution", mutates_args=())
def gated_convolution(x: Tensor, weight: Tensor, bias: Tensor, activate: bool) -> Tensor:
    """content SiLU(gate), halves of a depthwise 3x3 convolution: (b h w 2c) to (b h w c), by Triton."""
    with where(x):
        return _kernels().gated(x, weight, bias, activate)


@torch.library.custom_op("lineardit::gated_convolution_backward", mutates_args=())
def gated_convolution_backward(
    x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor, activate: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias, given that of the result."""
    with where(x):
        return _kernels().gated_backward(x, weight, bias, grad, activate)


def runs_triton(x: Tensor, *others: Tensor) -> bool:
    """Whether the kernels are taken for such tensors: on a GPU where they agree with the definitions."""
    if not (HAS_TRITON and x.is_cuda) or native.is_torch_asked_for():
        return False
    given = (x, *others)
    if any(type(each) not in (Tensor, torch.nn.Parameter) or each.dtype not in _DTYPES for each in given):
        return False
    if x.shape[-1] > LARGEST_WIDTH and x.ndim == 3:
        return False
    if torch.compiler.is_compiling():
        return not REFUSALS
    return not native.is_transformed() and refusal(x.device) is None


@cache
def refusal(device: torch.device) -> str | None:
    """Why the kernels must not be used on `device`, or None: they agree with what they stand for."""
    return refused(disagreement, device, "passes run on torch instead")


def disagreement(device: torch.device) -> float:
    """The largest error of the kernels' outputs and gradients, each over the definition's largest number."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def defined(x: Tensor, y: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        total = x + y
        return total, functional.layer_norm(total, total.shape[-1:], eps=1e-6) * (1 + scale) + shift

    def convolved(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor]:
        seen = functional.silu(x).permute(0, 3, 1, 2)
        near = functional.conv2d(seen, weight, bias, padding=1, groups=len(weight))
        content, gate = near.permute(0, 2, 3, 1).chunk(2, dim=-1)
        return (content * functional.silu(gate),)

    work: list[tuple[Callable[..., Any], Callable[..., Any], list[Tensor]]] = [
        (
            lambda *given: add_steer(*given, 1e-6, given[0].dtype),
            defined,
            [draw(2, 70, 37), draw(2, 70, 37), draw(2, 1, 37), draw(2, 1, 37)],
        ),
        (
            lambda *given: (gated_convolution(*given, True),),
            convolved,
            [draw(2, 5, 9, 70), draw(70, 1, 3, 3), draw(70)],
        ),
    ]
    errors: list[float] = []
    for run, definition, inputs in work:
        exact = [each.clone().requires_grad_() for each in inputs]
        given = [each.to(device, torch.float32).requires_grad_() for each in inputs]
        wanted, found = definition(*exact), run(*given)
        directions = [draw(*each.shape) for each in wanted]
        pairs = zip(
            [*found, *torch.autograd.grad(found, given, [each.to(found[0]) for each in directions])],
            [*wanted, *torch.autograd.grad(wanted, exact, directions)],
            strict=True,
        )
        errors += [distance(one, two) for one, two in pairs]
    with torch.no_grad():
        for run, definition, shapes in (
            (work[0][0], defined, ((1, 5, MANY), (1, 5, MANY), (1, 1, MANY), (1, 1, MANY))),
            (work[1][0], convolved, ((1, 3, 5, 6), (6, 1, 3, 3), (6,))),
        ):
            halves = [draw(*shape).to(device, torch.bfloat16) for shape in shapes]
            rounded = definition(*(each.cpu().double() for each in halves))
            errors += [ROUNDED * distance(*pair) for pair in zip(run(*halves), rounded, strict=True)]
    return float(torch.tensor(errors).max())  # NaN, where there is any


def _kernels() -> Any:
    from lineardit.kernels import triton_passes

    return triton_passes


@steer.register_fake
def _(x: Tensor, shift: Tensor, scale: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    return x.new_empty(x.shape, dtype=dtype)


@add_steer.register_fake
def _(
    x: Tensor, y: Tensor, shift: Tensor, scale: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape, dtype=dtype)


@steer_backward.register_fake
def _(
    total: Tensor, scale: Tensor, grad: Tensor, grad_total: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    tables = [total.new_empty((len(total), 1, total.shape[-1]), dtype=torch.float32) for _ in range(2)]
    return total.new_empty(total.shape), tables[0], tables[1]


@gated_convolution.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, activate: bool) -> Tensor:
    return x.new_empty((*x.shape[:-1], x.shape[-1] // 2))


@gated_convolution_backward.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor, activate: bool) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), bias.new_empty(bias.shape)


def _keep_steered(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, shift, scale, ctx.eps, _ = inputs
    ctx.shift_dtype = shift.dtype
    ctx.save_for_backward(x.contiguous(), scale)


def _steer_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    total, scale = ctx.saved_tensors
    by_x, by_shift, by_scale = steer_backward(total, scale, grad, None, ctx.eps)
    return by_x, by_shift.to(ctx.shift_dtype), by_scale.to(scale.dtype), None, None


def _keep_sum(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, y, shift, scale, ctx.eps, _ = inputs
    ctx.dtypes = y.dtype, shift.dtype
    ctx.save_for_backward(output[0], scale)


def _add_steer_gradients(ctx: Any, grad_total: Tensor, grad: Tensor) -> tuple[Tensor | None, ...]:
    total, scale = ctx.saved_tensors
    by_x, by_shift, by_scale = steer_backward(total, scale, grad, grad_total, ctx.eps)
    y_dtype, shift_dtype = ctx.dtypes
    return by_x, by_x.to(y_dtype), by_shift.to(shift_dtype), by_scale.to(scale.dtype), None, None


def _keep_convolved(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.activate = inputs
    ctx.save_for_backward(*tensors)


def _convolution_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (*gated_convolution_backward(*ctx.saved_tensors, grad, ctx.activate), None)


steer.register_autograd(_steer_gradients, setup_context=_keep_steered)
add_steer.register_autograd(_add_steer_gradients, setup_context=_keep_sum)
gated_convolution.register_autograd(_convolution_gradients, setup_context=_keep_convolved)
