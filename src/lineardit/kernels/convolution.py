"""3x3 convolutions with zeros around the picture, of a picture as it is and of one that is doubled first.

They are defined by torch's convolution. Where the native library is in use, tiles of the picture take fewer
products (minimal filtering: Lavin and Gray, arXiv:1509.09308). A tile of 2x2 pixels takes 16 instead of 36,
and in float32 one of 4x4, in pictures of 32x32 and more, 36 instead of 144. A tile of 2x2 of a picture that
is doubled takes 9: of what it sees the two middle rows and columns are alike, and their difference, one of
the four numbers that minimal filtering multiplies, is zero. Sums over 512 channels are up to 2e-6 of their
size from exact in float32 (torch's 2e-7); in bfloat16, where what is multiplied is rounded once more, 4e-3
(2e-3).
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from lineardit.kernels import native

LEAST_CHANNELS = 32
"""Of fewer, on either side, products are too cheap to be worth the way there and back."""


def convolved(
    x: Float[Tensor, "b c h w"],
    weight: Float[Tensor, "d c 3 3"],
    bias: Float[Tensor, " d"] | None,
    *,
    silu: bool = False,
) -> Float[Tensor, "b d h w"]:
    """The convolution, and SiLU of it where asked for."""
    library = _takes(x, weight, bias)
    if library is not None and min(weight.shape[:2]) >= LEAST_CHANNELS:
        return _in_tiles(library, x, weight, bias, silu=silu)
    if library is not None and silu and native.multiplies(x, weight, bias):
        # oneDNN applies the SiLU before it writes the sums.
        geometry = [1, 1], [1, 1], [1, 1], 1
        fused: Tensor = torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *geometry, "swish", [], "")
        return fused
    sums = functional.conv2d(x, weight, bias, padding=1)
    return functional.silu(sums, inplace=not torch.is_grad_enabled()) if silu else sums


def convolved_doubled(
    x: Float[Tensor, "b c h w"],
    weight: Float[Tensor, "d c 3 3"],
    bias: Float[Tensor, " d"] | None,
    *,
    shortcut: bool,
) -> Float[Tensor, "b d h2 w2"]:
    """The convolution of x with every pixel repeated in 2x2; with x itself added where asked for.

    For that the channels of x are repeated, each in place, to 4d; channel 4 o + 2 p + q then goes to channel
    o of the pixels of row parity p and column parity q.
    """
    if (library := _takes(x, weight, bias)) is not None:
        return _in_tiles(library, x, weight, bias, doubled=True, shortcut=shortcut)
    phases = functional.conv2d(x, folded(weight), padding=1)
    out = _interleaved(torch.unflatten(phases, 1, (2, 2, len(weight))), x.shape[-2], x.shape[-1])
    if bias is not None:
        out = out + bias[:, None, None]
    if shortcut:
        repeated = x.repeat_interleave(4 * len(weight) // x.shape[1], dim=1)
        out = out + functional.pixel_shuffle(repeated, 2)
    return out


def folded(weight: Float[Tensor, "d c 3 3"]) -> Float[Tensor, "d4 c 2 2"]:
    """The kernels of a convolution after doubling, as four 2x2 kernels before it, by row and column parity.

    Even rows see the small row above with the first tap and their own with the sum of the others; odd rows
    see their own with the sum of the first two and the row below with the last. Columns likewise.
    """
    wide = weight if weight.dtype.itemsize >= 4 else weight.float()
    parities = [_folded_pairs(half, 3) for half in _folded_pairs(wide, 2)]
    return torch.cat([kernel for pair in parities for kernel in pair]).to(weight.dtype)


def _folded_pairs(kernel: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    first, middle, last = kernel.unbind(dim)
    return torch.stack([first, middle + last], dim), torch.stack([first + middle, last], dim)


def _interleaved(
    phases: Float[Tensor, "b 2 2 d h1 w1"], height: int, width: int
) -> Float[Tensor, "b d h2 w2"]:
    """Phase (p, q) holds the pixels of row parity p and column parity q, from its row p, column q on."""
    rows = [
        torch.stack([phases[:, p, q, :, p : p + height, q : q + width] for q in range(2)], dim=-1)
        for p in range(2)
    ]
    return torch.stack(rows, dim=3).reshape(len(phases), -1, 2 * height, 2 * width)


def _takes(x: Tensor, weight: Tensor, bias: Tensor | None) -> native.Library | None:
    library = native.takes(x, weight, bias)  # none while torch.compile traces, which cannot ask what follows
    if library is None or torch.is_autocast_enabled("cpu"):
        return None
    return None if x.dtype == torch.bfloat16 and native.has_tiles() else library


def _in_tiles(
    library: native.Library,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    doubled: bool = False,
    shortcut: bool = False,
    silu: bool = False,
) -> Float[Tensor, "b d h w"]:
    pixels, scale = x.movedim(1, -1).contiguous(), 2 if doubled else 1
    b, h, w, c = pixels.shape
    out = x.new_empty((b, scale * h, scale * w, len(weight)))
    sizes = (b, h, w, c, len(weight))
    given = pixels, weight, weight.stride(), bias, out, sizes
    native.call(library, "convolve", x.dtype, *given, doubled, shortcut, silu)
    return out.movedim(-1, 1)
