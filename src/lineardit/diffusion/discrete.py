"""Samplers for DDPM models: plain generators over model(latents, times) that yield each state.

Times are whole, fall, and end with -1, the image itself. States stay in float32, or float64 where the
noise is, whatever the dtype of the model: its output is converted once a call.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from lineardit.diffusion.multistep import Level, second_order_multistep
from lineardit.diffusion.paths import DDPMPath, Samples, Velocity, widened
from lineardit.diffusion.predictions import Prediction
from lineardit.diffusion.samplers import chosen
from lineardit.diffusion.states import State
from lineardit.diffusion.times import check_steps
from lineardit.errors import InputError

FreshNoise = Callable[[int, Tensor], Tensor]
"""(step, like) -> normal noise in the shape of `like`: `StepNoise`, in general."""


def leading_times(steps: int, path: DDPMPath) -> Int[Tensor, "stops"]:
    """Every (T // steps)th time from 0 up, falling, then -1: DDIM's own grid, which never sees pure noise."""
    stride = path.steps // _check_steps(steps, path)
    return _ended(torch.arange(steps).flip(0) * stride)


def trailing_times(steps: int, path: DDPMPath) -> Int[Tensor, "stops"]:
    """Every (T / steps)th time from T - 1 down, then -1 (arXiv:2305.08891, table 2)."""
    stride = path.steps / _check_steps(steps, path)
    return _ended((path.steps - stride * torch.arange(steps, dtype=torch.float64)).round().long() - 1)


def linspace_times(steps: int, path: DDPMPath) -> Int[Tensor, "stops"]:
    """`steps` equal steps from T - 1 to 0, whose 0 is left out, then -1: DPM-Solver++'s grid in diffusers."""
    # As many steps as times would be shorter than 1, and two of them would end at the same time.
    _check_steps(steps, path, lowest=min(1, path.steps - 1))
    grid = torch.linspace(0, path.steps - 1, steps + 1, dtype=torch.float64)
    return _ended(grid.round().long().flip(0)[:-1])


def ddim(
    model: Velocity, noise: Samples, times: Int[Tensor, "stops"], prediction: Prediction
) -> Iterator[State]:
    """x' = alpha' x0 + sigma' noise with the x0 and the noise that the model sees (arXiv:2010.02502)."""
    x, stops, levels = widened(noise), *_levels(times, prediction)
    for k, (time, after) in enumerate(pairwise(stops)):
        at, predicted = _evaluate(model, x, time)
        x0 = prediction.x0(predicted, x, at)
        x = levels[k + 1].alpha * x0 + levels[k + 1].sigma * prediction.noise(predicted, x, at)
        yield State(k + 1, len(stops) - 1, float(time), float(after), x, x0)


def ancestral(
    model: Velocity,
    noise: Samples,
    times: Int[Tensor, "stops"],
    prediction: Prediction,
    fresh: FreshNoise,
) -> Iterator[State]:
    """DDPM: draws x' from q(x' | x, x0) with the x0 that the model sees (arXiv:2006.11239, equation 7).

        mean     = sqrt(abar') beta / (1 - abar) x0 + sqrt(1 - beta) (1 - abar') / (1 - abar) x
        variance = beta (1 - abar') / (1 - abar)      with beta = 1 - abar / abar', over the whole step

    `fresh(step, x)` gives the noise of that step, counted from 1; the last one needs none.
    """
    x, stops, levels = widened(noise), *_levels(times, prediction)
    for k, (time, after) in enumerate(pairwise(stops)):
        at, predicted = _evaluate(model, x, time)
        x0 = prediction.x0(predicted, x, at)
        image_share, state_share, deviation = _posterior(levels[k], levels[k + 1])
        x = image_share * x0 + state_share * x
        if deviation > 0:
            x = x + deviation * fresh(k + 1, x)
        yield State(k + 1, len(stops) - 1, float(time), float(after), x, x0)


def discrete_dpm_solver_pp_2m(
    model: Velocity, noise: Samples, times: Int[Tensor, "stops"], prediction: Prediction
) -> Iterator[State]:
    """DPM-Solver++(2M) on a DDPM path: second order, one call a step (`multistep.py` has the equations)."""
    stops, levels = _levels(times, prediction)

    def denoise(x: Tensor, time: float) -> Tensor:
        at, predicted = _evaluate(model, x, int(time))
        return prediction.x0(predicted, x, at)

    return second_order_multistep(denoise, widened(noise), [float(stop) for stop in stops], levels)


class DiscreteSampler(NamedTuple):
    """A sampler with the times that it is known by."""

    times: Callable[[int, DDPMPath], Tensor]
    states: Callable[[Velocity, Tensor, Tensor, Prediction, FreshNoise], Iterator[State]]


DISCRETE_SAMPLERS: Mapping[str, DiscreteSampler] = {
    "ddim": DiscreteSampler(leading_times, lambda model, x, times, seen, _: ddim(model, x, times, seen)),
    "ddpm": DiscreteSampler(leading_times, ancestral),
    "dpm++": DiscreteSampler(
        linspace_times, lambda model, x, times, seen, _: discrete_dpm_solver_pp_2m(model, x, times, seen)
    ),
}
"""By the names that the command line and the server take; the times are those of diffusers' schedulers."""


def discrete_sampler_named(name: str) -> DiscreteSampler:
    """The DDPM sampler of that name. Raises `InputError`, with the names there are, for another one."""
    return chosen(name, DISCRETE_SAMPLERS)


def _evaluate(model: Velocity, x: Tensor, time: int) -> tuple[Tensor, Tensor]:
    at = torch.full((len(x),), time, dtype=torch.int64, device=x.device)
    return at, model(x, at).to(x.dtype)


def _levels(times: Tensor, prediction: Prediction) -> tuple[list[int], list[Level]]:
    """The times as Python numbers, and alpha and sigma there in float64."""
    path, stops = prediction.path, times.tolist()
    steps = list(pairwise(stops))
    if not isinstance(path, DDPMPath):
        raise InputError(f"a discrete sampler follows a DDPMPath, not a {type(path).__name__}.")
    if not steps or stops[0] >= path.steps or stops[-1] < -1 or any(after >= time for time, after in steps):
        raise InputError(
            f"times={stops} do not fall from {path.steps - 1} or less to -1. Use trailing_times(steps, path)."
        )
    return stops, [
        Level(*pair) for pair in zip(path.alpha(times).tolist(), path.sigma(times).tolist(), strict=True)
    ]


def _posterior(now: Level, after: Level) -> tuple[float, float, float]:
    """Factors of x0 and x in the mean of q(x' | x, x0), and its deviation."""
    kept = (now.alpha / after.alpha) ** 2
    noise_left = (after.sigma / now.sigma) ** 2
    image_share = after.alpha * (1 - kept) / now.sigma**2
    return image_share, kept**0.5 * noise_left, ((1 - kept) * noise_left) ** 0.5


def _check_steps(steps: int, path: DDPMPath, *, lowest: int = 0) -> int:
    """`steps` itself, unless the path has fewer times from `lowest` up."""
    most = path.steps - lowest
    if check_steps(steps) > most:
        above = f" above {lowest - 1}" if lowest else ""
        raise InputError(f"steps={steps} exceed the {most} times of the path{above}. Use {most} or fewer.")
    return steps


def _ended(times: Tensor) -> Tensor:
    return torch.cat([times, torch.tensor([-1])])
