"""The Frechet distance of two normals against its closed forms and scipy-free definitions."""

import pytest
import torch
from torch import Tensor

from lineardit.errors import InputError
from lineardit.evaluation.frechet import Moments, frechet_distance


def moments(rows: Tensor, *, parts: int = 3) -> Moments:
    made = Moments(rows.shape[1])
    for part in rows.chunk(parts):
        made.add(part)
    return made


def test_moments_are_those_of_all_rows_however_large_their_mean() -> None:
    rows = 1e6 + torch.randn(50, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    made = moments(rows)
    torch.testing.assert_close(made.mean, rows.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(made.covariance, rows.T.cov(), rtol=1e-9, atol=1e-9)


def test_features_that_vary_apart_have_the_distance_of_each_added_up() -> None:
    """For diagonal covariances: sum of (m1 - m2)^2 + (s1 - s2)^2."""
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    unit = signs * (3 / 4) ** 0.5  # variance 1 with one taken off the count
    first = moments(unit * torch.tensor([2.0, 0.5]) + torch.tensor([1.0, -4.0]))
    second = moments(unit * torch.tensor([3.0, 0.0]) + torch.tensor([1.5, -4.0]))
    assert frechet_distance(first, second) == pytest.approx(0.5**2 + 1.0**2 + 0.5**2)


def test_the_root_is_that_of_the_product_of_the_covariances() -> None:
    generator = torch.Generator().manual_seed(1)
    one, two = (
        torch.randn(40, 4, dtype=torch.float64, generator=generator)
        @ torch.randn(4, 4, dtype=torch.float64, generator=generator)
        for _ in range(2)
    )
    c1, c2 = one.T.cov(), two.T.cov()
    # The eigenvalues of a product of two positive matrices are positive, and their roots those of its root.
    root = torch.linalg.eigvals(c1 @ c2).real.sqrt().sum()
    expected = (one.mean(0) - two.mean(0)).square().sum() + c1.trace() + c2.trace() - 2 * root
    assert frechet_distance(moments(one), moments(two)) == pytest.approx(float(expected))
    assert frechet_distance(moments(two), moments(one)) == pytest.approx(float(expected))


def test_fewer_rows_than_features_are_no_obstacle_and_equal_rows_are_at_distance_zero() -> None:
    rows = torch.randn(5, 30, generator=torch.Generator().manual_seed(2))
    assert frechet_distance(moments(rows), moments(rows, parts=2)) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(moments(rows), moments(rows + 1)) == pytest.approx(30, rel=1e-5)


def test_one_picture_has_no_covariance() -> None:
    with pytest.raises(InputError, match="covariance of 1 pictures"):
        frechet_distance(moments(torch.ones(1, 2), parts=1), moments(torch.ones(4, 2)))
    with pytest.raises(InputError, match="mean of no pictures"):
        _ = Moments(3).mean
