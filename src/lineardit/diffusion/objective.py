"""What a network learns: losses of noised latents, one for each sample."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from lineardit.diffusion.paths import FlowPath, Velocity
from lineardit.diffusion.times import LogitNormal, TimeDistribution, check_shift, shift_times

Weighting = Callable[[Tensor], Tensor]
"""times (b,) -> weights (b,) of the losses at these times."""


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

    def loss(
        self, velocity: Velocity, latents: Float[Tensor, "b *axes"], generator: torch.Generator
    ) -> Float[Tensor, "b"]:
        """Losses at times and noise drawn from `generator`, which may live on another device."""
        times = shift_times(self.time_distribution.draw(len(latents), generator), self.shift)
        return self.loss_at(velocity, latents, draw_noise(latents, generator), times.to(latents.device))

    def loss_at(
        self,
        velocity: Velocity,
        latents: Float[Tensor, "b *axes"],
        noise: Float[Tensor, "b *axes"],
        times: Float[Tensor, "b"],
    ) -> Float[Tensor, "b"]:
        """Losses at given noise and times: what a validation that can be repeated uses."""
        x0, noise = widened(latents), widened(noise)
        times = times.to(x0.dtype)
        path = FlowPath()
        predicted = velocity(path.add_noise(x0, noise, times), times)
        losses = squared_error(predicted, path.velocity(x0, noise, times))
        return losses if self.weighting is None else self.weighting(times) * losses


def draw_noise(latents: Float[Tensor, "b *axes"], generator: torch.Generator) -> Float[Tensor, "b *axes"]:
    """Normal noise in the shape of `latents`, drawn in float32 where the generator lives, then moved."""
    noise = torch.randn(latents.shape, generator=generator, device=generator.device)
    return noise.to(latents.device)


def widened(x: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """`x` in float32, or as it is where it is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def squared_error(
    predicted: Float[Tensor, "b *axes"], target: Float[Tensor, "b *axes"]
) -> Float[Tensor, "b"]:
    """Mean squared error of each sample, in the dtype of `target`."""
    return (predicted.to(target.dtype) - target).square().flatten(1).mean(1)
