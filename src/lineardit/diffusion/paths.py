"""Paths from image to noise, x_t = alpha(t) x0 + sigma(t) noise, and conversions between predictions."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(latents, times (b,)) -> velocity: all that learning, sampling, guidance and networks share."""


def per_sample(values: Shaped[Tensor, "b"], like: Tensor) -> Tensor:
    """Values of shape (b,) with trailing axes of size 1, so that they multiply `like` sample by sample."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


class Path(ABC):
    """x_t = alpha(t) x0 + sigma(t) noise, with its velocity v = a(t) x0 + b(t) noise.

    Each path here scales v such that alpha b - sigma a = 1. Two of x_t, x0, noise and v then give
    the others without another determinant, which is all that the conversions below do.
    Times have shape (b,), one for each sample. Everything has the dtype of its inputs.
    """

    @abstractmethod
    def alpha(self, times: Shaped[Tensor, "b"]) -> Float[Tensor, "b"]:
        """How much of the image is in x_t."""

    @abstractmethod
    def sigma(self, times: Shaped[Tensor, "b"]) -> Float[Tensor, "b"]:
        """How much of the noise is in x_t."""

    @abstractmethod
    def velocity_weights(self, times: Shaped[Tensor, "b"]) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
        """(a, b) of v = a x0 + b noise."""

    def add_noise(
        self, x0: Float[Tensor, "b *axes"], noise: Float[Tensor, "b *axes"], times: Shaped[Tensor, "b"]
    ) -> Float[Tensor, "b *axes"]:
        """x_t = alpha x0 + sigma noise."""
        return self._alpha(times, x0) * x0 + self._sigma(times, x0) * noise

    def velocity(
        self, x0: Float[Tensor, "b *axes"], noise: Float[Tensor, "b *axes"], times: Shaped[Tensor, "b"]
    ) -> Float[Tensor, "b *axes"]:
        """v = a x0 + b noise."""
        a, b = self._velocity_weights(times, x0)
        return a * x0 + b * noise

    def x0_from_velocity(
        self, velocity: Float[Tensor, "b *axes"], x: Float[Tensor, "b *axes"], times: Shaped[Tensor, "b"]
    ) -> Float[Tensor, "b *axes"]:
        """x0 = b x - sigma v."""
        _, b = self._velocity_weights(times, x)
        return b * x - self._sigma(times, x) * velocity

    def noise_from_velocity(
        self, velocity: Float[Tensor, "b *axes"], x: Float[Tensor, "b *axes"], times: Shaped[Tensor, "b"]
    ) -> Float[Tensor, "b *axes"]:
        """noise = alpha v - a x."""
        a, _ = self._velocity_weights(times, x)
        return self._alpha(times, x) * velocity - a * x

    def velocity_from_noise(
        self, noise: Float[Tensor, "b *axes"], x: Float[Tensor, "b *axes"], times: Shaped[Tensor, "b"]
    ) -> Float[Tensor, "b *axes"]:
        """v = (noise + a x) / alpha. Not defined where alpha = 0."""
        a, _ = self._velocity_weights(times, x)
        return (noise + a * x) / self._alpha(times, x)

    def velocity_from_x0(
        self, x0: Float[Tensor, "b *axes"], x: Float[Tensor, "b *axes"], times: Shaped[Tensor, "b"]
    ) -> Float[Tensor, "b *axes"]:
        """v = (b x - x0) / sigma. Not defined where sigma = 0."""
        _, b = self._velocity_weights(times, x)
        return (b * x - x0) / self._sigma(times, x)

    def x0_from_noise(
        self, noise: Float[Tensor, "b *axes"], x: Float[Tensor, "b *axes"], times: Shaped[Tensor, "b"]
    ) -> Float[Tensor, "b *axes"]:
        """x0 = (x - sigma noise) / alpha. Not defined where alpha = 0."""
        return (x - self._sigma(times, x) * noise) / self._alpha(times, x)

    def noise_from_x0(
        self, x0: Float[Tensor, "b *axes"], x: Float[Tensor, "b *axes"], times: Shaped[Tensor, "b"]
    ) -> Float[Tensor, "b *axes"]:
        """noise = (x - alpha x0) / sigma. Not defined where sigma = 0."""
        return (x - self._alpha(times, x) * x0) / self._sigma(times, x)

    def _alpha(self, times: Tensor, like: Tensor) -> Tensor:
        return per_sample(self.alpha(times), like).to(like.dtype)

    def _sigma(self, times: Tensor, like: Tensor) -> Tensor:
        return per_sample(self.sigma(times), like).to(like.dtype)

    def _velocity_weights(self, times: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.velocity_weights(times)
        return per_sample(a, like).to(like.dtype), per_sample(b, like).to(like.dtype)


@dataclass(frozen=True)
class FlowPath(Path):
    """The straight line x_t = (1 - t) x0 + t noise with v = noise - x0, t in [0, 1] (arXiv:2209.03003)."""

    def alpha(self, times: Shaped[Tensor, "b"]) -> Float[Tensor, "b"]:
        """1 - t."""
        return 1 - times

    def sigma(self, times: Shaped[Tensor, "b"]) -> Float[Tensor, "b"]:
        """t."""
        return times

    def velocity_weights(self, times: Shaped[Tensor, "b"]) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
        """(-1, 1)."""
        return -torch.ones_like(times), torch.ones_like(times)


@dataclass(frozen=True)
class TrigFlowPath(Path):
    """The quarter circle x_t = cos(t) x0 + sin(t) noise with v = dx/dt, t in [0, pi / 2] (arXiv:2410.11081).

    Images are expected with deviation 1: divide them by sigma_data (0.5 in SANA-Sprint) beforehand.
    """

    def alpha(self, times: Shaped[Tensor, "b"]) -> Float[Tensor, "b"]:
        """cos t."""
        return torch.cos(times)

    def sigma(self, times: Shaped[Tensor, "b"]) -> Float[Tensor, "b"]:
        """sin t."""
        return torch.sin(times)

    def velocity_weights(self, times: Shaped[Tensor, "b"]) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
        """(-sin t, cos t)."""
        return -torch.sin(times), torch.cos(times)
