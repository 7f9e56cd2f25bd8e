"""Linear attention as registered operators of torch: differentiable, and no break for torch.compile.

Two operators, because the state between them is a value that adds up: tokens may come in chunks, from tiles
or from other machines, and gradients flow through all of them.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from lineardit.kernels import native
from lineardit.kernels.reference import quadratic_linear_attention

HAS_TRITON = find_spec("triton") is not None
LARGEST_HEAD = 128
"""Channels of a head whose (d, e) state a program of the kernels can hold."""
CHECKED_TO = 1e-3
"""How far a kernel may be from the definition, relative to the largest number: TF32 rounds at 5e-4."""

ROUNDED = CHECKED_TO / (2 * torch.finfo(torch.bfloat16).eps)
"""What errors in bfloat16, which may be two roundings, count beside those in float32."""
REFUSALS: list[str] = []
"""Why kernels were refused here. While torch.compile traces none can be checked, and this counts."""

_log = logging.getLogger(__name__)


@torch.library.custom_op("lineardit::linear_attention_state", mutates_args=())
def linear_attention_state(
    key: Tensor, value: Tensor, mask: Tensor | None, feature_map: str
) -> tuple[Tensor, Tensor]:
    """memory (b heads d e) = phi(key)^T value and mass (b heads d) = sum phi(key), float32, by Triton."""
    with where(key):
        return _kernels().state(key, value, mask, feature_map)


@torch.library.custom_op("lineardit::linear_attention_state_backward", mutates_args=())
def linear_attention_state_backward(
    key: Tensor, value: Tensor, mask: Tensor | None, memory: Tensor, mass: Tensor, feature_map: str
) -> tuple[Tensor, Tensor]:
    """Gradients of key and value, given those of memory and mass."""
    with where(key):
        return _kernels().state_backward(key, value, mask, memory, mass, feature_map)


@torch.library.custom_op("lineardit::linear_attention_apply", mutates_args=())
def linear_attention_apply(query: Tensor, memory: Tensor, mass: Tensor, feature_map: str) -> Tensor:
    """phi(query) memory / (phi(query) . mass + 1e-15), (b heads n e) in the query's dtype, by Triton."""
    with where(query):
        return _kernels().applied(query, memory, mass, feature_map)


@torch.library.custom_op("lineardit::linear_attention_apply_backward", mutates_args=())
def linear_attention_apply_backward(
    query: Tensor, memory: Tensor, mass: Tensor, grad: Tensor, feature_map: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, memory and mass, given that of the result."""
    with where(query):
        return _kernels().applied_backward(query, memory, mass, grad, feature_map)


def runs_triton(query: Tensor, value_size: int) -> bool:
    """Whether `auto` takes the kernels for such queries: on a GPU where they agree with the definition."""
    if not (query.is_cuda and HAS_TRITON) or native.is_torch_asked_for():
        return False
    if query.dtype == torch.float64 or max(query.shape[-1], value_size) > LARGEST_HEAD:
        return False
    if torch.compiler.is_compiling():
        return not REFUSALS
    return refusal(query.device, block_of(max(query.shape[-1], value_size))) is None


def block_of(head: int) -> int:
    """Channels that the kernels read for a head of `head`: the next power of two, 16 at least."""
    return max(16, 1 << (head - 1).bit_length())


@cache
def refusal(device: torch.device, block: int) -> str | None:
    """Why the kernels must not be used on `device`, or None: they agree with the definition, checked once.

    For heads that are read in `block` channels: large ones may be too much for the memory of a small GPU.
    """
    instead = f"linear attention of heads of up to {block} channels runs on torch instead"
    return refused(partial(disagreement, block=block), device, instead)


def refused(check: Callable[[torch.device], float], device: torch.device, instead: str) -> str | None:
    """Why kernels must not be used that are as far from their definition as `check` says, or None.

    A reason is logged with what happens `instead`.
    """
    if not HAS_TRITON:
        return "triton is not installed"
    try:
        # Whoever asks may be drawing, without gradients, and in another dtype than weights have. Or it is a
        # checkpointed block, whose hooks would count what the check saves among the tensors of the block.
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(device.type, enabled=False),
            torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, lambda saved: saved),
        ):
            apart = check(device)
    except Exception as error:  # a compiler that is missing or broken fails in many ways
        reason = f"the Triton kernels do not run here: {(str(error) or repr(error)).splitlines()[0]}"
    else:
        if apart <= CHECKED_TO:
            return None
        reason = f"the Triton kernels are {apart:.1e} from the definition"
    _log.warning("%s; %s", reason, instead)
    REFUSALS.append(reason)
    return reason


def disagreement(device: torch.device, block: int) -> float:
    """The largest error of the kernels' output and gradients, each over the definition's largest number.

    Heads are somewhat smaller than `block` channels.
    """
    generator = torch.Generator().manual_seed(0)
    size_d, size_e = block - 12 if block > 16 else 12, block - 8 if block > 16 else 9
    shapes = ((2, 3, 70, size_d), (2, 3, 150, size_d), (2, 3, 150, size_e))
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    mask = torch.rand((2, 150), generator=generator) > 0.3
    exact = [each.clone().requires_grad_() for each in inputs]
    wanted = quadratic_linear_attention(exact[0], exact[1], exact[2], mask=mask)
    direction = torch.randn(wanted.shape, generator=generator, dtype=torch.float64)
    given = [each.to(device, torch.float32).requires_grad_() for each in inputs]
    state = linear_attention_state(given[1], given[2], mask.to(device), "relu")
    found = linear_attention_apply(given[0], *state, "relu")
    pairs = zip(
        [found, *torch.autograd.grad(found, given, direction.to(found))],
        [wanted, *torch.autograd.grad(wanted, exact, direction)],
        strict=True,
    )
    errors = [distance(one, two) for one, two in pairs]
    with torch.no_grad():
        halves = [each.bfloat16() for each in given]
        state = linear_attention_state(halves[1], halves[2], mask.to(device), "relu")
        rounded = quadratic_linear_attention(*(each.cpu().double() for each in halves), mask=mask)
        errors.append(ROUNDED * distance(linear_attention_apply(halves[0], *state, "relu"), rounded))
    return float(torch.tensor(errors).max())  # NaN, where there is any


def distance(found: Tensor, wanted: Tensor) -> float:
    """The largest error over the largest number."""
    return float((found.detach().cpu().double() - wanted.detach()).abs().max() / wanted.detach().abs().max())


def where(tensor: Tensor) -> AbstractContextManager[None]:
    """Inside, kernels are launched on the GPU of a tensor, which need not be the current one."""
    place: AbstractContextManager[None] = torch.cuda.device_of(tensor)  # type: ignore[no-untyped-call]
    return place


def _kernels() -> Any:
    from lineardit.kernels import triton_attention

    return triton_attention


@linear_attention_state.register_fake
def _(key: Tensor, value: Tensor, mask: Tensor | None, feature_map: str) -> tuple[Tensor, Tensor]:
    shape = (*key.shape[:2], key.shape[-1])
    wide = torch.float32
    return key.new_empty((*shape, value.shape[-1]), dtype=wide), key.new_empty(shape, dtype=wide)


@linear_attention_state_backward.register_fake
def _(
    key: Tensor, value: Tensor, mask: Tensor | None, memory: Tensor, mass: Tensor, feature_map: str
) -> tuple[Tensor, Tensor]:
    return key.new_empty(key.shape), value.new_empty(value.shape)


@linear_attention_apply.register_fake
def _(query: Tensor, memory: Tensor, mass: Tensor, feature_map: str) -> Tensor:
    return query.new_empty((*query.shape[:-1], memory.shape[-1]))


@linear_attention_apply_backward.register_fake
def _(
    query: Tensor, memory: Tensor, mass: Tensor, grad: Tensor, feature_map: str
) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), memory.new_empty(memory.shape), mass.new_empty(mass.shape)


def _keep_state(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    key, value, mask, ctx.feature_map = inputs
    ctx.save_for_backward(key, value, mask)


def _state_gradients(ctx: Any, memory: Tensor, mass: Tensor) -> tuple[Tensor | None, ...]:
    key, value, mask = ctx.saved_tensors
    by_key, by_value = linear_attention_state_backward(key, value, mask, memory, mass, ctx.feature_map)
    return by_key, by_value, None, None


def _keep_apply(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.feature_map = inputs
    ctx.save_for_backward(*tensors)


def _apply_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    query, memory, mass = ctx.saved_tensors
    return (*linear_attention_apply_backward(query, memory, mass, grad, ctx.feature_map), None)


linear_attention_state.register_autograd(_state_gradients, setup_context=_keep_state)
linear_attention_apply.register_autograd(_apply_gradients, setup_context=_keep_apply)
