"""Paths: their equations, and exact conversions between noise, image and velocity."""

import math

import pytest
import torch
from diffusers import DDIMScheduler
from torch.utils._python_dispatch import TorchDispatchMode

from lineardit.diffusion.paths import DDPMPath, FlowPath, Path, TrigFlowPath
from lineardit.diffusion.predictions import ImagePrediction, NoisePrediction, Prediction, VelocityPrediction
from lineardit.errors import InputError

# Small signal at the far end divides by alpha = 0.0064: rounding grows by 1 / alpha^2 at most.
EXACT = {"rtol": 0.0, "atol": 1e-10}

PATHS: dict[str, tuple[Path, torch.Tensor]] = {
    "flow": (FlowPath(), torch.tensor([0.01, 0.3, 0.5, 0.8, 0.99], dtype=torch.float64)),
    "trigflow": (TrigFlowPath(), torch.tensor([0.01, 0.3, 0.9, 1.3, 1.55], dtype=torch.float64)),
    "linear": (DDPMPath.linear(), torch.tensor([0, 10, 300, 700, 999])),
    "scaled linear": (DDPMPath.scaled_linear(), torch.tensor([0, 10, 300, 700, 999])),
    "cosine": (DDPMPath.cosine(), torch.tensor([0, 10, 300, 700, 990])),
}


@pytest.fixture(params=PATHS)
def path_and_times(request: pytest.FixtureRequest) -> tuple[Path, torch.Tensor]:
    return PATHS[request.param]


def image_and_noise() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 5, 3, 2, 7, dtype=torch.float64, generator=generator)
    return x0, noise


def test_each_pair_of_predictions_converts_exactly(path_and_times):
    path, times = path_and_times
    x0, noise = image_and_noise()
    x, velocity = path.add_noise(x0, noise, times), path.velocity(x0, noise, times)
    torch.testing.assert_close(path.x0_from_velocity(velocity, x, times), x0, **EXACT)
    torch.testing.assert_close(path.noise_from_velocity(velocity, x, times), noise, **EXACT)
    torch.testing.assert_close(path.velocity_from_noise(noise, x, times), velocity, **EXACT)
    torch.testing.assert_close(path.velocity_from_x0(x0, x, times), velocity, **EXACT)
    torch.testing.assert_close(path.x0_from_noise(noise, x, times), x0, **EXACT)
    torch.testing.assert_close(path.noise_from_x0(x0, x, times), noise, **EXACT)


@pytest.mark.parametrize("kind", [NoisePrediction, ImagePrediction, VelocityPrediction])
def test_every_prediction_leads_back_to_image_and_noise(path_and_times, kind: type[Prediction]):
    path, times = path_and_times
    x0, noise = image_and_noise()
    x, prediction = path.add_noise(x0, noise, times), kind(path)
    predicted = prediction.target(x0, noise, times)
    torch.testing.assert_close(prediction.x0(predicted, x, times), x0, **EXACT)
    torch.testing.assert_close(prediction.noise(predicted, x, times), noise, **EXACT)


@pytest.mark.parametrize("kind", [NoisePrediction, ImagePrediction, VelocityPrediction])
def test_magnification_relates_an_error_to_the_error_of_the_image(path_and_times, kind: type[Prediction]):
    path, times = path_and_times
    x0, noise = image_and_noise()
    x, prediction = path.add_noise(x0, noise, times), kind(path)
    error = 1e-3 * torch.ones_like(x0)
    seen = prediction.x0(prediction.target(x0, noise, times) + error, x, times)
    ratio = error.square().flatten(1).mean(1) / (seen - x0).square().flatten(1).mean(1)
    torch.testing.assert_close(ratio, prediction.magnification(times), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("path", [FlowPath(), TrigFlowPath()])
def test_the_velocity_of_a_continuous_path_is_its_derivative(path: Path):
    x0, noise = image_and_noise()
    times = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64)
    step = 1e-6
    derivative = (path.add_noise(x0, noise, times + step) - path.add_noise(x0, noise, times - step)) / (
        2 * step
    )
    torch.testing.assert_close(path.velocity(x0, noise, times), derivative, rtol=0.0, atol=1e-8)


def test_flow_goes_from_the_image_to_noise_with_their_difference_as_velocity():
    x0, noise = image_and_noise()
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    x = FlowPath().add_noise(x0[:2], noise[:2], ends)
    assert torch.equal(x[0], x0[0])
    assert torch.equal(x[1], noise[1])
    assert torch.equal(FlowPath().velocity(x0[:2], noise[:2], ends), noise[:2] - x0[:2])


def test_trigflow_and_ddpm_keep_the_variance_of_unit_images():
    times = torch.linspace(0, math.pi / 2, 11, dtype=torch.float64)
    path, discrete = TrigFlowPath(), DDPMPath.cosine()
    torch.testing.assert_close(path.alpha(times) ** 2 + path.sigma(times) ** 2, torch.ones_like(times))
    steps = torch.arange(1000)
    total = discrete.alpha(steps) ** 2 + discrete.sigma(steps) ** 2
    torch.testing.assert_close(total, torch.ones(1000, dtype=torch.float64))


@pytest.mark.parametrize(
    ("path", "options"),
    [
        (DDPMPath.linear(), {"beta_schedule": "linear"}),
        (
            DDPMPath.scaled_linear(),
            {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        ),
        (DDPMPath.cosine(), {"beta_schedule": "squaredcos_cap_v2"}),
    ],
    ids=["linear", "scaled linear", "cosine"],
)
def test_betas_are_those_of_diffusers(path: DDPMPath, options: dict):
    scheduler = DDIMScheduler(num_train_timesteps=1000, **options)
    # diffusers holds them in float32; a product of 1000 of those is off by 1e-5 in relative terms.
    torch.testing.assert_close(path.betas, scheduler.betas.double(), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(path.alpha_bars[:-1], scheduler.alphas_cumprod.double(), rtol=1e-4, atol=1e-7)


def test_time_minus_one_of_ddpm_is_the_image_itself():
    x0, noise = image_and_noise()
    assert torch.equal(DDPMPath.linear().add_noise(x0, noise, torch.full((5,), -1)), x0)


def test_the_table_of_ddpm_travels_to_a_device_once():
    path, times = DDPMPath.linear(), torch.tensor([0, 999, -1])
    copies = []

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            copies.extend([function] * (function.overloadpacket is torch.ops.aten._to_copy))
            return function(*args, **(kwargs or {}))

    away = times.to("meta")
    with Copies():
        for use in (path.alpha, path.sigma, path.alpha):
            assert use(away).is_meta
    assert len(copies) == 1
    assert path.alpha(times).dtype == torch.float64 and path.alpha(times)[-1] == 1


def test_noised_latents_keep_their_dtype():
    x0, noise = (x.to(torch.bfloat16) for x in image_and_noise())
    assert FlowPath().add_noise(x0, noise, torch.rand(5)).dtype == torch.bfloat16
    assert DDPMPath.linear().velocity(x0, noise, torch.arange(5)).dtype == torch.bfloat16


def test_betas_outside_of_0_and_1_are_refused():
    with pytest.raises(InputError, match="do not all lie between 0 and 1"):
        DDPMPath(torch.tensor([0.1, 1.0]))
