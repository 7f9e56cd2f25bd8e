"""Passes over tokens and pixels on a GPU: Triton kernels, forward and backward, that read memory once.

normalisation   x + y, its LayerNorm, and what a timestep multiplies and adds
convolution     GLUMBConv's depthwise 3x3 with its gate, and SiLU of what it reads

All sums are float32, whatever the dtype, and rounded once. On a machine without a GPU the same kernels run in
Triton's interpreter (TRITON_INTERPRET=1), for tests.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lineardit.kernels.triton_attention import split

PIXELS, CHANNELS = 32, 64
"""That a program of the convolution has in hand."""
MANY = 1024
"""Channels of a token that four warps normalise; more have eight."""
TAPS = 9
SUMS = 16
"""Rows of sums over pixels, a power of two: one for each tap, one for the bias, and some that stay zero."""


@triton.jit
def _normed(x, there, width, eps):
    mean = tl.sum(x, 0) / width
    apart = tl.where(there, x - mean, 0.0)
    slope = 1.0 / tl.sqrt(tl.sum(apart * apart, 0) / width + eps)
    return apart * slope, slope


@triton.jit
def _steer_kernel(
    x, y, shift, scale, total, out,
    shift_b, scale_b, tokens, width, eps,
    ADDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    batch = row // tokens
    c = tl.arange(0, BLOCK)
    there = c < width
    own = tl.load(x + row * width + c, mask=there, other=0.0).to(tl.float32)
    if ADDS:
        own += tl.load(y + row * width + c, mask=there, other=0.0).to(tl.float32)
        tl.store(total + row * width + c, own, mask=there)
        own = own.to(total.dtype.element_ty).to(tl.float32)  # as whoever reads the sum sees it
    normed, _ = _normed(own, there, width, eps)
    factor = 1.0 + tl.load(scale + batch * scale_b + c, mask=there, other=0.0).to(tl.float32)
    offset = tl.load(shift + batch * shift_b + c, mask=there, other=0.0).to(tl.float32)
    tl.store(out + row * width + c, normed * factor + offset, mask=there)


@triton.jit
def _steer_backward_kernel(
    total, scale, grad, grad_total, by_total, by_shift, by_scale,
    scale_b, tokens, width, share, eps,
    ADDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    batch, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = tl.arange(0, BLOCK)
    there = c < width
    factor = 1.0 + tl.load(scale + batch * scale_b + c, mask=there, other=0.0).to(tl.float32)
    shifts = tl.zeros((BLOCK,), tl.float32)
    scales = tl.zeros((BLOCK,), tl.float32)
    first = split * share
    for token in range(first, tl.minimum(first + share, tokens)):
        row = (batch * tokens + token) * width
        own = tl.load(total + row + c, mask=there, other=0.0).to(tl.float32)
        by_out = tl.load(grad + row + c, mask=there, other=0.0).to(tl.float32)
        normed, slope = _normed(own, there, width, eps)
        shifts += by_out
        scales += by_out * normed
        by_normed = by_out * factor
        mean = tl.sum(by_normed, 0) / width
        along = tl.sum(by_normed * normed, 0) / width
        by_own = (by_normed - mean - normed * along) * slope
        if ADDS:
            by_own += tl.load(grad_total + row + c, mask=there, other=0.0).to(tl.float32)
        tl.store(by_total + row + c, by_own, mask=there)
    place = (batch * tl.num_programs(1) + split) * width + c
    tl.store(by_shift + place, shifts, mask=there)
    tl.store(by_scale + place, scales, mask=there)


@triton.jit
def _near(pixels, dy, dx, height, width, count):
    # Whether the pixel dy rows below and dx columns right of each is in the same picture.
    row, column = (pixels // width) % height + dy, pixels % width + dx
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return inside & (pixels < count)


@triton.jit
def _tile(base, pixels, channels, stride, there):
    places = base + pixels[:, None].to(tl.int64) * stride + channels[None, :]
    return tl.load(places, mask=there, other=0.0).to(tl.float32)


@triton.jit
def _convolved(
    x, taps, bias, pixels, channels, inside, height, width, count, both, ACTIVATE: tl.constexpr
):  # fmt: skip
    # Where a channel is not `inside`, its taps and its bias are zero.
    total = tl.zeros((pixels.shape[0], channels.shape[0]), tl.float32)
    total += tl.load(bias + channels, mask=inside, other=0.0)[None, :]
    for tap in tl.static_range(9):
        dy, dx = tap // 3 - 1, tap % 3 - 1
        there = _near(pixels, dy, dx, height, width, count)[:, None] & inside[None, :]
        seen = _tile(x, pixels + dy * width + dx, channels, both, there)
        if ACTIVATE:
            seen = seen * tl.sigmoid(seen)
        total += seen * tl.load(taps + tap * both + channels, mask=inside, other=0.0)[None, :]
    return total


@triton.jit
def _halves(
    x, taps, bias, pixels, channels, inside, height, width, count, half, ACTIVATE: tl.constexpr
):  # fmt: skip
    both = 2 * half
    content = _convolved(x, taps, bias, pixels, channels, inside, height, width, count, both, ACTIVATE)
    channels += half
    gate = _convolved(x, taps, bias, pixels, channels, inside, height, width, count, both, ACTIVATE)
    return content, gate


@triton.jit
def _gated_kernel(
    x, taps, bias, out,
    height, width, count, channels,
    ACTIVATE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = c < channels
    content, gate = _halves(x, taps, bias, p, c, inside, height, width, count, channels, ACTIVATE)
    places = out + p[:, None].to(tl.int64) * channels + c[None, :]
    tl.store(places, content * gate * tl.sigmoid(gate), mask=(p < count)[:, None] & inside[None, :])


@triton.jit
def _gate_backward_kernel(
    x, taps, bias, grad, by_near,
    height, width, count, channels,
    ACTIVATE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = c < channels
    content, gate = _halves(x, taps, bias, p, c, inside, height, width, count, channels, ACTIVATE)
    there = (p < count)[:, None] & inside[None, :]
    by_out = _tile(grad, p, c, channels, there)
    open_ = tl.sigmoid(gate)
    places = by_near + p[:, None].to(tl.int64) * 2 * channels + c[None, :]
    tl.store(places, by_out * gate * open_, mask=there)
    tl.store(places + channels, by_out * content * open_ * (1.0 + gate * (1.0 - open_)), mask=there)


@triton.jit
def _convolution_backward_kernel(
    x, taps, by_near, by_x, sums,
    height, width, count, both, share,
    ACTIVATE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    split = tl.program_id(0)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside, kind = c < both, tl.arange(0, ROWS)
    total = tl.zeros((ROWS, BLOCK_C), tl.float32)
    first = split * share
    for start in range(first, tl.minimum(first + share, count), BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        own = (p < count)[:, None] & inside[None, :]
        seen = _tile(x, p, c, both, own)
        active = seen * tl.sigmoid(seen) if ACTIVATE else seen
        by_active = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
        for tap in tl.static_range(9):
            # What this pixel is to the one that looks at it through the tap.
            dy, dx = 1 - tap // 3, 1 - tap % 3
            there = _near(p, dy, dx, height, width, count)[:, None] & inside[None, :]
            by = _tile(by_near, p + dy * width + dx, c, both, there)
            by_active += by * tl.load(taps + tap * both + c, mask=inside, other=0.0)[None, :]
            total += tl.where(kind[:, None] == tap, tl.sum(by * active, 0)[None, :], 0.0)
        by = _tile(by_near, p, c, both, own)
        total += tl.where(kind[:, None] == 9, tl.sum(by, 0)[None, :], 0.0)
        if ACTIVATE:
            open_ = tl.sigmoid(seen)
            by_active = by_active * open_ * (1.0 + seen * (1.0 - open_))
        tl.store(by_x + p[:, None].to(tl.int64) * both + c[None, :], by_active, mask=own)
    places = sums + (split * ROWS + kind[:, None]).to(tl.int64) * both + c[None, :]
    tl.store(places, total, mask=inside[None, :])


def steer(
    x: Tensor, y: Tensor | None, shift: Tensor, scale: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """x + y (b n c) in the dtype of x, and its LayerNorm (1 + scale) + shift in `dtype`."""
    x, y = x.contiguous(), None if y is None else y.contiguous()
    shift, scale = _together(shift), _together(scale)
    b, tokens, width = x.shape
    total = x if y is None else torch.empty_like(x)
    out = torch.empty_like(x, dtype=dtype)
    _steer_kernel[(b * tokens,)](
        x, x if y is None else y, shift, scale, total, out,
        shift.stride(0), scale.stride(0), tokens, width, eps,
        ADDS=y is not None, **_width(width),
    )  # fmt: skip
    return total, out


def steer_backward(
    total: Tensor, scale: Tensor, grad: Tensor, grad_total: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the sum (b n c), and in float32 of shift and scale (b 1 c)."""
    grad, scale = grad.contiguous(), _together(scale)
    b, tokens, width = total.shape
    splits, share = split(b, tokens, 1, total.device)
    by_total = torch.empty_like(total)
    by_shift, by_scale = (total.new_empty((b, splits, width), dtype=torch.float32) for _ in range(2))
    _steer_backward_kernel[(b, splits)](
        total, scale, grad, grad if grad_total is None else grad_total.contiguous(),
        by_total, by_shift, by_scale,
        scale.stride(0), tokens, width, share, eps,
        ADDS=grad_total is not None, **_width(width),
    )  # fmt: skip
    return by_total, by_shift.sum(1, keepdim=True), by_scale.sum(1, keepdim=True)


def gated(x: Tensor, weight: Tensor, bias: Tensor, activate: bool) -> Tensor:
    """content SiLU(gate) (b h w c): halves of the depthwise convolution of x (b h w 2c), or of its SiLU."""
    x = x.contiguous()
    b, height, width, both = x.shape
    out, count = x.new_empty((b, height, width, both // 2)), b * height * width
    _gated_kernel[(triton.cdiv(count, PIXELS), triton.cdiv(both // 2, CHANNELS))](
        x, _taps(weight), bias.float(), out,
        height, width, count, both // 2,
        ACTIVATE=activate, BLOCK_P=PIXELS, BLOCK_C=CHANNELS,
    )  # fmt: skip
    return out


def gated_backward(
    x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor, activate: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias, given that of `gated`'s result."""
    x, taps = x.contiguous(), _taps(weight)
    b, height, width, both = x.shape
    count = b * height * width
    by_near, by_x = torch.empty_like(x), torch.empty_like(x)
    _gate_backward_kernel[(triton.cdiv(count, PIXELS), triton.cdiv(both // 2, CHANNELS))](
        x, taps, bias.float(), grad.contiguous(), by_near,
        height, width, count, both // 2,
        ACTIVATE=activate, BLOCK_P=PIXELS, BLOCK_C=CHANNELS,
    )  # fmt: skip
    columns = triton.cdiv(both, CHANNELS)
    splits, share = split(columns, count, PIXELS, x.device)
    sums = x.new_empty((splits, SUMS, both), dtype=torch.float32)
    _convolution_backward_kernel[(splits, columns)](
        x, taps, by_near, by_x, sums,
        height, width, count, both, share,
        ACTIVATE=activate, BLOCK_P=PIXELS, BLOCK_C=CHANNELS, ROWS=SUMS,
    )  # fmt: skip
    whole = sums.sum(0)
    by_weight = whole[:TAPS].t().reshape(weight.shape).contiguous()
    return by_x, by_weight.to(weight.dtype), whole[TAPS].to(bias.dtype)


def _width(width: int) -> dict[str, int]:
    """A program's share of a token's channels: all of them, with more threads where they are many."""
    block = triton.next_power_of_2(width)
    return {"BLOCK": block, "num_warps": 4 if block <= MANY else 8}


def _together(table: Tensor) -> Tensor:
    """A table (b 1 c) whose channels lie side by side."""
    return table if table.stride(2) == 1 else table.contiguous()


def _taps(weight: Tensor) -> Tensor:
    """(2c 1 3 3) as nine rows of channels, in float32."""
    return weight.reshape(len(weight), TAPS).t().float().contiguous()
