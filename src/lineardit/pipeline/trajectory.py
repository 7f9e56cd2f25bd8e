"""From noise to latents along the path that a model was trained on."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from lineardit.diffusion.paths import Samples, Times, Velocity
from lineardit.diffusion.randomness import StepNoise
from lineardit.diffusion.samplers import SAMPLERS, sampler_named
from lineardit.diffusion.scm import scm, scm_times
from lineardit.diffusion.states import State
from lineardit.diffusion.times import dpm_flow_times, euler_flow_times, flow_times, whole_times
from lineardit.pipeline.sampling import CONSISTENCY, Sampling
from lineardit.pipeline.settings import Settings


@runtime_checkable
class Trajectory(Protocol):
    """The path that a model was trained on: its samplers, their times, and what the network sees of those."""

    @property
    def samplers(self) -> tuple[str, ...]:
        """Those that the model is offered with, by the names that users type."""
        ...

    def check(self, sampler: str, steps: int) -> None:
        """Raises `InputError` for a sampler that does not follow this path, or more steps than it has."""
        ...

    def seen(self, times: Times) -> Times:
        """The times of a sampler as the network was shown them in training."""
        ...

    def states(
        self, model: Velocity, noise: Samples, jobs: Sequence[Settings], initial: Samples | None
    ) -> Iterator[State]:
        """Denoise jobs of one size, sampler and step count, from noise or from over initial latents."""
        ...


@dataclass(frozen=True)
class FlowTrajectory:
    """The straight line from image (0) to noise (1), and consistency models on it."""

    sampling: Sampling

    @property
    def samplers(self) -> tuple[str, ...]:
        """A model of few steps knows no other sampler than its own."""
        return (CONSISTENCY,) if self.sampling.sampler == CONSISTENCY else tuple(SAMPLERS)

    def check(self, sampler: str, steps: int) -> None:
        """Raises `InputError`, with the names there are, for an unknown one."""
        if sampler != CONSISTENCY:
            sampler_named(sampler)

    def seen(self, times: Times) -> Times:
        """The times themselves, or cut to those of training."""
        return whole_times(times) if self.sampling.whole_times else times

    def states(
        self, model: Velocity, noise: Samples, jobs: Sequence[Settings], initial: Samples | None
    ) -> Iterator[State]:
        """From the first time on, or from the one where the strength of the jobs begins."""
        job = jobs[0]
        times = self._times(job.sampler)(job.num_inference_steps)[-job.steps_drawn - 1 :]
        if initial is not None:
            noise = (1 - times[0].item()) * initial + times[0].item() * noise
        if job.sampler == CONSISTENCY:
            return scm(model, noise, times, StepNoise([each.seed for each in jobs]))
        return sampler_named(job.sampler)(model, noise, times)

    def _times(self, sampler: str) -> Callable[[int], Tensor]:
        if sampler == CONSISTENCY:
            return scm_times
        grid = flow_times
        if sampler == "dpm++":
            grid = dpm_flow_times
        elif sampler == "euler" and self.sampling.published_euler:
            grid = euler_flow_times
        return lambda steps: grid(steps, self.sampling.shift)
