"""Samplers for flow models: plain generators over velocity(latents, times) that yield each state.

All follow dx/dt = v(x, t) from noise at times[0] to the image at times[-1] = 0. States stay in float32,
or float64 where the noise is, whatever the dtype of the model: its output is converted once a call.
Nothing here disables gradients; the caller does.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor

from lineardit.diffusion.multistep import Level, second_order_multistep
from lineardit.diffusion.paths import Samples, Velocity, widened
from lineardit.diffusion.states import State
from lineardit.errors import InputError

S = TypeVar("S")

Sampler = Callable[[Velocity, Tensor, Tensor], Iterator[State]]
"""(velocity, noise (b ...), times (stops,)) -> a state after each step."""


def euler(velocity: Velocity, noise: Samples, times: Float[Tensor, "stops"]) -> Iterator[State]:
    """x' = x + (t' - t) v(x, t). First order, one call a step."""
    x, steps = widened(noise), falling(times)
    for step, (time, after) in enumerate(steps, start=1):
        v = _evaluate(velocity, x, time)
        denoised = x - time * v
        x = x + (after - time) * v
        yield State(step, len(steps), time, after, x, denoised)


def heun(velocity: Velocity, noise: Samples, times: Float[Tensor, "stops"]) -> Iterator[State]:
    """x' = x + (t' - t) (v(x, t) + v(y, t')) / 2, where y is Euler's x'. Second order, two calls a step.

    The last step is Euler's where it ends at 0: networks are not trained on pictures without noise.
    """
    x, steps = widened(noise), falling(times)
    for step, (time, after) in enumerate(steps, start=1):
        v = _evaluate(velocity, x, time)
        denoised = x - time * v
        if after > 0:
            v = (v + _evaluate(velocity, x + (after - time) * v, after)) / 2
        x = x + (after - time) * v
        yield State(step, len(steps), time, after, x, denoised)


def dpm_solver_pp_2m(velocity: Velocity, noise: Samples, times: Float[Tensor, "stops"]) -> Iterator[State]:
    """DPM-Solver++(2M) on the flow path: second order, one call a step (`multistep.py` has the equations).

    With `dpm_flow_times` it is what the published SANA pipelines run (Flow-DPM-Solver, arXiv:2410.10629,
    section 2.3). It also starts at t = 1, where there is no signal at all.
    """
    steps = falling(times)
    stops = [time for time, _ in steps] + [steps[-1][1]]
    levels = [Level(1 - time, time) for time in stops]
    return second_order_multistep(
        lambda x, time: x - time * _evaluate(velocity, x, time), widened(noise), stops, levels
    )


SAMPLERS: dict[str, Sampler] = {"euler": euler, "heun": heun, "dpm++": dpm_solver_pp_2m}
"""The flow samplers by the names that the command line and the server take."""


def sampler_named(name: str) -> Sampler:
    """The flow sampler of that name. Raises `InputError`, with the names there are, for another one."""
    return chosen(name, SAMPLERS)


def chosen(name: str, samplers: Mapping[str, S]) -> S:
    """One of `samplers` by its name. Raises `InputError`, with the names there are, for another one."""
    if name not in samplers:
        close = difflib.get_close_matches(name, samplers, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise InputError(f"unknown sampler {name!r}.{hint} Use one of {', '.join(samplers)}.")
    return samplers[name]


def falling(times: Float[Tensor, "stops"]) -> list[tuple[float, float]]:
    """The steps (from, to) as Python floats, so that coefficients are computed in float64.

    Raises: InputError unless the times fall within [0, 1].
    """
    stops = times.tolist()
    steps = list(pairwise(stops))
    if not steps or stops[0] > 1 or stops[-1] < 0 or any(after >= time for time, after in steps):
        raise InputError(f"times={stops} do not fall from 1 or less to 0. Use flow_times(steps, shift).")
    return steps


def _evaluate(velocity: Velocity, x: Tensor, time: float) -> Tensor:
    return velocity(x, x.new_full((len(x),), time)).to(x.dtype)
