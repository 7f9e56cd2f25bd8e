"""Few-step sampling of consistency models, against the scheduler of diffusers, step for step."""

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from lineardit.diffusion.randomness import StepNoise, seeded_noise
from lineardit.diffusion.scm import scm, scm_times
from lineardit.errors import InputError

SIGMA = 0.5


def velocity(x: Tensor, times: Tensor) -> Tensor:
    """Of nothing in particular, but of both arguments."""
    return torch.sin(3 * x) + times.view(-1, 1, 1)


def published(noise: Tensor, steps: int, fresh: StepNoise, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The images that the scheduler sees, with the transform of the network that the pipeline does."""
    diffusers = pytest.importorskip("diffusers")
    scheduler: Any = diffusers.SCMScheduler()
    scheduler.set_timesteps(steps, intermediate_timesteps=1.3 if steps == 2 else None)
    scheduler.set_begin_index(0)
    step = 0
    monkeypatch.setattr(
        sys.modules[diffusers.SCMScheduler.__module__], "randn_tensor", lambda *_, **__: fresh(step, noise)
    )
    x, seen = noise * SIGMA, []
    for angle in scheduler.timesteps[:-1]:
        step += 1
        t = angle.sin() / (angle.cos() + angle.sin())
        norm = (t**2 + (1 - t) ** 2).sqrt()
        flow = x / SIGMA * norm
        v = velocity(flow, t.expand(len(flow)))
        output = ((1 - 2 * t) * flow + (1 - 2 * t + 2 * t**2) * v) / norm
        x, denoised = scheduler.step(output * SIGMA, angle, x, return_dict=False)
        seen.append(denoised / SIGMA)
    return seen


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_every_step_sees_the_image_that_diffusers_sees(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    noise, fresh = seeded_noise((5, 3), [1, 2]), StepNoise([1, 2])
    states = list(scm(velocity, noise, scm_times(steps), fresh))
    wanted = published(noise, steps, fresh, monkeypatch)
    assert [state.step for state in states] == list(range(1, steps + 1))
    for state, image in zip(states, wanted, strict=True):
        # diffusers starts at 1.5708, a little beyond pi / 2.
        torch.testing.assert_close(state.denoised, image, rtol=0, atol=5e-5)
    assert torch.equal(states[-1].latents, states[-1].denoised)


def test_times_fall_from_noise_to_image_over_the_published_middle() -> None:
    times = scm_times(2).tolist()
    assert times[0] == 1 and times[2] == 0
    assert times[1] == pytest.approx(0.782708, abs=1e-5)  # sin 1.3 / (sin 1.3 + cos 1.3)
    assert (scm_times(4).diff() < 0).all()
    with pytest.raises(InputError, match="steps=0 is not a positive"):
        scm_times(0)


def test_a_model_that_knows_the_image_gives_it_in_one_step() -> None:
    image, noise = seeded_noise((4,), [5]), seeded_noise((4,), [6])
    (state,) = scm(lambda x, times: (x - image) / times.view(-1, 1), noise, scm_times(1), StepNoise([6]))
    torch.testing.assert_close(state.latents, image)
