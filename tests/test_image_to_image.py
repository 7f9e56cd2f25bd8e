"""Drawing over a picture: it is noised as after the steps that are left out, and denoised from there."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from lineardit.diffusion.randomness import seeded_noise
from lineardit.errors import InputError
from lineardit.pipeline import Pipeline

CAT = "a red apple left of a cat"


@pytest.fixture(scope="module")
def pipe(tiny_model: Path) -> Pipeline:
    return Pipeline.from_pretrained(tiny_model, device="cpu")


@pytest.fixture
def picture() -> Image.Image:
    return Image.linear_gradient("L").resize((40, 24)).convert("RGB")


@pytest.mark.parametrize(("sampler", "first"), [("euler", 0.5), ("heun", 0.5), ("dpm++", 0.4995)])
def test_it_starts_from_the_picture_mixed_with_noise(
    pipe: Pipeline, picture: Image.Image, sampler: str, first: float
) -> None:
    (job,) = pipe.plan(CAT, height=24, width=40, num_inference_steps=8, strength=0.5, seed=5, sampler=sampler)
    encoded = pipe.encode([picture], job)
    state, *rest = pipe.states([job], initial=encoded)
    assert state.total == 4 == len(rest) + 1 and state.time == pytest.approx(first)
    noise = seeded_noise(tuple(encoded.shape[1:]), [5], pipe.device)
    mixed = (1 - state.time) * encoded + state.time * noise
    # Every sampler's first step is that of Euler but heun's: latents = x + (t' - t) v, denoised = x - t v.
    if sampler == "euler":
        velocity = (state.latents - state.denoised) / state.next_time
        torch.testing.assert_close(
            (state.denoised + state.time * velocity).float(), mixed, rtol=1e-4, atol=1e-4
        )
    elsewhere, *_ = pipe.states([job], initial=encoded + 1)
    assert not torch.allclose(elsewhere.denoised, state.denoised, atol=1e-2)


@pytest.mark.parametrize("sampler", ["euler", "scm"])
def test_a_strength_of_one_keeps_nothing_of_the_picture(
    pipe: Pipeline, picture: Image.Image, sampler: str
) -> None:
    options = {"height": 24, "width": 40, "sampler": sampler, "seed": 3, "output_type": "latent"}
    over = pipe(CAT, image=picture, strength=1.0, **options).images
    assert torch.equal(over, pipe(CAT, **options).images)


@pytest.mark.parametrize(
    ("steps", "strength", "drawn"), [(10, 0.3, 3), (20, 0.6, 12), (4, 0.01, 1), (3, 1.0, 3)]
)
def test_the_share_of_the_steps_is_drawn(pipe: Pipeline, steps: int, strength: float, drawn: int) -> None:
    (job,) = pipe.plan(CAT, num_inference_steps=steps, strength=strength)
    assert job.steps_drawn == drawn


def test_each_picture_of_a_batch_is_as_it_would_be_alone(pipe: Pipeline, picture: Image.Image) -> None:
    jobs = pipe.plan(CAT, num_images_per_prompt=2, height=24, width=40, strength=0.7)
    images = [picture, picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    both = pipe.draw(jobs, images, output_type="latent", batch_size=2).images
    alone = [
        pipe.draw([job], [image], output_type="latent").images
        for job, image in zip(jobs, images, strict=True)
    ]
    torch.testing.assert_close(both, torch.cat(alone))
    assert not torch.allclose(both[0], both[1], atol=1e-2)


def test_a_picture_of_another_size_is_cut_to_the_one_that_is_asked_for(pipe: Pipeline) -> None:
    wide = Image.new("RGB", (72, 24), "blue")
    wide.paste("red", (24, 0, 48, 24))
    (job,) = pipe.plan(CAT, height=24, width=24, strength=0.5)
    red = Image.new("RGB", (24, 24), "red")
    torch.testing.assert_close(pipe.encode([wide], job), pipe.encode([red], job))
    assert pipe(CAT, image=wide, height=16, width=32).images[0].size == (32, 16)


def test_what_makes_no_sense_is_refused(pipe: Pipeline, picture: Image.Image) -> None:
    for strength in (0.0, 1.5, float("nan"), -1.0):
        with pytest.raises(InputError, match="is not above 0 and at most 1"):
            pipe(CAT, image=picture, strength=strength)
    with pytest.raises(InputError, match="a strength, but no picture"):
        pipe(CAT, strength=0.5)
    with pytest.raises(InputError, match="a picture, but no strength"):
        pipe.draw(pipe.plan(CAT), [picture])
    assert pipe(CAT, image=picture).settings[0].strength == 0.6
