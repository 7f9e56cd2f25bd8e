"""Linear attention on a GPU: four Triton kernels over the state, forward and backward, split over tokens.

Every kernel walks its share of the tokens in blocks, so that the whole chip works at batch 1 too. Sums are
float32; products of half-precision tensors run in TF32 and those of float32 tensors in IEEE float32. On a
machine without a GPU the same kernels run in Triton's interpreter (TRITON_INTERPRET=1), for tests.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lineardit.kernels.operators import block_of
from lineardit.kernels.reference import EPS

BLOCK = 64
"""Tokens that a program reads at once."""
PROGRAMS_PER_PROCESSOR = 4


@triton.jit
def _features(x, there, ELU: tl.constexpr):
    # ELU(x) + 1 is exp(x) below zero. Rows and channels beyond the tensor have no features.
    phi = tl.where(x > 0, x + 1.0, tl.exp(tl.minimum(x, 0.0))) if ELU else tl.maximum(x, 0.0)
    return tl.where(there, phi, 0.0)


@triton.jit
def _slope(x, ELU: tl.constexpr):
    return tl.where(x > 0, 1.0, tl.exp(tl.minimum(x, 0.0))) if ELU else tl.where(x > 0, 1.0, 0.0)


@triton.jit
def _tile(base, tokens, channels, stride_token, stride_channel, there):
    places = base + tokens[:, None].to(tl.int64) * stride_token + channels[None, :] * stride_channel
    return tl.load(places, mask=there, other=0.0).to(tl.float32)


@triton.jit
def _kept(tokens, mask_base, count, HAS_MASK: tl.constexpr):
    there = tokens < count
    if HAS_MASK:
        there = there & (tl.load(mask_base + tokens, mask=there, other=0) != 0)
    return there


@triton.jit
def _state_kernel(
    key, value, mask, memory, mass,
    key_b, key_h, key_m, key_d, value_b, value_h, value_m, value_e, mask_b,
    heads, count, size_d, size_e, share,
    HAS_MASK: tl.constexpr, ELU: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    row, split = tl.program_id(0), tl.program_id(1)
    batch, head = (row // heads).to(tl.int64), (row % heads).to(tl.int64)
    d, e = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_E)
    total = tl.zeros((BLOCK_D, BLOCK_E), tl.float32)
    sums = tl.zeros((BLOCK_D,), tl.float32)
    first = split * share
    for start in range(first, tl.minimum(first + share, count), BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        there = _kept(m, mask + batch * mask_b, count, HAS_MASK)
        there_d, there_e = there[:, None] & (d < size_d)[None, :], there[:, None] & (e < size_e)[None, :]
        k = _tile(key + batch * key_b + head * key_h, m, d, key_m, key_d, there_d)
        v = _tile(value + batch * value_b + head * value_h, m, e, value_m, value_e, there_e)
        phi = _features(k, there_d, ELU)
        total = tl.dot(tl.trans(phi), v, total, input_precision=PRECISION)
        sums += tl.sum(phi, 0)
    place = (row * tl.num_programs(1) + split).to(tl.int64)
    inside = (d < size_d)[:, None] & (e < size_e)[None, :]
    tl.store(memory + place * size_d * size_e + d[:, None] * size_e + e[None, :], total, mask=inside)
    tl.store(mass + place * size_d + d, sums, mask=d < size_d)


@triton.jit
def _state_backward_kernel(
    key, value, mask, grad_memory, grad_mass, grad_key, grad_value,
    key_b, key_h, key_m, key_d, value_b, value_h, value_m, value_e, mask_b,
    heads, count, size_d, size_e, share,
    HAS_MASK: tl.constexpr, ELU: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    row, split = tl.program_id(0), tl.program_id(1)
    batch, head = (row // heads).to(tl.int64), (row % heads).to(tl.int64)
    d, e = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_E)
    inside = (d < size_d)[:, None] & (e < size_e)[None, :]
    state = row.to(tl.int64) * size_d * size_e + d[:, None] * size_e + e[None, :]
    by_memory = tl.load(grad_memory + state, mask=inside, other=0.0)
    by_mass = tl.load(grad_mass + row * size_d + d, mask=d < size_d, other=0.0)
    first = split * share
    for start in range(first, tl.minimum(first + share, count), BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        there = _kept(m, mask + batch * mask_b, count, HAS_MASK)
        there_d, there_e = there[:, None] & (d < size_d)[None, :], there[:, None] & (e < size_e)[None, :]
        k = _tile(key + batch * key_b + head * key_h, m, d, key_m, key_d, there_d)
        v = _tile(value + batch * value_b + head * value_h, m, e, value_m, value_e, there_e)
        phi = _features(k, there_d, ELU)
        by_phi = tl.dot(v, tl.trans(by_memory), input_precision=PRECISION) + by_mass[None, :]
        by_key = tl.where(there_d, by_phi * _slope(k, ELU), 0.0)
        by_value = tl.dot(phi, by_memory, input_precision=PRECISION)
        token = row.to(tl.int64) * count + m[:, None]
        written_d, written_e = (m < count)[:, None] & (d < size_d), (m < count)[:, None] & (e < size_e)
        tl.store(grad_key + token * size_d + d[None, :], by_key, mask=written_d)
        tl.store(grad_value + token * size_e + e[None, :], by_value, mask=written_e)


@triton.jit
def _apply_kernel(
    query, memory, mass, out,
    query_b, query_h, query_n, query_d,
    heads, count, size_d, size_e, share, eps,
    ELU: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    row, split = tl.program_id(0), tl.program_id(1)
    batch, head = (row // heads).to(tl.int64), (row % heads).to(tl.int64)
    d, e = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_E)
    inside = (d < size_d)[:, None] & (e < size_e)[None, :]
    state = row.to(tl.int64) * size_d * size_e + d[:, None] * size_e + e[None, :]
    held = tl.load(memory + state, mask=inside, other=0.0)
    weights = tl.load(mass + row * size_d + d, mask=d < size_d, other=0.0)
    first = split * share
    for start in range(first, tl.minimum(first + share, count), BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        there = (n < count)[:, None] & (d < size_d)[None, :]
        q = _tile(query + batch * query_b + head * query_h, n, d, query_n, query_d, there)
        phi = _features(q, there, ELU)
        divisor = tl.sum(phi * weights[None, :], 1) + eps
        mixed = tl.dot(phi, held, input_precision=PRECISION) / divisor[:, None]
        token = row.to(tl.int64) * count + n[:, None]
        tl.store(out + token * size_e + e[None, :], mixed, mask=(n < count)[:, None] & (e < size_e)[None, :])


@triton.jit
def _apply_backward_kernel(
    query, memory, mass, grad, grad_query, grad_memory, grad_mass,
    query_b, query_h, query_n, query_d, grad_b, grad_h, grad_n, grad_e,
    heads, count, size_d, size_e, share, eps,
    ELU: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    row, split = tl.program_id(0), tl.program_id(1)
    batch, head = (row // heads).to(tl.int64), (row % heads).to(tl.int64)
    d, e = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_E)
    inside = (d < size_d)[:, None] & (e < size_e)[None, :]
    state = d[:, None] * size_e + e[None, :]
    held = tl.load(memory + row.to(tl.int64) * size_d * size_e + state, mask=inside, other=0.0)
    weights = tl.load(mass + row * size_d + d, mask=d < size_d, other=0.0)
    by_memory = tl.zeros((BLOCK_D, BLOCK_E), tl.float32)
    by_mass = tl.zeros((BLOCK_D,), tl.float32)
    first = split * share
    for start in range(first, tl.minimum(first + share, count), BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        there_d = (n < count)[:, None] & (d < size_d)[None, :]
        there_e = (n < count)[:, None] & (e < size_e)[None, :]
        q = _tile(query + batch * query_b + head * query_h, n, d, query_n, query_d, there_d)
        by_out = _tile(grad + batch * grad_b + head * grad_h, n, e, grad_n, grad_e, there_e)
        phi = _features(q, there_d, ELU)
        divisor = tl.sum(phi * weights[None, :], 1) + eps
        mixed = tl.dot(phi, held, input_precision=PRECISION) / divisor[:, None]
        by_sum = by_out / divisor[:, None]
        by_divisor = -tl.sum(by_sum * mixed, 1)
        by_phi = tl.dot(by_sum, tl.trans(held), input_precision=PRECISION)
        by_phi += by_divisor[:, None] * weights[None, :]
        token = row.to(tl.int64) * count + n[:, None]
        by_query = tl.where(there_d, by_phi * _slope(q, ELU), 0.0)
        tl.store(grad_query + token * size_d + d[None, :], by_query, mask=there_d)
        by_memory = tl.dot(tl.trans(phi), by_sum, by_memory, input_precision=PRECISION)
        by_mass += tl.sum(phi * by_divisor[:, None], 0)
    place = (row * tl.num_programs(1) + split).to(tl.int64)
    tl.store(grad_memory + place * size_d * size_e + state, by_memory, mask=inside)
    tl.store(grad_mass + place * size_d + d, by_mass, mask=d < size_d)


def state(key: Tensor, value: Tensor, mask: Tensor | None, feature_map: str) -> tuple[Tensor, Tensor]:
    """memory (b heads d e) and mass (b heads d) of keys and values (b heads m d) and (b heads m e)."""
    b, heads, count, size_d = key.shape
    size_e = value.shape[-1]
    splits, share = split(b * heads, count, BLOCK, key.device)
    memory = key.new_empty((b, heads, splits, size_d, size_e), dtype=torch.float32)
    mass = key.new_empty((b, heads, splits, size_d), dtype=torch.float32)
    mask = None if mask is None else mask.contiguous()
    _state_kernel[(b * heads, splits)](
        key, value, key if mask is None else mask, memory, mass,
        *key.stride(), *value.stride(), 0 if mask is None else mask.stride(0),
        heads, count, size_d, size_e, share,
        HAS_MASK=mask is not None, BLOCK_M=BLOCK, **_options(key, value, size_d, size_e, feature_map),
    )  # fmt: skip
    return memory.sum(2), mass.sum(2)


def state_backward(
    key: Tensor, value: Tensor, mask: Tensor | None, memory: Tensor, mass: Tensor, feature_map: str
) -> tuple[Tensor, Tensor]:
    """Gradients of key and value, given those of `state`'s results."""
    b, heads, count, size_d = key.shape
    size_e = value.shape[-1]
    splits, share = split(b * heads, count, BLOCK, key.device)
    by_key = torch.empty_like(key, memory_format=torch.contiguous_format)
    by_value = torch.empty_like(value, memory_format=torch.contiguous_format)
    mask = None if mask is None else mask.contiguous()
    _state_backward_kernel[(b * heads, splits)](
        key, value, key if mask is None else mask, memory.contiguous(), mass.contiguous(), by_key, by_value,
        *key.stride(), *value.stride(), 0 if mask is None else mask.stride(0),
        heads, count, size_d, size_e, share,
        HAS_MASK=mask is not None, BLOCK_M=BLOCK, **_options(key, value, size_d, size_e, feature_map),
    )  # fmt: skip
    return by_key, by_value


def applied(query: Tensor, memory: Tensor, mass: Tensor, feature_map: str) -> Tensor:
    """The state's answer (b heads n e) to queries (b heads n d), in the query's dtype."""
    b, heads, count, size_d = query.shape
    size_e = memory.shape[-1]
    splits, share = split(b * heads, count, BLOCK, query.device)
    out = query.new_empty((b, heads, count, size_e))
    _apply_kernel[(b * heads, splits)](
        query, memory.contiguous(), mass.contiguous(), out, *query.stride(),
        heads, count, size_d, size_e, share, EPS,
        BLOCK_N=BLOCK, **_options(query, query, size_d, size_e, feature_map),
    )  # fmt: skip
    return out


def applied_backward(
    query: Tensor, memory: Tensor, mass: Tensor, grad: Tensor, feature_map: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, memory and mass, given that of `applied`'s result."""
    b, heads, count, size_d = query.shape
    size_e = memory.shape[-1]
    splits, share = split(b * heads, count, BLOCK, query.device)
    by_query = torch.empty_like(query, memory_format=torch.contiguous_format)
    by_memory = memory.new_empty((b, heads, splits, size_d, size_e))
    by_mass = mass.new_empty((b, heads, splits, size_d))
    _apply_backward_kernel[(b * heads, splits)](
        query, memory.contiguous(), mass.contiguous(), grad, by_query, by_memory, by_mass,
        *query.stride(), *grad.stride(),
        heads, count, size_d, size_e, share, EPS,
        BLOCK_N=BLOCK, **_options(query, query, size_d, size_e, feature_map),
    )  # fmt: skip
    return by_query, by_memory.sum(2), by_mass.sum(2)


def split(rows: int, count: int, block: int, device: torch.device) -> tuple[int, int]:
    """Into how many programs the tokens of a row go, and how many tokens each takes: whole blocks."""
    blocks = max(1, triton.cdiv(count, block))
    if device.type == "cuda":
        processors = torch.cuda.get_device_properties(device).multi_processor_count
    else:  # the interpreter: enough to test that parts add up
        processors = 2
    wanted = max(1, PROGRAMS_PER_PROCESSOR * processors // rows)
    per_split = triton.cdiv(blocks, min(blocks, wanted))
    return triton.cdiv(blocks, per_split), per_split * block


def _options(first: Tensor, second: Tensor, size_d: int, size_e: int, feature_map: str) -> dict[str, object]:
    wide = torch.float32 in (first.dtype, second.dtype)
    return {
        "ELU": feature_map == "elu1",
        "PRECISION": "ieee" if wide else "tf32",
        "BLOCK_D": block_of(size_d),
        "BLOCK_E": block_of(size_e),
    }
