"""From noise to latents along a DDPM path."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lineardit.diffusion.discrete import DISCRETE_SAMPLERS, discrete_sampler_named
from lineardit.diffusion.paths import DDPMPath, Samples, Times, Velocity
from lineardit.diffusion.predictions import Prediction
from lineardit.diffusion.randomness import StepNoise
from lineardit.diffusion.states import State
from lineardit.errors import ConfigError
from lineardit.pipeline.settings import Settings


@dataclass(frozen=True)
class DiscreteTrajectory:
    """A DDPM path (arXiv:2006.11239): the network says at whole times what `prediction` is of.

    Guidance and its interval see times as shares of the path, 0 the image and 1 noise, as on the flow path.
    """

    prediction: Prediction

    def __post_init__(self) -> None:
        if not isinstance(self.prediction.path, DDPMPath):
            given = type(self.prediction.path).__name__
            raise ConfigError(
                f"a discrete trajectory has whole times, which {given} has not. Use a DDPMPath."
            )

    @property
    def path(self) -> DDPMPath:
        """The path."""
        assert isinstance(self.prediction.path, DDPMPath)
        return self.prediction.path

    @property
    def samplers(self) -> tuple[str, ...]:
        """DDIM, DDPM's ancestral sampling, and DPM-Solver++(2M)."""
        return tuple(DISCRETE_SAMPLERS)

    def check(self, sampler: str, steps: int) -> None:
        """Raises `InputError` for another name, or more steps than the sampler has times."""
        discrete_sampler_named(sampler).times(steps, self.path)

    def seen(self, times: Times) -> Times:
        """Shares of the path as its whole times."""
        return (times * self.path.steps).round().long()

    def states(
        self, model: Velocity, noise: Samples, jobs: Sequence[Settings], initial: Samples | None
    ) -> Iterator[State]:
        """From the first time on, or from the one where the strength of the jobs begins."""
        job, path = jobs[0], self.path
        sampler = discrete_sampler_named(job.sampler)
        times = sampler.times(job.num_inference_steps, path)[-job.steps_drawn - 1 :]
        if initial is not None:
            first = times[:1].to(noise.device).expand(len(noise))
            noise = path.add_noise(initial.to(noise.dtype), noise, first)

        def at_share(x: Tensor, at: Tensor) -> Tensor:
            return model(x, at.to(torch.float64) / path.steps)

        fresh = StepNoise([each.seed for each in jobs])
        return sampler.states(at_share, noise, times, self.prediction, fresh)
