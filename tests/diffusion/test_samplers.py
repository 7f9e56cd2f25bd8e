"""Flow samplers: their order where the velocity is known exactly, and step for step against diffusers."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from lineardit.diffusion.multistep import Level
from lineardit.diffusion.samplers import (
    SAMPLERS,
    Sampler,
    dpm_solver_pp_2m,
    euler,
    heun,
    sampler_named,
)
from lineardit.diffusion.states import State
from lineardit.diffusion.times import dpm_flow_times, euler_flow_times, flow_times
from lineardit.errors import InputError

POINTS = 24
# Float32 schedulers: rounding over the steps of a state of size 4.
AS_DIFFUSERS = {"rtol": 0.0, "atol": 1e-5}


def starts(dim: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(POINTS, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(dtype)


def last(states) -> State:
    *_, state = states
    return state


EXACT: dict[tuple[int, float, float], Tensor] = {}
"""Solutions that several tests compare with, by dimension and interval."""


def exact_solution(gaussians, first: float, final: float) -> Tensor:
    key = (gaussians.means.shape[1], first, final)
    if key not in EXACT:
        EXACT[key] = runge_kutta(gaussians.flow_velocity, starts(key[0]), first, final)
    return EXACT[key]


def runge_kutta(
    velocity: Callable[[Tensor, Tensor], Tensor], x: Tensor, first: float, final: float
) -> Tensor:
    """The classical fourth-order method in steps so fine that its error is below 1e-7."""
    stops = torch.linspace(first, final, 301, dtype=torch.float64).tolist()

    def at(y: Tensor, time: float) -> Tensor:
        return velocity(y, y.new_full((len(y),), time))

    for time, after in itertools.pairwise(stops):
        h, middle = after - time, (time + after) / 2
        k1 = at(x, time)
        k2 = at(x + h / 2 * k1, middle)
        k3 = at(x + h / 2 * k2, middle)
        k4 = at(x + h * k3, after)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x


def error(sampler: Sampler, velocity, times: Tensor, exact: Tensor) -> float:
    state = last(sampler(velocity, starts(exact.shape[1]), times))
    return (state.latents - exact).square().mean().sqrt().item()


def fitted_order(steps: list[int], errors: list[float]) -> float:
    """p of error = c / steps^p, by least squares over logarithms."""
    return -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])


@pytest.mark.parametrize(
    ("sampler", "lowest", "highest"), [(euler, 0.97, 1.03), (heun, 1.95, 2.05), (dpm_solver_pp_2m, 1.9, 2.1)]
)
def test_halving_the_steps_shows_the_order_of_each_sampler(gaussians, sampler, lowest: float, highest: float):
    # Away from the ends of the path, where lambda is infinite and no expansion in it holds.
    first, final = 0.9, 0.1
    exact = exact_solution(gaussians, first, final)
    steps = [24, 48, 96, 192]
    grids = [first + (final - first) * torch.linspace(0, 1, n + 1, dtype=torch.float64) for n in steps]
    errors = [error(sampler, gaussians.flow_velocity, grid, exact) for grid in grids]
    assert lowest < fitted_order(steps, errors) < highest


# The multistep solver pays a logarithm at each end of the whole path: error ~ log(n) / n^2.
@pytest.mark.parametrize(
    ("sampler", "lowest", "highest"), [(euler, 0.95, 1.05), (heun, 1.9, 2.1), (dpm_solver_pp_2m, 1.4, 2.1)]
)
def test_each_sampler_keeps_its_order_from_pure_noise_to_the_image(
    gaussians, sampler, lowest: float, highest: float
):
    exact = exact_solution(gaussians, 1.0, 0.0)
    steps = [24, 48, 96, 192]
    errors = [error(sampler, gaussians.flow_velocity, flow_times(n), exact) for n in steps]
    assert lowest < fitted_order(steps, errors) < highest


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_20_steps_of_dpm_solver_are_closer_to_the_exact_solution_than_40_of_euler(gaussians, shift: float):
    exact = exact_solution(gaussians, 1.0, 0.0)
    dpm = error(dpm_solver_pp_2m, gaussians.flow_velocity, flow_times(20, shift), exact)
    assert dpm < error(euler, gaussians.flow_velocity, flow_times(40, shift), exact)


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("grid", [flow_times, dpm_flow_times, euler_flow_times])
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_is_exact_for_a_single_picture(name: str, grid, steps: int):
    picture = torch.linspace(-1, 1, 5, dtype=torch.float64)
    for state in SAMPLERS[name](lambda x, t: (x - picture) / t[:, None], starts(5), grid(steps, 3.0)):
        torch.testing.assert_close(state.denoised, picture.expand(POINTS, 5), rtol=0.0, atol=1e-12)
    torch.testing.assert_close(state.latents, picture.expand(POINTS, 5), rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_dpm_solver_is_diffusers_flow_dpm_solver_step_for_step(gaussians, steps: int, shift: float):
    scheduler = DPMSolverMultistepScheduler(
        solver_order=2, use_flow_sigmas=True, flow_shift=shift, prediction_type="flow_prediction"
    )
    scheduler.set_timesteps(steps)
    velocity, x = in_float32(gaussians.flow_velocity), starts(gaussians.means.shape[1], torch.float32)
    theirs = x
    for state in dpm_solver_pp_2m(velocity, x, dpm_flow_times(steps, shift)):
        v = velocity(theirs, torch.full((POINTS,), state.time))
        theirs = scheduler.step(v, scheduler.timesteps[state.step - 1], theirs).prev_sample
        torch.testing.assert_close(state.latents, theirs, **AS_DIFFUSERS)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 5, 28])
def test_euler_is_diffusers_flow_match_euler_step_for_step(gaussians, steps: int, shift: float):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    velocity, x = in_float32(gaussians.flow_velocity), starts(gaussians.means.shape[1], torch.float32)
    theirs = x
    for state in euler(velocity, x, euler_flow_times(steps, shift)):
        v = velocity(theirs, torch.full((POINTS,), state.time))
        theirs = scheduler.step(v, scheduler.timesteps[state.step - 1], theirs).prev_sample
        torch.testing.assert_close(state.latents, theirs, **AS_DIFFUSERS)


def in_float32(velocity):
    return lambda x, t: velocity(x.double(), t.double()).float()


@pytest.mark.parametrize("name", SAMPLERS)
def test_states_tell_where_they_are_and_follow_one_another(name: str):
    times = flow_times(5, 3.0)
    states = list(SAMPLERS[name](lambda x, t: x, starts(3), times))
    assert [(state.step, state.total) for state in states] == [(k, 5) for k in range(1, 6)]
    assert [state.time for state in states] == times[:-1].tolist()
    assert [state.next_time for state in states] == times[1:].tolist()


@pytest.mark.parametrize(("name", "calls"), [("euler", 5), ("heun", 9), ("dpm++", 5)])
def test_a_sampler_computes_a_step_when_it_is_asked_for(name: str, calls: int):
    seen = []

    def velocity(x: Tensor, times: Tensor) -> Tensor:
        seen.append(times[0].item())
        return x

    states = SAMPLERS[name](velocity, starts(3), flow_times(5))
    assert seen == []
    next(states)
    assert len(seen) == (2 if name == "heun" else 1)
    last(states)
    assert len(seen) == calls
    assert min(seen) > 0


@pytest.mark.parametrize("name", SAMPLERS)
def test_states_stay_in_float32_when_the_model_answers_in_bfloat16(name: str):
    def velocity(x: Tensor, times: Tensor) -> Tensor:
        assert x.dtype == times.dtype == torch.float32
        return x.bfloat16()

    for state in SAMPLERS[name](velocity, starts(3, torch.bfloat16), flow_times(3)):
        assert state.latents.dtype == state.denoised.dtype == torch.float32


@pytest.mark.parametrize("gaussians", [8], ids=["8-D"], indirect=True)
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sample_does_not_depend_on_the_others_in_its_batch(gaussians, name: str):
    x = starts(gaussians.means.shape[1])
    together = last(SAMPLERS[name](gaussians.flow_velocity, x, flow_times(6))).latents
    alone = last(SAMPLERS[name](gaussians.flow_velocity, x[3:4], flow_times(6))).latents
    torch.testing.assert_close(together[3:4], alone, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("name", SAMPLERS)
def test_gradients_flow_through_the_steps_unless_the_caller_stops_them(name: str):
    gain = torch.ones((), dtype=torch.float64, requires_grad=True)
    last(SAMPLERS[name](lambda x, t: gain * x, starts(3), flow_times(3))).latents.sum().backward()
    assert gain.grad is not None
    assert gain.grad != 0


@pytest.mark.parametrize("gaussians", [8], ids=["8-D"], indirect=True)
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_path_may_end_before_the_image_and_be_continued(gaussians, name: str):
    x = starts(gaussians.means.shape[1])
    times = flow_times(32)
    half = last(SAMPLERS[name](gaussians.flow_velocity, x, times[:17]))
    assert half.next_time == 0.5
    rest = last(SAMPLERS[name](gaussians.flow_velocity, half.latents, times[16:]))
    whole = last(SAMPLERS[name](gaussians.flow_velocity, x, times))
    # One-step methods continue exactly; the multistep one forgets what it saw before.
    torch.testing.assert_close(rest.latents, whole.latents, rtol=0.0, atol=1e-2 if name == "dpm++" else 1e-12)


@pytest.mark.parametrize("stops", [[1.0], [0.0, 1.0], [1.0, 0.5, 0.5, 0.0], [1.1, 0.0], [1.0, -0.1]])
@pytest.mark.parametrize("name", SAMPLERS)
def test_times_that_do_not_fall_within_1_and_0_are_refused(name: str, stops: list[float]):
    with pytest.raises(InputError, match="do not fall from 1 or less to 0"):
        last(SAMPLERS[name](lambda x, t: x, starts(3), torch.tensor(stops)))


def test_samplers_are_found_by_name():
    assert [sampler_named(name) for name in ("euler", "heun", "dpm++")] == [euler, heun, dpm_solver_pp_2m]


def test_an_unknown_sampler_names_those_there_are():
    with pytest.raises(InputError, match="'eular'. Did you mean euler.*euler, heun, dpm"):
        sampler_named("eular")
    with pytest.raises(InputError, match=r"'ddim'\. Use one of"):
        sampler_named("ddim")


def test_the_levels_at_both_ends_of_a_path_have_an_infinite_log_ratio():
    assert Level(0.0, 1.0).log_ratio == -math.inf
    assert Level(1.0, 0.0).log_ratio == math.inf
    assert Level(0.5, 0.5).log_ratio == 0
