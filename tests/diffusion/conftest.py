"""A distribution whose every expectation along a path is known in closed form."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor


@dataclass(frozen=True)
class GaussianMixture:
    """Round Gaussians: means (k, dim), deviations (k,), weights (k,), all float64."""

    means: Tensor
    deviations: Tensor
    weights: Tensor

    def expectations(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """E[x0 | x] and E[noise | x] for x = alpha x0 + sigma noise; alpha and sigma have shape (b,)."""
        alpha, sigma = alpha[:, None], sigma[:, None]
        variances = (alpha * self.deviations) ** 2 + sigma**2
        offsets = x[:, None] - alpha[:, :, None] * self.means
        logits = (
            self.weights.log() - x.shape[1] / 2 * variances.log() - offsets.square().sum(2) / (2 * variances)
        )
        shares = logits.softmax(1)
        x0 = self.means + (alpha * self.deviations**2 / variances)[:, :, None] * offsets
        noise = (sigma / variances)[:, :, None] * offsets
        return torch.einsum("bk,bkd->bd", shares, x0), torch.einsum("bk,bkd->bd", shares, noise)

    def flow_velocity(self, x: Tensor, times: Tensor) -> Tensor:
        """E[noise - x0 | x_t = x] on the flow path: the velocity that flow matching converges to."""
        x0, noise = self.expectations(x, 1 - times, times)
        return noise - x0

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Samples of it."""
        chosen = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        normal = torch.randn(count, self.means.shape[1], dtype=torch.float64, generator=generator)
        return self.means[chosen] + self.deviations[chosen, None] * normal


def mixture(dim: int) -> GaussianMixture:
    """Three Gaussians whose variance over all is about 1 on each axis."""
    generator = torch.Generator().manual_seed(dim)
    return GaussianMixture(
        means=torch.randn(3, dim, dtype=torch.float64, generator=generator),
        deviations=torch.tensor([0.3, 0.4, 0.5], dtype=torch.float64),
        weights=torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
    )


@pytest.fixture(params=[2, 8], ids=["2-D", "8-D"])
def gaussians(request: pytest.FixtureRequest) -> GaussianMixture:
    """A mixture in 2 and one in 8 dimensions."""
    return mixture(request.param)
