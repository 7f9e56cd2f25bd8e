"""Samplers for flow models: plain generators over velocity(latents, times) that yield each state.

All follow dx/dt = v(x, t) from noise at times[0] to the image at times[-1]. States stay in float32, or
float64 where the noise is, whatever the dtype of the model: its velocity is converted, once per call.
Nothing here disables gradients; the caller does.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lineardit.diffusion.paths import Velocity
from lineardit.errors import InputError


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
    """Where it ended, the time of `latents`."""
    latents: Float[Tensor, "b *axes"]
    """x at `next_time`; the result once `step == total`."""
    denoised: Float[Tensor, "b *axes"]
    """The image as estimated during this step: a preview."""


def euler(
    velocity: Velocity, noise: Float[Tensor, "b *axes"], times: Float[Tensor, "stops"]
) -> Iterator[State]:
    """x' = x + (t' - t) v(x, t). First order, one evaluation a step."""
    x = _start(noise)
    for step, (time, next_time) in enumerate(_steps(times), start=1):
        v = _evaluate(velocity, x, time)
        denoised = x - time * v
        x = x + (next_time - time) * v
        yield State(step, len(times) - 1, time, next_time, x, denoised)


def _start(noise: Tensor) -> Tensor:
    return noise.to(torch.promote_types(noise.dtype, torch.float32))


def _evaluate(velocity: Velocity, x: Tensor, time: float) -> Tensor:
    return velocity(x, x.new_full((len(x),), time)).to(x.dtype)


def _steps(times: Tensor) -> list[tuple[float, float]]:
    """Pairs of neighbouring times as Python floats, so that coefficients are computed in float64."""
    stops = times.tolist()
    if len(stops) < 2 or any(later >= earlier for earlier, later in zip(stops, stops[1:], strict=False)):
        raise InputError(f"times={stops} do not fall from step to step. Use flow_times(steps, shift).")
    return list(zip(stops, stops[1:], strict=False))
