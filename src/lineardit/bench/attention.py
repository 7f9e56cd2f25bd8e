"""Softmax against linear attention on this machine: four ways to compute, checked before they are timed."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from lineardit.bench.clock import Cost, measure
from lineardit.bench.memory import available_memory
from lineardit.errors import InputError, LineardiTError
from lineardit.kernels.linear_attention import linear_attention
from lineardit.kernels.reference import quadratic_linear_attention

TOKENS = tuple(2**power for power in range(8, 19))
"""256 to 262,144."""
ROWS = 16
"""Queries whose outputs are compared with the definition at every size."""
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
"""Largest error, over the size of what is right, that is still timed."""
MEMORY_SHARE = 0.9
"""Of the free memory: what is expected to need more is left out."""

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


class Shape(NamedTuple):
    """(batch, heads, tokens, head_dim): queries, keys and values alike."""

    batch: int
    heads: int
    tokens: int
    head_dim: int


ARTICLE = Shape(batch=4, heads=16, tokens=4096, head_dim=64)


class Method(NamedTuple):
    """One way to compute attention."""

    name: str
    attend: Attention
    definition: Attention
    """What it should compute, for a few queries."""
    order: int
    """Time grows with this power of the tokens."""
    needs: Callable[[Shape, bool], int]
    """Numbers held at once, inputs included, given whether it is trained."""


def softmax_written_out(
    query: Float[Tensor, "b heads n d"],
    key: Float[Tensor, "b heads m d"],
    value: Float[Tensor, "b heads m e"],
) -> Float[Tensor, "b heads n e"]:
    """softmax(q k^T / sqrt(d)) v with all n m weights in memory."""
    weights = torch.softmax(query @ key.mT / math.sqrt(query.shape[-1]), dim=-1)
    return weights @ value


def linear_by_einsum(
    query: Float[Tensor, "b heads n d"],
    key: Float[Tensor, "b heads m d"],
    value: Float[Tensor, "b heads m e"],
) -> Float[Tensor, "b heads n e"]:
    """phi(q) (phi(k)^T v) / (phi(q) . sum phi(k) + 1e-6) with phi = ReLU, in einsums, as in the article."""
    queries, keys = functional.relu(query), functional.relu(key)
    memory = torch.einsum("bhmd,bhme->bhde", keys, value)
    # Of some thousand tokens the mass is beyond float16.
    wide = torch.float32 if query.dtype == torch.float16 else query.dtype
    mass = torch.einsum("bhnd,bhd->bhn", queries.to(wide), keys.sum(2, dtype=wide))
    mixed = torch.einsum("bhnd,bhde->bhne", queries, memory) / (mass.unsqueeze(-1) + 1e-6)
    return mixed.to(query.dtype)


def _with_weights(copies: int, trained_copies: int) -> Callable[[Shape, bool], int]:
    def needs(shape: Shape, trained: bool) -> int:
        weights = shape.batch * shape.heads * shape.tokens**2
        return weights * (trained_copies if trained else copies) + math.prod(shape) * (8 if trained else 4)

    return needs


def _with_tensors(copies: int, trained_copies: int) -> Callable[[Shape, bool], int]:
    return lambda shape, trained: math.prod(shape) * (trained_copies if trained else copies)


METHODS = (
    Method("softmax, written out", softmax_written_out, softmax_written_out, 2, _with_weights(2, 4)),
    Method(
        "softmax, fused",
        functional.scaled_dot_product_attention,
        softmax_written_out,
        2,
        _with_tensors(5, 10),
    ),
    Method("linear, einsum", linear_by_einsum, quadratic_linear_attention, 1, _with_tensors(7, 14)),
    Method("linear, as shipped", linear_attention, quadratic_linear_attention, 1, _with_tensors(7, 14)),
)
WRITTEN_OUT, FUSED, EINSUM, SHIPPED = METHODS
TRITON = SHIPPED._replace(name="linear, Triton", attend=partial(linear_attention, kernel="triton"))
"""Where there is a GPU: the kernel that is shipped, with no way back to torch's products."""


class Measurement(NamedTuple):
    """One method at one size. What was not measured is None, and `left_out` says why."""

    method: Method
    shape: Shape
    forward: Cost | None
    training: Cost | None
    """Forward and backward together."""
    left_out: str


def measure_attention(
    shapes: Sequence[Shape],
    device: torch.device,
    dtype: torch.dtype,
    budget: float,
    methods: Sequence[Method] | None = None,
) -> Iterator[Measurement]:
    """Every method at every shape, in rising size; a call expected beyond `budget` seconds is left out.

    Each method's gradients are compared with its definition first, and some of its outputs at every shape.

    Raises:
        InputError: a dtype without a tolerance.
        LineardiTError: an output or gradient is wrong; there is no speed to report then.
    """
    if dtype not in TOLERANCES:
        raise InputError(f"dtype={dtype} is not measured. Use fp32, bf16 or fp16.")
    for method in methods_on(device) if methods is None else methods:
        check_gradients(method, device, dtype, shapes[0].head_dim)
        before: Measurement | None = None
        for shape in shapes:
            before = _measured(method, shape, device, dtype, budget, before)
            yield before


def methods_on(device: torch.device) -> tuple[Method, ...]:
    """Those that run there."""
    return (*METHODS, TRITON) if device.type == "cuda" else METHODS


def check_gradients(method: Method, device: torch.device, dtype: torch.dtype, head_dim: int) -> None:
    """Raises LineardiTError unless output and gradients are those of the definition in float64."""
    inputs = _inputs(Shape(2, 3, 61, head_dim), device, dtype)
    weight = torch.randn_like(inputs[0])
    results = []
    for attend, precision in ((method.attend, dtype), (method.definition, torch.float64)):
        leaves = [each.to(precision).requires_grad_() for each in inputs]
        output = attend(*leaves)
        results.append([output, *torch.autograd.grad(output, leaves, weight.to(precision))])
    for what, given, right in zip(("output", *("gradient",) * 3), *results, strict=True):
        _compare(method, what, given, right, TOLERANCES[dtype] * 3)


def check_rows(method: Method, query: Tensor, key: Tensor, value: Tensor, output: Tensor) -> None:
    """Raises LineardiTError unless rows of the last head are those of the definition in float64."""
    rows = torch.linspace(0, query.shape[2] - 1, ROWS, dtype=torch.float64).long().to(query.device)
    last = (slice(-1, None), slice(-1, None))
    right = method.definition(query[last][:, :, rows].double(), key[last].double(), value[last].double())
    _compare(
        method, f"output at {query.shape[2]} tokens", output[last][:, :, rows], right, TOLERANCES[query.dtype]
    )


def _measured(
    method: Method,
    shape: Shape,
    device: torch.device,
    dtype: torch.dtype,
    budget: float,
    before: Measurement | None,
) -> Measurement:
    free = available_memory(device) * MEMORY_SHARE
    reasons = [_too_much(method, shape, dtype, free, budget, before, trained) for trained in (False, True)]
    if reasons[0]:
        return Measurement(method, shape, None, None, reasons[0])
    query, key, value = _inputs(shape, device, dtype)
    with torch.no_grad():
        check_rows(method, query, key, value, method.attend(query, key, value))
        forward = measure(lambda: method.attend(query, key, value), device, budget)
    if reasons[1]:
        return Measurement(method, shape, forward, None, f"backward: {reasons[1]}")
    leaves = [each.requires_grad_() for each in (query, key, value)]
    weight = torch.randn_like(query)
    training = measure(lambda: torch.autograd.grad(method.attend(*leaves), leaves, weight), device, budget)
    return Measurement(method, shape, forward, training, "")


def _too_much(
    method: Method,
    shape: Shape,
    dtype: torch.dtype,
    free: float,
    budget: float,
    before: Measurement | None,
    trained: bool,
) -> str:
    """Why a method is left out at a shape; empty where it is not."""
    # What is narrower than float32 is widened on the way.
    needed = method.needs(shape, trained) * max(dtype.itemsize, 4)
    if needed > free:
        return f"needs {needed / 1e9:,.0f} GB, free are {free / 1e9:,.0f} GB"
    if before is None:
        return ""
    cost = before.training if trained else before.forward
    if cost is None:
        return before.left_out.removeprefix("backward: ")
    expected = cost.seconds * (shape.tokens / before.shape.tokens) ** method.order
    return f"about {expected:,.0f} s a call, over {budget:g} s" if expected > budget else ""


def _inputs(shape: Shape, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    query, key, value = (
        torch.randn(shape, generator=generator, device=device, dtype=dtype) for _ in range(3)
    )
    return query, key, value


def _compare(method: Method, what: str, given: Tensor, right: Tensor, tolerance: float) -> None:
    error = float((given.detach().double() - right.detach()).norm() / right.detach().norm())
    # NaN must not pass either.
    if not error <= tolerance:
        raise LineardiTError(
            f"{method.name}: {what} is off by {error:.1e} of its size, more than {tolerance:.0e}: "
            "it is wrong, so its speed is not reported."
        )


def exponent(points: Mapping[int, float]) -> float | None:
    """p of seconds ~ tokens^p, by least squares over logarithms; None for fewer than two points."""
    if len(points) < 2:
        return None
    x = [math.log(tokens) for tokens in points]
    y = [math.log(seconds) for seconds in points.values()]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return slope / sum((a - mean_x) ** 2 for a in x)


def crossover(slow: Mapping[int, float], fast: Mapping[int, float]) -> float | None:
    """Tokens from which `fast` takes less time than `slow` and goes on so, on straight lines in logarithms.

    Where it is faster at all sizes that both were measured at, the smallest of these; None where it is not
    even at the largest.
    """
    sizes = sorted(slow.keys() & fast.keys())
    ratios = [math.log(fast[size] / slow[size]) for size in sizes]
    if not sizes or ratios[-1] >= 0:
        return None
    place = len(sizes) - 1
    while place and ratios[place - 1] < 0:
        place -= 1
    if place == 0:
        return float(sizes[0])
    share = ratios[place - 1] / (ratios[place - 1] - ratios[place])
    low, high = math.log(sizes[place - 1]), math.log(sizes[place])
    return math.exp(low + share * (high - low))
