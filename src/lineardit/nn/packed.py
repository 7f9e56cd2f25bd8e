"""Linear layers whose weights lie in memory as oneDNN multiplies them: no product has to turn them."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

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


def pack_linears(module: nn.Module) -> int:
    """Replace the linear layers below `module`, in place and for good, and return how many there were.

    Those of bfloat16 on a CPU where torch has oneDNN: in float32 it wins nothing.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return 0
    found = [
        (parent, name, layer)
        for parent in module.modules()
        for name, layer in parent.named_children()
        if type(layer) is Linear
        and layer.weight.dtype == torch.bfloat16
        and layer.weight.device.type == "cpu"
    ]
    for parent, name, layer in found:
        setattr(parent, name, PackedLinear(layer))
    return len(found)


def pack_blocks(transformer: nn.Module) -> int:
    """The same for what all tokens of a picture pass in SANA's blocks.

    The layers around the prompt's attention stay: they may be folded (`kernels.prompt`).
    """
    blocks = transformer.get_submodule("blocks").children()
    return sum(
        pack_linears(block.get_submodule(part)) for block in blocks for part in ("attention", "feed_forward")
    )
