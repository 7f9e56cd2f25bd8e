"""Objectives: their equations, what minimises them, and where their randomness comes from."""

import pytest
import torch

from lineardit.diffusion.objective import CosMap, Denoising, FlowMatching, MinSNR, draw_noise
from lineardit.diffusion.paths import DDPMPath, FlowPath
from lineardit.diffusion.predictions import ImagePrediction, NoisePrediction, Prediction, VelocityPrediction
from lineardit.diffusion.times import LogitNormal, Uniform, shift_times
from lineardit.errors import ConfigError, InputError, ShapeError

KINDS: list[type[Prediction]] = [NoisePrediction, ImagePrediction, VelocityPrediction]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def latents(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(5, 3, 2, 7, dtype=torch.float64, generator=generator(1)).to(dtype)


def other_noise() -> torch.Tensor:
    return draw_noise(latents(), generator(2)).double()


def over(times: torch.Tensor) -> torch.Tensor:
    return times[:, None, None, None]


class Recorded:
    """A model that says 0 and remembers what it was asked."""

    def __call__(self, x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        self.x, self.times = x, times
        return torch.zeros_like(x)


def test_flow_matching_is_its_equation_sample_by_sample():
    x0, noise, times = latents(), other_noise(), torch.tensor([0.0, 0.2, 0.5, 0.7, 1.0], dtype=torch.float64)
    losses = FlowMatching().loss_at(lambda x, t: over(t) * x, x0, noise, times)
    for k, t in enumerate(times.tolist()):
        x = (1 - t) * x0[k] + t * noise[k]
        torch.testing.assert_close(losses[k], (t * x - (noise[k] - x0[k])).square().mean())


def test_a_loss_is_drawn_from_its_generator_alone():
    objective = FlowMatching(LogitNormal(0.2, 1.6), shift=3.0)
    model = Recorded()
    losses = objective.loss(model, latents(), generator(4))
    drawing = generator(4)
    times = shift_times(LogitNormal(0.2, 1.6).draw(5, drawing), 3.0).double()
    noise = draw_noise(latents(), drawing).double()
    assert torch.equal(model.times, times)
    torch.testing.assert_close(model.x, FlowPath().add_noise(latents(), noise, times))
    torch.testing.assert_close(losses, objective.loss_at(Recorded(), latents(), noise, times))


def test_drawing_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    FlowMatching().loss(Recorded(), latents(), generator())
    Denoising(NoisePrediction(DDPMPath.linear())).loss(Recorded(), latents(), generator())
    assert torch.equal(torch.get_rng_state(), before)


def test_the_exact_velocity_of_a_single_picture_has_no_loss():
    picture = latents()[:1].expand(5, -1, -1, -1)
    losses = FlowMatching().loss(lambda x, t: (x - picture) / over(t), picture, generator())
    assert losses.max() < 1e-20


def test_the_expected_velocity_minimises_flow_matching(gaussians):
    x0 = gaussians.draw(20_000, generator())
    offset = torch.zeros(x0.shape[1], dtype=torch.float64, requires_grad=True)
    gain = torch.ones((), dtype=torch.float64, requires_grad=True)

    def velocity(x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        return gain * gaussians.flow_velocity(x, times) + offset

    losses = FlowMatching().loss(velocity, x0, generator(1))
    slopes = torch.autograd.grad(losses.mean(), [offset, gain])
    # Averages of 20,000 draws of spread 1: 5 standard deviations.
    assert all(slope.abs().max() < 0.035 for slope in slopes)
    off = FlowMatching().loss(lambda x, t: 1.1 * gaussians.flow_velocity(x, t) + 0.1, x0, generator(1))
    assert off.mean() > losses.mean()


@pytest.mark.parametrize("kind", KINDS)
def test_the_exact_prediction_minimises_denoising(gaussians, kind: type[Prediction]):
    path = DDPMPath.scaled_linear()
    prediction = kind(path)
    x0 = gaussians.draw(5000, generator())

    def model(x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        expected = gaussians.expectations(x, path.alpha(times), path.sigma(times))
        return prediction.target(*expected, times)

    exact = Denoising(prediction).loss(model, x0, generator(1)).mean()
    for gain, offset in [(1.0, 0.1), (1.0, -0.1), (1.1, 0.0), (0.9, 0.0)]:
        off = Denoising(prediction).loss(
            lambda x, t, gain=gain, offset=offset: gain * model(x, t) + offset, x0, generator(1)
        )
        assert off.mean() > exact


def test_denoising_draws_every_whole_time_equally():
    model = Recorded()
    objective = Denoising(NoisePrediction(DDPMPath.linear(steps=10)))
    objective.loss(model, torch.zeros(20_000, 1), generator())
    assert model.times.dtype == torch.int64
    counts = torch.bincount(model.times, minlength=10)
    # Five standard deviations.
    assert counts.shape == (10,)
    assert (counts - 2000).abs().max() < 5 * (20_000 * 0.1 * 0.9) ** 0.5


def test_denoising_needs_a_path_with_whole_times():
    with pytest.raises(ConfigError, match="Use a DDPMPath"):
        Denoising(NoisePrediction(FlowPath()))


@pytest.mark.parametrize("objective", [FlowMatching(), Denoising(NoisePrediction(DDPMPath.linear()))])
def test_bfloat16_latents_are_noised_and_compared_in_float32(objective):
    model = Recorded()
    losses = objective.loss(model, latents(torch.bfloat16), generator(4))
    wide = objective.loss(Recorded(), latents(torch.bfloat16).float(), generator(4))
    assert model.x.dtype == torch.float32
    assert losses.dtype == torch.float32
    assert torch.equal(losses, wide)


def test_a_weighting_multiplies_the_loss_at_its_time():
    times = torch.tensor([0.0, 0.2, 0.5, 0.7, 1.0], dtype=torch.float64)
    plain = FlowMatching().loss_at(Recorded(), latents(), other_noise(), times)
    weighted = FlowMatching(weighting=CosMap()).loss_at(Recorded(), latents(), other_noise(), times)
    torch.testing.assert_close(weighted / plain, CosMap()(times))


def test_cosmap_weights_average_to_one_over_uniform_times():
    times = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    torch.testing.assert_close(CosMap()(times).mean(), torch.tensor(1.0, dtype=torch.float64))


def test_min_snr_weighs_the_same_image_error_alike_whatever_is_predicted():
    path, times = DDPMPath.scaled_linear(), torch.tensor([1, 100, 400, 700, 999])
    x0, noise = latents(), other_noise()

    def losses(prediction: Prediction) -> torch.Tensor:
        """Of a model that sees an image which is off by 0.1."""

        def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            seen = x0 + 0.1
            return prediction.target(seen, path.noise_from_x0(seen, x, t), t)

        return Denoising(prediction, MinSNR(prediction, 5.0)).loss_at(model, x0, noise, times)

    expected = 0.01 * path.snr(times).clamp(max=5.0)
    for kind in KINDS:
        torch.testing.assert_close(losses(kind(path)), expected)


def test_a_model_that_changes_the_shape_is_refused_instead_of_broadcast():
    with pytest.raises(ShapeError, match=r"turned \(5, 3, 2, 7\) into \(5, 1, 2, 7\)"):
        FlowMatching().loss(lambda x, t: x[:, :1], latents(), generator())


def test_a_shift_that_is_no_positive_number_is_refused():
    with pytest.raises(InputError, match="is not a positive number"):
        FlowMatching(shift=0.0)


def test_uniform_times_without_shift_average_one_half():
    model = Recorded()
    FlowMatching(Uniform()).loss(model, torch.zeros(20_000, 1), generator())
    assert abs(model.times.mean() - 0.5) < 0.01
