"""Paths from image to noise, x_t = alpha(t) x0 + sigma(t) noise, and conversions between predictions."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from lineardit.errors import InputError

Samples = Float[Tensor, "b *axes"]
"""Images, latents, tokens or points: anything with a batch axis."""
Times = Shaped[Tensor, "b"]
"""A time for each sample: real numbers, or whole ones on the DDPM path."""
PerSample = Float[Tensor, "b"]
"""A number for each sample."""
Velocity = Callable[[Tensor, Tensor], Tensor]
"""(latents, times (b,)) -> velocity: all that learning, sampling, guidance and networks share."""


def per_sample(values: Times, like: Samples) -> Tensor:
    """Values of shape (b,) with trailing axes of size 1, so that they multiply `like` sample by sample."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def widened(x: Samples) -> Samples:
    """`x` in float32, or as it is where it is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Path(ABC):
    """x_t = alpha(t) x0 + sigma(t) noise, with its velocity v = a(t) x0 + b(t) noise.

    Each path here scales v such that alpha b - sigma a = 1. Two of x_t, x0, noise and v then give
    the others without another determinant, which is all that the conversions below do.
    Times have shape (b,), one for each sample. Everything has the dtype of its inputs.
    """

    @abstractmethod
    def alpha(self, times: Times) -> PerSample:
        """How much of the image is in x_t."""

    @abstractmethod
    def sigma(self, times: Times) -> PerSample:
        """How much of the noise is in x_t."""

    @abstractmethod
    def velocity_weights(self, times: Times) -> tuple[PerSample, PerSample]:
        """(a, b) of v = a x0 + b noise."""

    def snr(self, times: Times) -> PerSample:
        """alpha^2 / sigma^2, the signal-to-noise ratio."""
        return (self.alpha(times) / self.sigma(times)).square()

    def add_noise(self, x0: Samples, noise: Samples, times: Times) -> Samples:
        """x_t = alpha x0 + sigma noise."""
        return self._alpha(times, x0) * x0 + self._sigma(times, x0) * noise

    def velocity(self, x0: Samples, noise: Samples, times: Times) -> Samples:
        """v = a x0 + b noise."""
        a, b = self._velocity_weights(times, x0)
        return a * x0 + b * noise

    def x0_from_velocity(self, velocity: Samples, x: Samples, times: Times) -> Samples:
        """x0 = b x - sigma v."""
        _, b = self._velocity_weights(times, x)
        return b * x - self._sigma(times, x) * velocity

    def noise_from_velocity(self, velocity: Samples, x: Samples, times: Times) -> Samples:
        """noise = alpha v - a x."""
        a, _ = self._velocity_weights(times, x)
        return self._alpha(times, x) * velocity - a * x

    def velocity_from_noise(self, noise: Samples, x: Samples, times: Times) -> Samples:
        """v = (noise + a x) / alpha. Not defined where alpha = 0."""
        a, _ = self._velocity_weights(times, x)
        return (noise + a * x) / self._alpha(times, x)

    def velocity_from_x0(self, x0: Samples, x: Samples, times: Times) -> Samples:
        """v = (b x - x0) / sigma. Not defined where sigma = 0."""
        _, b = self._velocity_weights(times, x)
        return (b * x - x0) / self._sigma(times, x)

    def x0_from_noise(self, noise: Samples, x: Samples, times: Times) -> Samples:
        """x0 = (x - sigma noise) / alpha. Not defined where alpha = 0."""
        return (x - self._sigma(times, x) * noise) / self._alpha(times, x)

    def noise_from_x0(self, x0: Samples, x: Samples, times: Times) -> Samples:
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

    def alpha(self, times: Times) -> PerSample:
        """1 - t."""
        return 1 - times

    def sigma(self, times: Times) -> PerSample:
        """t."""
        return times

    def velocity_weights(self, times: Times) -> tuple[PerSample, PerSample]:
        """(-1, 1)."""
        return -torch.ones_like(times), torch.ones_like(times)


@dataclass(frozen=True)
class TrigFlowPath(Path):
    """The quarter circle x_t = cos(t) x0 + sin(t) noise with v = dx/dt, t in [0, pi / 2] (arXiv:2410.11081).

    Images are expected with deviation 1: divide them by sigma_data (0.5 in SANA-Sprint) beforehand.
    """

    def alpha(self, times: Times) -> PerSample:
        """cos t."""
        return torch.cos(times)

    def sigma(self, times: Times) -> PerSample:
        """sin t."""
        return torch.sin(times)

    def velocity_weights(self, times: Times) -> tuple[PerSample, PerSample]:
        """(-sin t, cos t)."""
        return -torch.sin(times), torch.cos(times)


class DDPMPath(Path):
    """x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) noise at whole times 0 .. steps - 1 (DDPM, arXiv:2006.11239).

    abar is the running product of 1 - beta, in float64. Time -1 stands for the image itself, abar = 1.
    The velocity v = alpha noise - sigma x0 is that of arXiv:2202.00512. Images are expected with deviation 1.
    """

    def __init__(self, betas: Float[Tensor, "steps"]) -> None:
        if not ((betas > 0) & (betas < 1)).all():
            raise InputError(f"betas from {betas.min():g} to {betas.max():g} do not all lie between 0 and 1.")
        self.steps = len(betas)
        self.betas = betas.double()
        # The image itself comes last, so that it is what index -1 finds.
        self.alpha_bars = torch.cat([torch.cumprod(1 - self.betas, 0), torch.ones(1, dtype=torch.float64)])
        self._copies: dict[torch.device, Tensor] = {}  # a GPU would wait for the table at each use

    @classmethod
    def linear(cls, steps: int = 1000, first: float = 0.0001, last: float = 0.02) -> "DDPMPath":
        """Betas in equal steps (DDPM, DiT)."""
        return cls(torch.linspace(first, last, steps, dtype=torch.float64))

    @classmethod
    def scaled_linear(cls, steps: int = 1000, first: float = 0.00085, last: float = 0.012) -> "DDPMPath":
        """Betas whose square roots go in equal steps (latent diffusion, arXiv:2112.10752)."""
        return cls(torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64).square())

    @classmethod
    def cosine(cls, steps: int = 1000, largest: float = 0.999) -> "DDPMPath":
        """abar(u) ~ cos((u + 0.008) / 1.008 pi / 2)^2, betas at most `largest` (arXiv:2102.09672)."""
        u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        alpha_bars = torch.cos((u + 0.008) / 1.008 * math.pi / 2).square()
        return cls((1 - alpha_bars[1:] / alpha_bars[:-1]).clamp(max=largest))

    def alpha(self, times: Times) -> PerSample:
        """sqrt(abar), in float64."""
        return self._alpha_bars_at(times).sqrt()

    def sigma(self, times: Times) -> PerSample:
        """sqrt(1 - abar), in float64."""
        return (1 - self._alpha_bars_at(times)).sqrt()

    def velocity_weights(self, times: Times) -> tuple[PerSample, PerSample]:
        """(-sigma, alpha)."""
        return -self.sigma(times), self.alpha(times)

    def _alpha_bars_at(self, times: Tensor) -> Tensor:
        if times.device not in self._copies:
            self._copies[times.device] = self.alpha_bars.to(times.device)
        return self._copies[times.device][times]
