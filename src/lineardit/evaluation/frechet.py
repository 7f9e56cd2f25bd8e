"""Frechet distance between pictures and others, as normals over features: FID where these are Inception's."""

import torch
from jaxtyping import Float
from torch import Tensor

from lineardit.errors import InputError


class Moments:
    """Mean and covariance of features, added up batch by batch in float64."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self._sum = torch.zeros(width, dtype=torch.float64)
        self._products = torch.zeros(width, width, dtype=torch.float64)
        self._origin: Tensor | None = None

    def add(self, features: Float[Tensor, "b f"]) -> None:
        """Count some more."""
        rows = features.double().cpu()
        if self._origin is None:
            # Around a typical row, so that the products of large means do not drown the covariance.
            self._origin = rows.mean(0)
        rows = rows - self._origin
        self.count += len(rows)
        self._sum += rows.sum(0)
        self._products += rows.T @ rows

    @property
    def mean(self) -> Float[Tensor, " f"]:
        """Of all features so far. Raises: InputError where there are none."""
        if self._origin is None:
            raise InputError("a mean of no pictures was asked for: measure at least one.")
        return self._origin + self._sum / self.count

    @property
    def covariance(self) -> Float[Tensor, "f f"]:
        """The unbiased one. Raises: InputError for fewer than two pictures."""
        if self.count < 2:
            raise InputError(f"a covariance of {self.count} pictures was asked for: measure at least two.")
        return (self._products - torch.outer(self._sum, self._sum) / self.count) / (self.count - 1)


def frechet_distance(first: Moments, second: Moments) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), as FID (arXiv:1706.08500) has it.

    The root's trace is the sum of the roots of the eigenvalues of C1^(1/2) C2 C1^(1/2), which is symmetric:
    that also holds where fewer pictures than features leave the covariances singular.
    """
    c1, c2 = first.covariance, second.covariance
    values, vectors = torch.linalg.eigh(c1)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    shared = torch.linalg.eigvalsh(root @ c2 @ root).clamp_min(0).sqrt().sum()
    distance = (first.mean - second.mean).square().sum() + c1.trace() + c2.trace() - 2 * shared
    return max(0.0, float(distance))
