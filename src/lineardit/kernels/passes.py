"""Passes over tokens and pixels, each defined in torch, and fused where that can be had.

The definitions are differentiable and run everywhere. On a CPU where the native library is in use a pass is a
loop of it, on a GPU a kernel of Triton's: both read and write memory once where torch does it several times,
compute in float32 whatever the dtype, and round once.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from lineardit.kernels import gradients, native, pass_operators
from lineardit.kernels.convolution import LEAST_CHANNELS, convolved, convolved_doubled
from lineardit.kernels.int8 import int8_linear, quantized_rows
from lineardit.kernels.linear_attention import linear_attention
from lineardit.kernels.prompt import Around, learned, prompted


def steered(
    x: Float[Tensor, "b n c"], shift: Float[Tensor, "b 1 c"], scale: Float[Tensor, "b 1 c"], eps: float
) -> Float[Tensor, "b n c"]:
    """LayerNorm(x) (1 + scale) + shift."""
    if (library := _learns_table(x, shift, scale)) is not None:
        dtype = gradients.branch_dtype()
        learned: Tensor = gradients.run(gradients.Steered, x, None, shift, scale, eps, dtype, library)
        return learned
    if pass_operators.runs_triton(x, shift, scale):
        return pass_operators.steer(x, *_steering(x, shift, scale, eps))
    library = native.takes(x, shift, scale)
    if library is None:
        return functional.layer_norm(x, x.shape[-1:], eps=eps) * (1 + scale) + shift
    x = x.contiguous()
    out = torch.empty_like(x)
    _add_steer(library, x, None, None, shift, scale, None, out, eps)
    return out


def added(
    x: Float[Tensor, "b n c"], y: Float[Tensor, "b n c"], gate: Float[Tensor, "b 1 c"]
) -> Float[Tensor, "b n c"]:
    """x + gate y."""
    if (library := _learns_table(x, gate, branch=y)) is not None:
        learned: Tensor = gradients.run(gradients.Added, x, y, gate, library)
        return learned
    library = native.takes(x, y, gate)
    if library is None:
        return x + gate * y
    x, y = x.contiguous(), y.contiguous()
    out = torch.empty_like(x)
    _add_steer(library, x, y, gate, None, None, out, None, 0.0)
    return out


def added_steered(
    x: Float[Tensor, "b n c"],
    y: Float[Tensor, "b n c"],
    shift: Float[Tensor, "b 1 c"],
    scale: Float[Tensor, "b 1 c"],
    eps: float,
) -> tuple[Float[Tensor, "b n c"], Float[Tensor, "b n c"]]:
    """x + y, and its LayerNorm (1 + scale) + shift."""
    library = _learns_table(x, shift, scale, branch=y)
    if library is not None and y.dtype == gradients.branch_dtype():
        learned: tuple[Tensor, Tensor] = gradients.run(
            gradients.Steered, x, y, shift, scale, eps, y.dtype, library
        )
        return learned
    if torch.promote_types(x.dtype, y.dtype) == x.dtype and pass_operators.runs_triton(x, y, shift, scale):
        return pass_operators.add_steer(x, y, *_steering(x, shift, scale, eps))
    library = native.takes(x, y, shift, scale)
    if library is None:
        total = x + y
        return total, steered(total, shift, scale, eps)
    x, y = x.contiguous(), y.contiguous()
    total, out = torch.empty_like(x), torch.empty_like(x)
    _add_steer(library, x, y, None, shift, scale, total, out, eps)
    return total, out


def rms_normed(
    x: Float[Tensor, "*b c"],
    weight: Float[Tensor, " c"],
    bias: Float[Tensor, " c"] | None,
    eps: float,
    *,
    residual: Float[Tensor, "*b c"] | None = None,
    relu: bool = False,
) -> Float[Tensor, "*b c"]:
    """x / sqrt(mean(x^2) + eps) weight + bias, in float32, then ReLU or plus a residual where asked for."""
    if (library := native.takes(x, weight, bias, residual)) is not None:
        x, kept = x.contiguous(), None if residual is None else residual.contiguous()
        out = torch.empty_like(x)
        rows, width = x.numel() // x.shape[-1], x.shape[-1]
        native.call(library, "rms_norm", x.dtype, x, kept, weight, bias, out, rows, width, eps, relu)
        return out
    wide = x.float() if x.dtype.itemsize < 4 else x
    scaled = functional.rms_norm(wide, x.shape[-1:], weight.to(wide.dtype), eps)
    normed = (scaled if bias is None else scaled + bias).to(x.dtype)
    normed = functional.relu(normed) if relu else normed
    return normed if residual is None else residual + normed


def depthwise_gated(
    x: Float[Tensor, "b h w c2"],
    weight: Float[Tensor, "c2 1 3 3"],
    bias: Float[Tensor, " c2"],
    *,
    activate: bool = False,
) -> Float[Tensor, "b h w c"]:
    """content SiLU(gate), the halves of a depthwise 3x3 convolution with zeros around the picture.

    With `activate` it is the picture's SiLU that is convolved.
    """
    if (library := native.learns(x, weight, bias)) is not None:
        learned: Tensor = gradients.run(gradients.GatedConvolution, x, weight, bias, activate, library)
        return learned
    if pass_operators.runs_triton(x, weight, bias):
        return pass_operators.gated_convolution(x, weight, bias, activate)
    x = functional.silu(x) if activate else x
    if (library := native.takes(x, weight, bias)) is not None:
        b, h, w, both = x.shape
        out = x.new_empty((b, h, w, both // 2))
        taps, offset = weight.reshape(both, 9).t().float().contiguous(), bias.float()
        native.call(library, "depthwise_gate", x.dtype, x.contiguous(), taps, offset, out, b, h, w, both // 2)
        return out
    near = functional.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1, groups=len(weight))
    content, gate = near.permute(0, 2, 3, 1).chunk(2, dim=-1)
    return content * functional.silu(gate)


def linear(
    x: Float[Tensor, "*b c"],
    weight: Float[Tensor, "d c"],
    bias: Float[Tensor, " d"] | None,
    *,
    silu: bool = False,
) -> Float[Tensor, "*b d"]:
    """x weight^T + bias, and SiLU of it where asked for.

    Beside the library oneDNN multiplies, and applies the SiLU before it writes the product. In float32 torch
    would ask MKL, which leaves a third of the rate of processors that are not Intel's unused.
    """
    if native.multiplies(x, weight, bias):
        after = "swish" if silu else "none"
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, after, [], "")
        return product
    product = functional.linear(x, weight, bias)
    return functional.silu(product) if silu else product


def disagreement() -> float:
    """The largest error of the library in use, in float32, over the definitions' largest numbers."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))

    x, y, table = draw(2, 5, 37), draw(2, 5, 37), draw(2, 6, 37)
    gate, shift, scale = table[:, :1], table[:, 1:2], table[:, 2:3]
    heads = draw(2, 3, 70, 20)
    square, heads_of_37 = draw(37, 37) / 6, draw(2, 1, 19, 37)
    whole = torch.arange(-127.0, 128.0).reshape(5, 51)
    whole[:, 0] = 127.0
    work: list[Callable[[], Tensor]] = [
        lambda: steered(x, shift, scale, 1e-6),
        lambda: added(x, y, gate),
        lambda: torch.cat(added_steered(x, y, shift, scale, 1e-6)),
        lambda: rms_normed(x, gate[0, 0], shift[0, 0], 1e-5, residual=y),
        lambda: depthwise_gated(draw(1, 3, 5, 38), draw(38, 1, 3, 3), draw(38)),
        lambda: convolved(draw(1, LEAST_CHANNELS, 3, 5), draw(9, LEAST_CHANNELS, 3, 3), draw(9), silu=True),
        lambda: convolved(draw(1, LEAST_CHANNELS, 33, 35), draw(9, LEAST_CHANNELS, 3, 3), draw(9)),
        lambda: convolved_doubled(draw(1, 18, 3, 5), draw(9, 18, 3, 3), draw(9), shortcut=True),
        lambda: linear_attention(heads, heads, heads),
        lambda: prompted(y[0], Around(square, x[0, 0], square, y[0, 0]), *heads_of_37),
        # Whole numbers up to 127 are rounded to themselves, whatever the order of operations.
        lambda: int8_linear(whole, *quantized_rows(whole), silu=True),
    ]
    around, key, value = Around(square, x[0, 0], square, y[0, 0]), *heads_of_37[:, 0, :5]

    def told(x: Tensor, key: Tensor, value: Tensor) -> Tensor:
        found = learned(x, around, key, value, (2, 3), 1)
        if found is not None:
            return found
        parts = slice(2), slice(2, 5)
        return torch.stack(
            [
                prompted(row, around, key[None, part], value[None, part])
                for row, part in zip(x, parts, strict=True)
            ]
        )

    heads_first = heads.transpose(1, 2).contiguous().transpose(1, 2)
    work += [
        lambda: _slopes(lambda x, shift, scale: steered(x, shift, scale, 1e-6), x, shift, scale),
        lambda: _slopes(added, x, y, gate),
        lambda: _slopes(lambda x, y: torch.cat(added_steered(x, y, shift, scale, 1e-6)), x, y),
        lambda: _slopes(depthwise_gated, draw(2, 3, 5, 70), draw(70, 1, 3, 3), draw(70)),
        lambda: _slopes(linear_attention, heads_first, heads, heads),
        lambda: _slopes(told, x, key, value),
    ]
    found = [each() for each in work]
    with native.using("torch"):
        wanted = [each() for each in work]
    errors = [(one - two).abs().max() / two.abs().max() for one, two in zip(found, wanted, strict=True)]
    return float(torch.stack(errors).max())


def _slopes(run: Callable[..., Tensor], *inputs: Tensor) -> Float[Tensor, " count"]:
    """Gradients of all inputs, one after the other, where that of the output is the output's own cosine."""
    with torch.inference_mode(False), torch.enable_grad():
        given = [each.clone().requires_grad_() for each in inputs]
        out = run(*given)
        found = torch.autograd.grad(out, given, out.detach().cos())
    return torch.cat([each.flatten() / each.abs().max() for each in found])


def _steering(
    x: Tensor, shift: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor, float, torch.dtype]:
    """What the operators take: tables for each picture, and the dtype that comes out.

    That is what products will round it to, where they do; else as torch computes it.
    """
    dtype = torch.promote_types(torch.promote_types(x.dtype, shift.dtype), scale.dtype)
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
    return shift.expand(len(x), 1, -1), scale.expand(len(x), 1, -1), eps, dtype


def _learns_table(x: Tensor, *tables: Tensor, branch: Tensor | None = None) -> native.Library | None:
    """The library, if gradients can flow through it to x and the tables, in float32, and to a branch."""
    wide = all(each.dtype == torch.float32 for each in (x, *tables))
    return native.learns(x, *tables, branch) if wide and gradients.branch_dtype() != torch.float16 else None


def _add_steer(
    library: native.Library,
    x: Tensor,
    y: Tensor | None,
    gate: Tensor | None,
    shift: Tensor | None,
    scale: Tensor | None,
    total: Tensor | None,
    out: Tensor | None,
    eps: float,
) -> None:
    batch, per_batch, width = x.shape
    steering = [None if each is None else each.expand(batch, -1, -1) for each in (gate, shift, scale)]
    strides = {each.stride()[::2] for each in steering if each is not None}
    if len(strides) > 1 or next(iter(strides))[1] != 1:
        steering = [None if each is None else each.contiguous() for each in steering]
        strides = {(width, 1)}
    ((stride, _),) = strides
    native.call(
        library,
        "add_steer",
        x.dtype,
        *(x, y, *steering, total, out),
        *(batch * per_batch, per_batch, width, stride, eps),
    )
