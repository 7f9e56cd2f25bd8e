"""Linear layers whose weights lie in memory as oneDNN multiplies them: no product has to turn them."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lineardit.kernels import native
from lineardit.nn.offload import offloaded
from lineardit.nn.wide import Linear


class PackedLinear(nn.Module):
    """x W^T + bias on a CPU, without gradients; the same numbers as the plain layer beside the library.

    Its weight is no tensor that could be read or saved.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS)
        self.bias = linear.bias

    def forward(self, x: Float[Tensor, "*b c"], *, silu: bool = False) -> Float[Tensor, "*b d"]:
        """SiLU of it where asked for."""
        after = "swish" if silu else "none"
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self.bias, after, [], "")
        return product


_ROWS = 2048
"""Rows that the layout is chosen for; others are multiplied as well."""
_DTYPES = torch.bfloat16, torch.float32


def pack_blocks(transformer: nn.Module) -> int:
    """Replace the layers that all tokens of a picture pass in SANA's blocks, in place; how many there are.

    Those of bfloat16 and float32 on a CPU where oneDNN multiplies them. The layers around the prompt's
    attention stay: they may be folded (`kernels.prompt`). Offloaded blocks are packed when they are read to
    be kept.
    """
    count = 0
    for block in transformer.get_submodule("blocks").children():
        found, parts = _to_pack(block), offloaded(block)
        count += len(found)
        for part in parts if found else []:
            part.forget()
            part.when_kept = _pack
        if not parts:
            _pack(block)
    return count


def _pack(block: nn.Module) -> None:
    """One layer after the other, so that only one weight is there twice at a time."""
    for parent, name, layer in _to_pack(block):
        setattr(parent, name, PackedLinear(layer))
        layer.weight = nn.Parameter(torch.empty_like(layer.weight, device="meta"), requires_grad=False)


def _to_pack(block: nn.Module) -> list[tuple[nn.Module, str, Linear]]:
    """Layers with the modules that have them, and what they are called there."""
    return [
        (parent, name, layer)
        for part in ("attention", "feed_forward")
        for parent in block.get_submodule(part).modules()
        for name, layer in parent.named_children()
        if type(layer) is Linear
        and layer.weight.dtype in _DTYPES
        and native.has_products(layer.weight.dtype)
        and layer.weight.device.type in ("cpu", "meta")
    ]
