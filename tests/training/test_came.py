"""CAME against its definition in float64, written from the paper."""

import pytest
import torch
from torch import Tensor, nn

from lineardit.kernels.live import peak_bytes
from lineardit.training.came import CAME, IN_HAND

BETAS = (0.9, 0.99, 0.999)


def definition(weights: Tensor, gradients: list[Tensor], rate: float, decay: float) -> Tensor:
    """Algorithm 2 of arXiv:2307.02047 for a matrix, with the means written out."""
    b1, b2, b3 = BETAS
    m = torch.zeros_like(weights)
    r, big_r = (torch.zeros(len(weights), dtype=torch.float64) for _ in range(2))
    c, big_c = (torch.zeros(weights.shape[1], dtype=torch.float64) for _ in range(2))
    for g in gradients:
        squares = g**2 + 1e-30
        r, c = b2 * r + (1 - b2) * squares.mean(1), b2 * c + (1 - b2) * squares.mean(0)
        u = g / torch.sqrt(torch.outer(r, c) / r.mean())
        u = u / max(1.0, float((u**2).mean().sqrt()))
        m = b1 * m + (1 - b1) * u
        distance = (u - m) ** 2 + 1e-16
        big_r = b3 * big_r + (1 - b3) * distance.mean(1)
        big_c = b3 * big_c + (1 - b3) * distance.mean(0)
        step = m / torch.sqrt(torch.outer(big_r, big_c) / big_r.mean())
        weights = weights - rate * decay * weights - rate * step
    return weights


def followed(parameter: nn.Parameter, gradients: list[Tensor]) -> CAME:
    optimizer = CAME([parameter], 0.01, betas=BETAS, weight_decay=0.3)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return optimizer


def drawn(*shape: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) * 10 ** (-k) for k in range(5)]


def test_a_matrix_follows_the_definition() -> None:
    start, *gradients = drawn(7, 11)
    parameter = nn.Parameter(start.clone())
    optimizer = followed(parameter, gradients)
    torch.testing.assert_close(
        parameter.data, definition(start, gradients, 0.01, 0.3), rtol=1e-10, atol=1e-12
    )
    kept = {name: tuple(value.shape) for name, value in optimizer.state[parameter].items()}
    assert kept == {
        "mean": (7, 11),
        "square_row": (7, 1),
        "square_column": (1, 11),
        "distance_row": (7, 1),
        "distance_column": (1, 11),
    }


def test_a_kernel_is_a_matrix_of_its_output_channels() -> None:
    start, *gradients = drawn(5, 2, 3, 3)
    parameter = nn.Parameter(start.clone())
    followed(parameter, gradients)
    flat = definition(start.flatten(1), [each.flatten(1) for each in gradients], 0.01, 0.3)
    torch.testing.assert_close(parameter.data.flatten(1), flat, rtol=1e-10, atol=1e-12)


def test_a_vector_keeps_its_whole_second_moment() -> None:
    start, *gradients = drawn(7)
    parameter = nn.Parameter(start.clone())
    optimizer = followed(parameter, gradients)
    square, m, weights = torch.zeros_like(start), torch.zeros_like(start), start
    for g in gradients:
        square = 0.99 * square + 0.01 * (g**2 + 1e-30)
        u = g / square.sqrt()
        m = 0.9 * m + 0.1 * u / max(1.0, float((u**2).mean().sqrt()))
        weights = weights - 0.01 * 0.3 * weights - 0.01 * m
    torch.testing.assert_close(parameter.data, weights, rtol=1e-10, atol=1e-12)
    assert optimizer.state[parameter].keys() == {"mean", "square"}


def test_what_has_no_gradient_stays() -> None:
    still = nn.Parameter(torch.ones(3, 3))
    optimizer = CAME([still], 0.1, weight_decay=0.5)
    optimizer.step()
    assert torch.equal(still, torch.ones(3, 3)) and not optimizer.state


@pytest.mark.parametrize("shape", [(300, 200), (40, 30, 5, 5), (1, 60_000)])
def test_an_update_takes_no_more_matrices_at_once_than_it_says(shape: tuple[int, ...]) -> None:
    weight = nn.Parameter(torch.randn(shape))
    optimizer = CAME([weight], 0.1)
    weight.grad = torch.randn(shape)
    optimizer.step()
    taken = peak_bytes(optimizer.step)
    assert taken == pytest.approx(IN_HAND * 4 * weight.numel(), rel=0.05)
