"""Layers that stay finite in float16, which holds no number above 65504.

With float16 weights the inputs of a product are divided by a power of two, so that no sum of it can leave
the range of float16, and the result is multiplied back in float32. What lies between products is float32
then: the residual stream, gates, norms and attention. With other dtypes these are torch's own layers.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from lineardit.kernels import passes
from lineardit.kernels.convolution import convolved

LARGEST = 2.0**15
"""What sums are kept below; float16 ends at almost twice as much."""


class Linear(nn.Linear):
    """A linear layer; float32 out of float16 weights."""

    def forward(self, x: Float[Tensor, "*b c"]) -> Float[Tensor, "*b d"]:
        """x W^T + bias."""
        if self.weight.dtype != torch.float16:
            return passes.linear(x, self.weight, self.bias)
        return linear(x, self.weight, self.bias)


class Conv2d(nn.Conv2d):
    """A convolution with zeros around the picture; float32 out of float16 weights."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        """Every pixel from its neighbourhood."""
        if self.weight.dtype != torch.float16:
            return convolved(x, self.weight, self.bias) if self._is_common else super().forward(x)
        bias = None if self.bias is None else self.bias.float()
        # Depthwise kernels are small, and a CPU multiplies float16 slower than float32.
        if x.device.type == "cpu" or self.groups > 1:
            return self._conv_forward(x.float(), self.weight.float(), bias)
        product = scaled_product(x, self.weight, lambda y: self._conv_forward(y, self.weight, None))
        return product if bias is None else product + bias[:, None, None]

    @property
    def _is_common(self) -> bool:
        """3x3, every pixel, all channels with all."""
        geometry = self.kernel_size, self.stride, self.padding, self.dilation, self.groups
        return geometry == ((3, 3), (1, 1), (1, 1), (1, 1), 1)


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation; of half-precision pictures in float32."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Normalise each channel; the result has the dtype of `x`."""
        if self.weight.dtype != torch.float16:
            return super().forward(x)
        assert self.running_mean is not None and self.running_var is not None and not self.training
        mean, variance = self.running_mean.float(), self.running_var.float()
        weight, bias = self.weight.float(), self.bias.float()
        return functional.batch_norm(x.float(), mean, variance, weight, bias, eps=self.eps)


class LayerNorm(nn.LayerNorm):
    """Layer normalisation; with float16 weights in float32."""

    def forward(self, x: Float[Tensor, "*b c"]) -> Float[Tensor, "*b c"]:
        """Normalise the last axis."""
        if self.weight is None or self.weight.dtype != torch.float16:
            return super().forward(x)
        bias = None if self.bias is None else self.bias.float()
        return functional.layer_norm(x.float(), self.normalized_shape, self.weight.float(), bias, self.eps)


def linear(
    x: Float[Tensor, "*b c"], weight: Float[Tensor, "d c"], bias: Float[Tensor, " d"] | None = None
) -> Float[Tensor, "*b d"]:
    """x W^T + bias in float32, for float16 weights and an input of float16 or float32."""
    if x.device.type == "cpu":  # multiplies float16 slower than float32
        return functional.linear(x.float(), weight.float(), None if bias is None else bias.float())
    product = scaled_product(x, weight, lambda y: functional.linear(y, weight))
    return product if bias is None else product + bias


def scaled_product(x: Tensor, weight: Float[Tensor, "d *k"], product: Callable[[Tensor], Tensor]) -> Tensor:
    """What `product`, which sums over `weight`, makes of x: multiplied in float16, given in float32."""
    scale = fitting(x, weight)
    return product((x.float() / scale).half()).float() * scale


def fitting(x: Tensor, weight: Float[Tensor, "d *k"]) -> Float[Tensor, ""]:
    """The power of two, 1 or more, that `x` must be divided by so that no sum with `weight` exceeds LARGEST.

    A sum is at most the largest number of `x` times the largest row sum of |weight|.
    """
    lowest, highest = x.aminmax()
    largest = torch.maximum(-lowest, highest).float()
    reach = torch.linalg.vector_norm(weight.flatten(1), 1, dim=1, dtype=torch.float32).amax()
    return torch.exp2(torch.log2(largest * reach / LARGEST).ceil().clamp(min=0))
