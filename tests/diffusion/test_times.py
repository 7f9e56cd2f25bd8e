"""Times: the shift's properties, what training draws, and the grids of diffusers."""

import math

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from lineardit.config.runs import TimeConfig
from lineardit.diffusion.objective import CosMap, flow_matching
from lineardit.diffusion.samplers import falling
from lineardit.diffusion.times import (
    LogitNormal,
    Mode,
    Uniform,
    check_steps,
    dpm_flow_times,
    euler_flow_times,
    flow_times,
    shift_at,
    shift_times,
    time_distribution,
    unshift_times,
)
from lineardit.errors import InputError

SHIFTS = st.floats(0.05, 20.0)
FRACTIONS = torch.linspace(0, 1, 101, dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_shift_of_one_changes_nothing():
    assert torch.equal(shift_times(FRACTIONS, 1.0), FRACTIONS)


@settings(max_examples=25, deadline=None)
@given(SHIFTS)
def test_a_shift_keeps_the_ends_and_the_order(shift: float):
    shifted = shift_times(FRACTIONS, shift)
    assert shifted[0] == 0
    assert shifted[-1] == 1
    assert (shifted.diff() > 0).all()


@settings(max_examples=25, deadline=None)
@given(SHIFTS)
def test_a_shift_can_be_undone(shift: float):
    torch.testing.assert_close(unshift_times(shift_times(FRACTIONS, shift), shift), FRACTIONS)


@settings(max_examples=25, deadline=None)
@given(SHIFTS, SHIFTS)
def test_two_shifts_are_the_shift_by_their_product(first: float, second: float):
    both = shift_times(shift_times(FRACTIONS, first), second)
    torch.testing.assert_close(both, shift_times(FRACTIONS, first * second))


def test_a_shift_divides_the_signal_to_noise_ratio_by_its_square():
    inner = FRACTIONS[1:-1]
    shifted = shift_times(inner, 3.0)
    torch.testing.assert_close((1 - shifted) / shifted, (1 - inner) / inner / 3)


@pytest.mark.parametrize("shift", [0.0, -1.0, math.nan, math.inf])
def test_a_shift_that_is_no_positive_number_is_refused(shift: float):
    with pytest.raises(InputError, match="is not a positive number"):
        flow_times(4, shift)


@pytest.mark.parametrize("steps", [0, -3, 2.5, True, "20", None])
def test_steps_that_are_no_positive_whole_number_are_refused(steps: object):
    with pytest.raises(InputError, match="is not a positive whole number. Use 1 or more"):
        check_steps(steps)


@pytest.mark.parametrize("grid", [flow_times, dpm_flow_times, euler_flow_times])
@pytest.mark.parametrize("steps", [0, -1])
def test_every_grid_refuses_wrong_steps(grid, steps: int):
    with pytest.raises(InputError):
        grid(steps, 3.0)


@pytest.mark.parametrize("grid", [flow_times, dpm_flow_times, euler_flow_times])
@pytest.mark.parametrize("steps", [1, 2, 20])
def test_every_grid_falls_to_exactly_zero_in_that_many_steps(grid, steps: int):
    times = grid(steps, 3.0)
    assert times.shape == (steps + 1,)
    assert times[-1] == 0
    assert (times.diff() < 0).all()
    assert 0.999 < times[0] <= 1


@pytest.mark.parametrize("grid", [flow_times, dpm_flow_times, euler_flow_times])
@pytest.mark.parametrize("shift", [0.1, 0.3, 1.0, 3.0, 12.7])
def test_samplers_take_every_grid(grid, shift: float):
    steps = falling(grid(20, shift))
    assert len(steps) == 20 and steps[0][0] <= 1 and steps[-1][1] == 0


def test_our_own_grid_starts_at_pure_noise_and_takes_equal_steps_before_the_shift():
    times = flow_times(8, 3.0)
    assert times[0] == 1
    torch.testing.assert_close(unshift_times(times, 3.0), torch.linspace(1, 0, 9, dtype=torch.float64))


@pytest.mark.parametrize("shift", [1.0, 3.0, 6.0])
@pytest.mark.parametrize("steps", [1, 4, 14, 20, 50])
def test_the_dpm_grid_is_that_of_diffusers(steps: int, shift: float):
    scheduler = DPMSolverMultistepScheduler(
        use_flow_sigmas=True, flow_shift=shift, prediction_type="flow_prediction"
    )
    scheduler.set_timesteps(steps)
    torch.testing.assert_close(dpm_flow_times(steps, shift).float(), scheduler.sigmas, rtol=0.0, atol=1e-7)


@pytest.mark.parametrize("shift", [1.0, 3.0, 6.0])
@pytest.mark.parametrize("steps", [1, 4, 14, 20, 50])
def test_the_euler_grid_is_that_of_diffusers(steps: int, shift: float):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    torch.testing.assert_close(euler_flow_times(steps, shift).float(), scheduler.sigmas, rtol=0.0, atol=1e-7)


@pytest.mark.parametrize(
    "distribution", [Uniform(), LogitNormal(), LogitNormal(0.2, 1.6), Mode(), Mode(-1.0), Mode(1.75)]
)
def test_drawn_times_lie_between_image_and_noise_and_follow_their_generator(distribution):
    times = distribution.draw(1009, generator(3))
    assert times.shape == (1009,)
    assert times.dtype == torch.float32
    assert ((times >= 0) & (times <= 1)).all()
    assert torch.equal(times, distribution.draw(1009, generator(3)))
    assert not torch.equal(times, distribution.draw(1009, generator(4)))


def test_logit_normal_times_have_the_quantiles_of_their_definition():
    times = LogitNormal(0.2, 1.6).draw(100_000, generator())
    normal = torch.tensor([-1.0, 0.0, 1.0])
    shares = torch.tensor([0.158655, 0.5, 0.841345])
    # The spread of an empirical quantile here is 0.002.
    torch.testing.assert_close(times.quantile(shares), torch.sigmoid(0.2 + 1.6 * normal), rtol=0.0, atol=0.01)


def test_mode_times_have_the_quartiles_of_their_definition():
    times = Mode(1.29).draw(100_000, generator())
    # 1 - u - 1.29 (cos^2(pi u / 2) - 1 + u) at u = 3/4, 1/2 and 1/4, where cos^2(pi / 8) = 0.853553.
    quartiles = torch.tensor([0.383583, 0.5, 0.616417])
    found = times.quantile(torch.tensor([0.25, 0.5, 0.75]))
    # The spread of an empirical quantile here is 0.001.
    torch.testing.assert_close(found, quartiles, rtol=0.0, atol=0.005)


def test_distributions_without_a_density_are_refused():
    with pytest.raises(InputError, match="positive std"):
        LogitNormal(0.0, 0.0)
    with pytest.raises(InputError, match="lies outside"):
        Mode(2.0)


def test_a_recipe_names_its_distribution_weighting_and_shift():
    assert time_distribution(TimeConfig(mean=0.3, std=0.7)) == LogitNormal(0.3, 0.7)
    assert time_distribution(TimeConfig(distribution="mode", mode_scale=0.8)) == Mode(0.8)
    assert time_distribution(TimeConfig(distribution="uniform")) == Uniform()
    objective = flow_matching(TimeConfig(distribution="mode", shift=2.0, weighting="cosmap"), 7)
    assert (objective.time_distribution, objective.shift) == (Mode(1.29), 2.0)
    assert isinstance(objective.weighting, CosMap)
    assert flow_matching(TimeConfig(), 7).weighting is None


def test_a_shift_by_size_grows_with_the_side():
    config = TimeConfig(shift=3.0, shift_tokens=256)
    assert [shift_at(config, side**2) for side in (8, 16, 32)] == [1.5, 3.0, 6.0]
    assert shift_at(TimeConfig(shift=3.0), 7) == 3.0
    assert flow_matching(config, 1024).shift == 6.0
