"""Few-step sampling of consistency models, as SANA-Sprint is sampled (arXiv:2503.09641, section 3.2).

Its authors count time as an angle s on TrigFlow's quarter circle, x_s = cos(s) x0 + sin(s) noise. Divided
by cos s + sin s that is the flow path at t = sin s / (cos s + sin s), and what they make of the network's
output there is x0 = x_t - t v. So a step sees the image and noises it anew, less than before:

    x0 = x - t v(x, t)
    x' = (1 - t') x0 + t' noise
"""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from lineardit.diffusion.discrete import FreshNoise
from lineardit.diffusion.paths import Samples, Velocity, widened
from lineardit.diffusion.samplers import falling
from lineardit.diffusion.states import State
from lineardit.diffusion.times import check_steps

MIDDLE_ANGLE = 1.3
"""Where two steps meet, as published."""


def scm_times(steps: int) -> Float[Tensor, "stops"]:
    """`steps + 1` times from 1 to 0: equal steps of the angle, but 1.3 between two. float64, on the CPU."""
    angles = torch.linspace(math.pi / 2, 0, check_steps(steps) + 1, dtype=torch.float64)
    if steps == 2:
        angles[1] = MIDDLE_ANGLE
    sines, cosines = angles.sin(), angles.cos()
    times = sines / (sines + cosines)
    times[0] = 1.0  # cos(pi / 2) is not quite 0 in floating point
    return times


def scm(
    velocity: Velocity, noise: Samples, times: Float[Tensor, "stops"], fresh: FreshNoise
) -> Iterator[State]:
    """States of a consistency model; `fresh(step, x)` gives the noise after that step, counted from 1."""
    x, steps = widened(noise), falling(times)
    for step, (time, after) in enumerate(steps, start=1):
        denoised = x - time * velocity(x, x.new_full((len(x),), time)).to(x.dtype)
        x = denoised if after == 0 else (1 - after) * denoised + after * fresh(step, denoised)
        yield State(step, len(steps), time, after, x, denoised)
