"""What a network learns: losses of noised latents, one for each sample."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from lineardit.config.runs import TimeConfig
from lineardit.diffusion.paths import DDPMPath, FlowPath, PerSample, Samples, Times, Velocity, widened
from lineardit.diffusion.predictions import Prediction
from lineardit.diffusion.times import (
    LogitNormal,
    TimeDistribution,
    check_shift,
    shift_at,
    shift_times,
    time_distribution,
)
from lineardit.errors import ConfigError, ShapeError

Weighting = Callable[[Tensor], Tensor]
"""times (b,) -> weights (b,) of the losses at these times."""


@runtime_checkable
class Objective(Protocol):
    """What a network learns at times that the objective draws."""

    def draw_times(self, count: int, generator: torch.Generator) -> Times:
        """Where training looks, on the generator's device."""
        ...

    def loss_at(self, model: Velocity, latents: Samples, noise: Samples, times: Times, /) -> PerSample:
        """Losses at given noise and times."""
        ...


@dataclass(frozen=True)
class FlowMatching:
    """loss = w(t) mean((v(x_t, t) - (noise - x0))^2) with x_t = (1 - t) x0 + t noise.

    t is drawn from a distribution and then shifted: t' = s t / (1 + (s - 1) t). Noising and loss run in
    float32 or wider whatever the dtype of the latents, and the velocity is called with that dtype.
    Stable Diffusion 3, arXiv:2403.03206; SANA, arXiv:2410.10629, section 2.3.
    """

    time_distribution: TimeDistribution = field(default_factory=LogitNormal)
    """Where training looks, before the shift."""
    shift: float = 1.0
    """s > 1 looks at noisier times."""
    weighting: Weighting | None = None
    """Weight of the loss at a (shifted) time; none weighs all alike."""

    def __post_init__(self) -> None:
        check_shift(self.shift)

    def draw_times(self, count: int, generator: torch.Generator) -> PerSample:
        """Where training looks, after the shift; float32, on the generator's device."""
        return shift_times(self.time_distribution.draw(count, generator), self.shift)

    def loss(self, velocity: Velocity, latents: Samples, generator: torch.Generator) -> PerSample:
        """Losses at times and noise drawn from `generator`, which may live on another device."""
        times = self.draw_times(len(latents), generator)
        return self.loss_at(velocity, latents, draw_noise(latents, generator), times.to(latents.device))

    def loss_at(self, velocity: Velocity, latents: Samples, noise: Samples, times: PerSample) -> PerSample:
        """Losses at given noise and times: what a validation that can be repeated uses."""
        path, x0 = FlowPath(), widened(latents)
        noise, times = noise.to(x0.dtype), times.to(x0.dtype)
        predicted = velocity(path.add_noise(x0, noise, times), times)
        losses = squared_error(predicted, path.velocity(x0, noise, times))
        return losses if self.weighting is None else self.weighting(times) * losses


@dataclass(frozen=True)
class Denoising:
    """loss = w(t) mean((model(x_t, t) - target)^2) with t uniform on the whole times of a DDPM path.

    DDPM, arXiv:2006.11239, equation 14, where the target is the noise. The model receives int64 times.
    Noising and loss run in float32 or wider whatever the dtype of the latents.
    """

    prediction: Prediction
    """What the network predicts, and along which path."""
    weighting: Weighting | None = None
    """Weight of the loss at a time; none weighs all alike."""

    def __post_init__(self) -> None:
        if not isinstance(self.prediction.path, DDPMPath):
            given = type(self.prediction.path).__name__
            raise ConfigError(f"Denoising draws whole times, which {given} has not. Use a DDPMPath.")

    def draw_times(self, count: int, generator: torch.Generator) -> Times:
        """Whole times, each as likely as any other, on the generator's device."""
        path = self.prediction.path
        assert isinstance(path, DDPMPath)
        return torch.randint(path.steps, (count,), generator=generator, device=generator.device)

    def loss(self, model: Velocity, latents: Samples, generator: torch.Generator) -> PerSample:
        """Losses at times and noise drawn from `generator`, which may live on another device."""
        times = self.draw_times(len(latents), generator)
        return self.loss_at(model, latents, draw_noise(latents, generator), times.to(latents.device))

    def loss_at(self, model: Velocity, latents: Samples, noise: Samples, times: Times) -> PerSample:
        """Losses at given noise and times: what a validation that can be repeated uses."""
        x0 = widened(latents)
        noise = noise.to(x0.dtype)
        predicted = model(self.prediction.path.add_noise(x0, noise, times), times)
        losses = squared_error(predicted, self.prediction.target(x0, noise, times))
        return losses if self.weighting is None else self.weighting(times).to(losses.dtype) * losses


@dataclass(frozen=True)
class CosMap:
    """w(t) = 2 / (pi (1 - 2 t + 2 t^2)), for flow: highest in the middle (arXiv:2403.03206, section 3.1)."""

    def __call__(self, times: PerSample) -> PerSample:
        """Weights at `times`."""
        return 2 / (math.pi * (1 - 2 * times + 2 * times.square()))


@dataclass(frozen=True)
class MinSNR:
    """The squared error of the implied image times min(snr, largest) (arXiv:2303.09556, section 3.4)."""

    prediction: Prediction
    largest: float = 5.0

    def __call__(self, times: Times) -> PerSample:
        """Weights at `times`."""
        return self.prediction.path.snr(times).clamp(max=self.largest) / self.prediction.magnification(times)


def draw_noise(latents: Samples, generator: torch.Generator) -> Samples:
    """Normal noise in the shape of `latents`, drawn in float32 where the generator lives, then moved."""
    noise = torch.randn(latents.shape, generator=generator, device=generator.device)
    return noise.to(latents.device)


def squared_error(predicted: Float[Tensor, "..."], target: Samples) -> PerSample:
    """Mean squared error of each sample, in the dtype of `target`.

    Raises: ShapeError where the shapes differ, instead of broadcasting.
    """
    if predicted.shape != target.shape:
        raise ShapeError(
            f"the model turned {tuple(target.shape)} into {tuple(predicted.shape)}. "
            "It must keep the shape of what it is given."
        )
    return (predicted.to(target.dtype) - target).square().flatten(1).mean(1)


def flow_matching(config: TimeConfig, tokens: int) -> FlowMatching:
    """The objective that a recipe asks for, in pictures of `tokens` tokens."""
    weighting = CosMap() if config.weighting == "cosmap" else None
    return FlowMatching(time_distribution(config), shift_at(config, tokens), weighting)
