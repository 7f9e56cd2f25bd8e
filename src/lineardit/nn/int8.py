"""Linear layers with weights of int8: half the memory of bfloat16, and products at up to twice its rate."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lineardit.errors import InputError
from lineardit.kernels.int8 import int8_linear, quantized_rows
from lineardit.nn.offload import offloaded
from lineardit.nn.wide import Linear


class Int8Linear(nn.Module):
    """x W^T + bias, W as int8 with a scale for each output, x rounded to int8 row by row as it comes."""

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = quantized_rows(linear.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x: Float[Tensor, "*b c"], *, silu: bool = False) -> Float[Tensor, "*b d"]:
        """In the dtype of x; SiLU of it where asked for."""
        return int8_linear(x, self.weight, self.scale, self.bias, silu=silu)

    def dequantized(self) -> Float[Tensor, "d c"]:
        """The weight that the layer stands for, in float32."""
        return self.weight.float() * self.scale[:, None]


def quantize_linears(model: nn.Module) -> int:
    """Replace the linear layers of `model`, in place and for good, and return how many there were.

    Layers that make keys and values of prompts stay: they run once a picture.

    Raises:
        InputError: weights of float16, whose products are float32 anyway, or no layer to replace.
    """
    found = _to_quantize(model)
    for parent, name, layer in found:
        setattr(parent, name, Int8Linear(layer))
        layer.weight = nn.Parameter(torch.empty_like(layer.weight, device="meta"), requires_grad=False)
    return len(found)


def quantize_blocks(transformer: nn.Module) -> None:
    """The same for its `blocks`; offloaded ones are quantized whenever they are read. Raises alike."""
    for block in transformer.get_submodule("blocks").children():
        parts = offloaded(block)
        if not parts:
            quantize_linears(block)
            continue
        if any(part.when_read is not None for part in parts):
            raise InputError(_NOTHING)
        weights = [layer.weight for _, _, layer in _to_quantize(block)]
        for part in parts:
            part.forget()
            part.size_bytes -= sum(each.nbytes - each.numel() - _SCALE_BYTES * len(each) for each in weights)
            part.when_read = quantize_linears


_SCALE_BYTES = torch.float32.itemsize
_EXACT = "to_kv", "to_table"
"""Read once a picture, or what steers every token: rounding them saves little."""
_NOTHING = "there is no linear layer to quantize: the model is quantized already, or has none of the kind."


def _to_quantize(model: nn.Module) -> list[tuple[nn.Module, str, Linear]]:
    """Layers with the modules that have them, and what they are called there. Raises `InputError`."""
    found = [
        (parent, name, layer)
        for parent in model.modules()
        for name, layer in parent.named_children()
        if type(layer) is Linear and name not in _EXACT
    ]
    if not found:
        raise InputError(_NOTHING)
    if any(layer.weight.dtype == torch.float16 for _, _, layer in found):
        raise InputError("weights of float16 cannot be quantized to int8. Use dtype bf16 or fp32.")
    return found
