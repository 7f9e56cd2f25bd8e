"""DDPM samplers: step for step against diffusers, in float64 where its schedulers allow that."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from lineardit.diffusion.discrete import (
    ancestral,
    ddim,
    discrete_dpm_solver_pp_2m,
    leading_times,
    linspace_times,
    trailing_times,
)
from lineardit.diffusion.paths import DDPMPath, FlowPath
from lineardit.diffusion.predictions import ImagePrediction, NoisePrediction, VelocityPrediction
from lineardit.diffusion.randomness import StepNoise
from lineardit.diffusion.samplers import dpm_solver_pp_2m, euler
from lineardit.errors import InputError

POINTS = 24
PATHS = {"linear": DDPMPath.linear(), "scaled_linear": DDPMPath.scaled_linear(), "cosine": DDPMPath.cosine()}
KINDS = {"epsilon": NoisePrediction, "sample": ImagePrediction, "v_prediction": VelocityPrediction}
GRIDS = {"leading": leading_times, "trailing": trailing_times}
BETAS = {
    "linear": {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"},
    "scaled_linear": {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}
"""The options by which diffusers' schedulers follow the same paths."""


def starts(dim: int) -> Tensor:
    return torch.randn(POINTS, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def exact_model(gaussians, prediction):
    """A network that predicts exactly what there is to know."""
    path = prediction.path

    def model(x: Tensor, times: Tensor) -> Tensor:
        assert times.dtype == torch.int64
        expected = gaussians.expectations(x.double(), path.alpha(times), path.sigma(times))
        return prediction.target(*expected, times).to(x.dtype)

    return model


def last(states):
    *_, state = states
    return state


@pytest.mark.parametrize("gaussians", [8], ids=["8-D"], indirect=True)
@pytest.mark.parametrize("spacing", GRIDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", PATHS)
def test_ddim_is_diffusers_ddim_step_for_step(gaussians, path: str, kind: str, spacing: str):
    prediction = KINDS[kind](PATHS[path])
    scheduler = DDIMScheduler(
        prediction_type=kind, timestep_spacing=spacing, clip_sample=False, **BETAS[path]
    )
    # Its own product of betas is in float32; with ours the formulas can be compared to rounding.
    scheduler.alphas_cumprod = prediction.path.alpha_bars[:-1]
    scheduler.set_timesteps(20)
    model, theirs = exact_model(gaussians, prediction), starts(gaussians.means.shape[1])
    times = GRIDS[spacing](20, prediction.path)
    assert torch.equal(times[:-1], scheduler.timesteps)
    for state in ddim(model, theirs, times, prediction):
        time = scheduler.timesteps[state.step - 1]
        stepped = scheduler.step(model(theirs, time.expand(POINTS)), time, theirs)
        theirs = stepped.prev_sample
        # Trailing times start where the cosine path has alpha = 5e-5, and a noise is divided by that.
        torch.testing.assert_close(state.latents, theirs, rtol=0.0, atol=1e-10)
        torch.testing.assert_close(state.denoised, stepped.pred_original_sample, rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("gaussians", [8], ids=["8-D"], indirect=True)
@pytest.mark.parametrize("spacing", GRIDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", PATHS)
def test_ancestral_sampling_is_diffusers_ddpm_step_for_step(gaussians, path: str, kind: str, spacing: str):
    prediction = KINDS[kind](PATHS[path])
    scheduler = DDPMScheduler(
        prediction_type=kind, timestep_spacing=spacing, clip_sample=False, **BETAS[path]
    )
    scheduler.alphas_cumprod = prediction.path.alpha_bars[:-1]
    scheduler.set_timesteps(20)
    model, theirs = exact_model(gaussians, prediction), starts(gaussians.means.shape[1])
    ours, generator = (torch.Generator().manual_seed(5) for _ in range(2))

    def fresh(step: int, like: Tensor) -> Tensor:
        return torch.randn(like.shape, dtype=like.dtype, generator=ours)

    for state in ancestral(model, theirs, GRIDS[spacing](20, prediction.path), prediction, fresh):
        time = scheduler.timesteps[state.step - 1]
        stepped = scheduler.step(model(theirs, time.expand(POINTS)), time, theirs, generator=generator)
        theirs = stepped.prev_sample
        # diffusers adds noise of deviation 1e-10 in a last step that needs none.
        torch.testing.assert_close(state.latents, theirs, rtol=0.0, atol=1e-9)


@pytest.mark.parametrize(
    # One or two steps from alpha = 0.006, where the linear path starts, magnify float32 beyond 1e-5.
    ("path", "steps"),
    [*(("scaled_linear", steps) for steps in (1, 2, 10, 20)), ("linear", 10), ("linear", 20)],
)
@pytest.mark.parametrize("kind", KINDS)
def test_dpm_solver_is_diffusers_step_for_step(gaussians, path: str, kind: str, steps: int):
    prediction = KINDS[kind](PATHS[path])
    scheduler = DPMSolverMultistepScheduler(
        solver_order=2, prediction_type=kind, final_sigmas_type="zero", **BETAS[path]
    )
    scheduler.set_timesteps(steps)
    model, theirs = exact_model(gaussians, prediction), starts(gaussians.means.shape[1]).float()
    times = linspace_times(steps, prediction.path)
    assert torch.equal(times[:-1], scheduler.timesteps)
    for state in discrete_dpm_solver_pp_2m(model, theirs, times, prediction):
        time = scheduler.timesteps[state.step - 1]
        theirs = scheduler.step(model(theirs, time.expand(POINTS)), time, theirs).prev_sample
        # The scheduler holds betas, sigmas and samples in float32.
        torch.testing.assert_close(state.latents, theirs, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_dpm_solver_is_diffusers_on_the_cosine_path_and_on_uneven_times(gaussians, kind: str):
    # At time 999 that path has alpha = 5e-5: float32, in which diffusers steps, ends there.
    times = torch.tensor([940, 880, 800, 660, 560, 400, 300, 160, 60, -1])
    prediction = KINDS[kind](PATHS["cosine"])
    scheduler = DPMSolverMultistepScheduler(
        solver_order=2, prediction_type=kind, final_sigmas_type="zero", **BETAS["cosine"]
    )
    scheduler.alphas_cumprod = prediction.path.alpha_bars[:-1]
    scheduler.set_timesteps(timesteps=times[:-1].tolist())
    model, theirs = exact_model(gaussians, prediction), starts(gaussians.means.shape[1]).float()
    for state in discrete_dpm_solver_pp_2m(model, theirs, times, prediction):
        time = scheduler.timesteps[state.step - 1]
        theirs = scheduler.step(model(theirs, time.expand(POINTS)), time, theirs).prev_sample
        torch.testing.assert_close(state.latents, theirs, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 3, 20, 1000])
def test_trailing_and_leading_times_are_those_of_diffusers(steps: int):
    for spacing, grid in GRIDS.items():
        scheduler = DDIMScheduler(timestep_spacing=spacing)
        scheduler.set_timesteps(steps)
        times = grid(steps, PATHS["linear"])
        assert torch.equal(times[:-1], scheduler.timesteps)
        assert times[-1] == -1


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", KINDS.values())
def test_every_sampler_is_exact_for_a_single_picture(path: str, kind):
    prediction = kind(PATHS[path])
    picture = torch.linspace(-1, 1, 5, dtype=torch.float64).expand(POINTS, 5)

    def model(x: Tensor, times: Tensor) -> Tensor:
        return prediction.target(picture, prediction.path.noise_from_x0(picture, x, times), times)

    times = trailing_times(7, prediction.path)
    for states in (
        ddim(model, starts(5), times, prediction),
        discrete_dpm_solver_pp_2m(model, starts(5), times, prediction),
        ancestral(model, starts(5), times, prediction, StepNoise(range(POINTS))),
    ):
        torch.testing.assert_close(last(states).latents, picture, rtol=0.0, atol=1e-10)


@pytest.mark.parametrize(("sampler", "twin"), [(ddim, euler), (discrete_dpm_solver_pp_2m, dpm_solver_pp_2m)])
def test_each_solver_is_its_flow_twin_in_other_units(gaussians, sampler, twin):
    # x / (alpha + sigma) lies on the straight path at t = sigma / (alpha + sigma). What is proved of the
    # flow samplers, their order above all, then holds here.
    path = PATHS["scaled_linear"]
    times = trailing_times(20, path)
    scale = path.alpha(times) + path.sigma(times)
    x = starts(gaussians.means.shape[1])
    prediction = NoisePrediction(path)
    ours = sampler(exact_model(gaussians, prediction), x, times, prediction)
    flow = twin(gaussians.flow_velocity, x / scale[0], path.sigma(times) / scale)
    for here, there, factor in zip(ours, flow, scale[1:].tolist(), strict=True):
        torch.testing.assert_close(here.latents, there.latents * factor, rtol=0.0, atol=1e-10)
        torch.testing.assert_close(here.denoised, there.denoised, rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("gaussians", [2], ids=["2-D"], indirect=True)
def test_ancestral_sampling_draws_from_the_distribution(gaussians):
    prediction = NoisePrediction(PATHS["linear"])
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2000, 2, dtype=torch.float64, generator=generator)

    def fresh(step: int, like: Tensor) -> Tensor:
        return torch.randn(like.shape, dtype=like.dtype, generator=generator)

    times = trailing_times(100, prediction.path)
    drawn = last(ancestral(exact_model(gaussians, prediction), x, times, prediction, fresh)).latents
    true = gaussians.draw(100_000, generator)
    # Three standard deviations of 2000 draws, and what 100 steps leave.
    torch.testing.assert_close(drawn.mean(0), true.mean(0), rtol=0.0, atol=0.08)
    torch.testing.assert_close(drawn.std(0), true.std(0), rtol=0.08, atol=0.0)


def test_the_ancestral_picture_of_a_seed_does_not_depend_on_its_batch(gaussians):
    prediction = NoisePrediction(PATHS["linear"])
    model, x = exact_model(gaussians, prediction), starts(gaussians.means.shape[1])
    times = trailing_times(6, prediction.path)
    together = last(ancestral(model, x, times, prediction, StepNoise(range(POINTS)))).latents
    alone = last(ancestral(model, x[3:4], times, prediction, StepNoise([3]))).latents
    torch.testing.assert_close(together[3:4], alone, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("sampler", [ddim, discrete_dpm_solver_pp_2m])
def test_states_stay_in_float32_when_the_model_answers_in_bfloat16(sampler):
    prediction, x = VelocityPrediction(PATHS["linear"]), starts(3).bfloat16()
    states = list(sampler(lambda x, t: x.bfloat16(), x, trailing_times(3, prediction.path), prediction))
    assert {state.latents.dtype for state in states} == {torch.float32}
    assert [(state.step, state.total) for state in states] == [(1, 3), (2, 3), (3, 3)]
    assert states[-1].next_time == -1


@pytest.mark.parametrize("stops", [[999], [5, 10, -1], [1000, -1], [10, -2], [10, 10, -1]])
def test_times_that_do_not_fall_along_the_path_are_refused(stops: list[int]):
    prediction = NoisePrediction(PATHS["linear"])
    with pytest.raises(InputError, match="do not fall from 999 or less to -1"):
        last(ddim(lambda x, t: x, starts(3), torch.tensor(stops), prediction))


@pytest.mark.parametrize(
    ("grid", "most", "times"),
    [
        (leading_times, 10, "10 times of the path"),
        (trailing_times, 10, "10 times of the path"),
        (linspace_times, 9, "9 times of the path above 0"),
    ],
)
def test_more_steps_than_times_are_refused(grid, most: int, times: str):
    path = DDPMPath.linear(steps=10)
    for steps in (most + 1, 11):
        with pytest.raises(InputError, match=f"steps={steps} exceed the {times}. Use {most} or fewer"):
            grid(steps, path)
    with pytest.raises(InputError, match="positive whole number"):
        grid(0, path)


@pytest.mark.parametrize("grid", [leading_times, trailing_times, linspace_times])
def test_every_number_of_steps_that_is_allowed_falls(grid):
    for length in (1, 2, 3, 10, 33):
        path = DDPMPath.linear(steps=length)
        for steps in range(1, length + 1 if grid is not linspace_times else max(2, length)):
            times = grid(steps, path)
            assert len(times) == steps + 1 and times[0] < length and times[-1] == -1
            assert (times.diff() < 0).all()


def test_a_path_without_whole_times_is_refused():
    prediction = NoisePrediction(FlowPath())
    with pytest.raises(InputError, match="follows a DDPMPath, not a FlowPath"):
        last(ddim(lambda x, t: x, starts(3), torch.tensor([3, -1]), prediction))
