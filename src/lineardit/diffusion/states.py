"""What a sampler yields after each step."""

from dataclasses import dataclass

from lineardit.diffusion.paths import Samples


@dataclass(frozen=True)
class State:
    """One step of a sampler, done."""

    step: int
    """Steps done, from 1 to `total`."""
    total: int
    """Steps in all."""
    time: float
    """Where the step started."""
    next_time: float
    """Where it ended: the time of `latents`."""
    latents: Samples
    """x at `next_time`; the result once `step == total`."""
    denoised: Samples
    """The image as the model saw it at `time`: a preview."""
