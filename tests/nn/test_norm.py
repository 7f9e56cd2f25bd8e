"""Root-mean-square normalisation against its formula and against diffusers."""

import pytest
import torch
from diffusers.models.normalization import RMSNorm as DiffusersRMSNorm
from torch import Tensor

from lineardit.nn.norm import ChannelRMSNorm, RMSNorm

WIDTH = 13


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def norm(kind: type[RMSNorm], bias: bool) -> RMSNorm:
    layer = kind(WIDTH, bias=bias)
    layer.weight.data = randn(WIDTH, seed=1)
    if layer.bias is not None:
        layer.bias.data = randn(WIDTH, seed=2)
    return layer


@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_it_is_the_formula_and_that_of_diffusers(bias: bool) -> None:
    layer, x = norm(RMSNorm, bias), randn(3, 7, WIDTH, seed=3)
    wide = x.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.weight.double()
    if layer.bias is not None:
        expected = expected + layer.bias.double()
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-6, atol=1e-6)
    theirs = DiffusersRMSNorm(WIDTH, eps=1e-5, bias=bias)
    theirs.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(x), theirs(x), rtol=0, atol=1e-5)


@torch.no_grad()
def test_over_the_channels_of_a_picture_it_is_the_same() -> None:
    layer, x = norm(ChannelRMSNorm, bias=True), randn(2, WIDTH, 5, 7, seed=3)
    tokens = norm(RMSNorm, bias=True)(x.flatten(2).transpose(1, 2))
    torch.testing.assert_close(layer(x).flatten(2).transpose(1, 2), tokens)


@torch.no_grad()
def test_squares_that_float16_cannot_hold_are_no_problem() -> None:
    layer = RMSNorm(WIDTH).half()
    x = torch.full((1, WIDTH), 300.0, dtype=torch.float16)
    assert x.square().isinf().all()
    out = layer(x)
    assert out.dtype == torch.float16 and torch.equal(out, torch.ones_like(x))


@torch.no_grad()
def test_the_result_has_the_dtype_of_the_input_even_with_wider_weights() -> None:
    x = randn(3, WIDTH, seed=3).bfloat16()
    for bias in (False, True):
        layer = norm(RMSNorm, bias)
        assert layer(x).dtype == torch.bfloat16
        torch.testing.assert_close(layer(x).float(), layer(x.float()), rtol=2**-8, atol=0)
