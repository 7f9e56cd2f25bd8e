"""In float16 no product leaves the range of numbers, and other dtypes are torch's own layers to the bit."""

import pytest
import torch
from torch import Tensor, nn

from lineardit.nn.wide import LARGEST, BatchNorm2d, Conv2d, Linear, fitting, scaled_product


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [1e-3, 1.0, 2e4, 1e9])
def test_products_of_any_size_are_finite_and_right(size: float) -> None:
    x, weight = draw(5, 37) * size, draw(11, 37, seed=1).half()
    exact = x.double() @ weight.double().T
    found = scaled_product(x, weight, lambda y: nn.functional.linear(y, weight))
    assert found.dtype == torch.float32
    # Both factors are rounded to 11 bits, and sums of 37 products are as large as the largest.
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=2e-3 * exact.abs().max().item())
    if size > 1e3:
        assert not nn.functional.linear(x.half(), weight).isfinite().all()


def test_the_divisor_is_a_power_of_two_and_just_large_enough() -> None:
    weight = torch.tensor([[1.0, -3.0], [2.0, 1.0]]).half()  # rows reach 4 and 3
    assert fitting(torch.tensor([-0.5, 1.0]), weight) == 1
    assert fitting(torch.tensor([-LARGEST, 1.0]), weight) == 4
    assert fitting(torch.tensor([LARGEST + 8, 1.0]), weight) == 8
    assert fitting(torch.zeros(2), weight) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes_are_torch_to_the_bit(dtype: torch.dtype) -> None:
    pairs = [
        (Linear(7, 5), nn.Linear(7, 5), draw(3, 7)),
        (Conv2d(6, 4, 3, padding=1, stride=2), nn.Conv2d(6, 4, 3, padding=1, stride=2), draw(2, 6, 5, 8)),
        (BatchNorm2d(6), nn.BatchNorm2d(6), draw(2, 6, 5, 8)),
    ]
    for ours, theirs, x in pairs:
        theirs.load_state_dict(ours.state_dict())
        assert torch.equal(ours.eval().to(dtype)(x.to(dtype)), theirs.eval().to(dtype)(x.to(dtype)))


@pytest.mark.parametrize("groups", [1, 6])
def test_float16_layers_give_float32_of_what_they_are_in_float32(groups: int) -> None:
    norm = BatchNorm2d(6)
    norm.running_var.copy_(draw(6).abs() + 1)
    layers = [(Linear(7, 5), draw(3, 7)), (Conv2d(6, 6, 3, padding=1, groups=groups), draw(2, 6, 5, 8))]
    for layer, x in [*layers, (norm, draw(2, 6, 5, 8))]:
        layer.eval()
        half = layer.half()(1e6 * x)
        assert half.dtype == torch.float32 and half.isfinite().all()
        torch.testing.assert_close(half, layer.float()(1e6 * x), rtol=1e-5, atol=1)
