"""From prompts to pictures, with a tiny model of random weights."""

import dataclasses
import json
import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image

from lineardit.diffusion.samplers import SAMPLERS
from lineardit.errors import CheckpointError, InputError, LineardiTError, PromptError, ShapeError
from lineardit.pipeline import LARGEST_SEED, Pipeline

CAT, DOGS = "a red apple left of a cat", "two dogs"


@pytest.fixture(scope="module")
def pipe(tiny_model: Path) -> Pipeline:
    return Pipeline.from_pretrained(tiny_model, device="cpu")


@pytest.fixture
def damaged(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the model to be damaged."""
    return Path(shutil.copytree(tiny_model, tmp_path / "damaged"))


def latents(pipe: Pipeline, *arguments: Any, **settings: Any) -> torch.Tensor:
    out = pipe(*arguments, output_type="latent", **settings).images
    assert isinstance(out, torch.Tensor)
    return out


def test_a_picture_is_the_same_alone_and_in_any_batch(pipe: Pipeline) -> None:
    alone = latents(pipe, DOGS, seed=8)
    assert torch.equal(latents(pipe, [CAT, DOGS, CAT], seed=7)[1:2], alone)
    assert torch.equal(latents(pipe, DOGS, num_images_per_prompt=2, seed=[5, 8])[1:], alone)
    together = latents(pipe, [CAT, DOGS, CAT], seed=7, batch_size=3)
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_pictures_with_and_without_guidance_can_be_drawn_in_one_call(pipe: Pipeline, batch_size: int) -> None:
    plain, guided = pipe.plan(CAT, seed=3, guidance_scale=1.0), pipe.plan(DOGS, seed=4)
    together = pipe.draw([*plain, *guided], output_type="latent", batch_size=batch_size).images
    alone = torch.cat([pipe.draw(jobs, output_type="latent").images for jobs in (plain, guided)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_a_prompt_is_read_once_however_many_pictures_it_has(
    pipe: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        pipe("cat " * 20, num_images_per_prompt=3, num_inference_steps=1)
    assert len(caplog.messages) == 1


def test_every_seed_and_every_prompt_gives_another_picture(pipe: Pipeline) -> None:
    first, second, third = latents(pipe, [CAT, CAT, DOGS], seed=[1, 2, 1])
    assert not torch.allclose(first, second, atol=1e-2)
    assert not torch.allclose(first, third, atol=1e-3)


def test_seeds_count_up_from_one_or_are_given_each(pipe: Pipeline) -> None:
    jobs = pipe.plan([CAT, DOGS], num_images_per_prompt=2, seed=40)
    assert [(job.prompt, job.seed) for job in jobs] == [(CAT, 40), (CAT, 41), (DOGS, 42), (DOGS, 43)]
    assert [job.seed for job in pipe.plan([CAT, DOGS], seed=[9, 3])] == [9, 3]


def test_settings_tell_all_that_decided_a_picture(pipe: Pipeline, tiny_model: Path) -> None:
    (settings,) = pipe(CAT, "fog", height=16, width=32, sampler="euler", seed=4).settings
    assert dataclasses.asdict(settings) == {
        "prompt": CAT,
        "negative_prompt": "fog",
        "height": 16,
        "width": 32,
        "num_inference_steps": 3,
        "guidance_scale": 3.0,
        "sampler": "euler",
        "seed": 4,
        "model": str(tiny_model),
        "strength": None,
        "controlnet_conditioning_scale": None,
        "guidance_interval": (0.0, 1.0),
        "step_cache": 0.0,
    }


def test_a_negative_prompt_changes_the_picture_where_it_is_guided(pipe: Pipeline) -> None:
    assert not torch.allclose(latents(pipe, CAT), latents(pipe, CAT, "two dogs"), atol=1e-3)
    both = latents(pipe, [CAT, CAT], ["two dogs", ""], seed=[0, 0])
    assert torch.equal(both[1:], latents(pipe, CAT))


def test_without_guidance_the_network_draws_each_picture_once_and_without_a_negative_prompt(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    negative = "a house, a house, a house, a house"
    plain = latents(pipe, CAT, guidance_scale=1.0)
    assert torch.equal(plain, latents(pipe, CAT, negative, guidance_scale=1.0))
    torch.testing.assert_close(plain, latents(pipe, CAT, guidance_scale=1 + 1e-6), rtol=1e-4, atol=1e-4)
    batches: list[int] = []
    handle = pipe.transformer.register_forward_hook(lambda _, __, velocity: batches.append(len(velocity)))
    latents(pipe, CAT, guidance_scale=1.0)
    latents(pipe, CAT, guidance_scale=2.0)
    handle.remove()
    assert batches == [1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_state_is_given_and_the_last_is_the_picture(pipe: Pipeline, sampler: str) -> None:
    states = list(pipe.generate(CAT, seed=3, sampler=sampler, num_inference_steps=4))
    assert [(state.step, state.total) for state in states] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    called = latents(pipe, CAT, seed=3, sampler=sampler, num_inference_steps=4)
    assert torch.equal(states[-1].latents, called)
    assert pipe.decode(states[0].denoised).shape == (1, 3, 24, 24)


def test_a_generator_that_is_left_leaves_gradients_on(pipe: Pipeline) -> None:
    next(pipe.generate(CAT))
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_each_step_of_each_picture_is_reported(pipe: Pipeline) -> None:
    seen: list[int] = []
    pipe([CAT, DOGS], num_inference_steps=2, on_step=lambda state: seen.append(state.step))
    assert seen == [1, 2, 1, 2]


def test_pictures_come_in_the_type_that_is_asked_for(pipe: Pipeline) -> None:
    size = {"height": 16, "width": 40}
    (picture,) = pipe(CAT, **size).images
    array, tensor = pipe(CAT, **size, output_type="np").images, pipe(CAT, **size, output_type="pt").images
    assert isinstance(picture, Image.Image) and (picture.size, picture.mode) == ((40, 16), "RGB")
    assert array.shape == (1, 16, 40, 3) and array.dtype == np.float32
    assert tensor.shape == (1, 3, 16, 40) and tensor.dtype == torch.float32
    assert 0 <= array.min() < 0.4 and 0.6 < array.max() <= 1
    assert -1 <= tensor.min() < -0.2 and 0.2 < tensor.max() <= 1
    np.testing.assert_allclose(array[0], np.asarray(tensor[0].movedim(0, -1)) / 2 + 0.5, atol=1e-6)
    np.testing.assert_allclose(np.asarray(picture) / 255, array[0], atol=0.51 / 255)
    assert latents(pipe, CAT, **size).shape == (1, 4, 4, 10)


def test_a_model_is_drawn_at_its_own_size_unless_told_otherwise(pipe: Pipeline) -> None:
    assert pipe(CAT).images[0].size == (24, 24)
    assert pipe(CAT, width=8).images[0].size == (8, 24)


def test_latents_stay_in_float32_whatever_the_weights(tiny_model: Path, pipe: Pipeline) -> None:
    halved = Pipeline.from_pretrained(tiny_model, device="cpu", dtype="bf16")
    assert (pipe.dtype, halved.dtype, halved.device.type) == (torch.float32, torch.bfloat16, "cpu")
    assert all(state.latents.dtype == torch.float32 for state in halved.generate(CAT))
    exact, near = latents(pipe, CAT, guidance_scale=1.0), latents(halved, CAT, guidance_scale=1.0)
    assert 0 < float((exact - near).abs().max()) < 0.1 * float(exact.std())
    assert halved(CAT, output_type="pt").images.dtype == torch.float32


def test_a_prompt_beyond_the_budget_is_cut_and_the_rest_named(
    pipe: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "lineardit"):
        pipe("a red apple left of a cat left of a dogs house of cat", num_inference_steps=1)
    (record,) = caplog.records
    assert "longer than 11 tokens" in record.getMessage()
    assert record.getMessage().endswith("not in the picture: dogs house of cat")
    caplog.clear()
    pipe(CAT)
    assert not caplog.records


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda pipe: pipe(""), PromptError, "the prompt is empty"),
        (lambda pipe: pipe([CAT, " \n"]), PromptError, "prompt 2 of 2 is empty"),
        (lambda pipe: pipe([]), PromptError, "no prompt was given"),
        (lambda pipe: pipe(CAT, height=20), ShapeError, "height=20 is not a multiple of 8, .* Use 16 or 24"),
        (lambda pipe: pipe(CAT, width=3), ShapeError, "width=3 is not a multiple of 8, .* Use 8"),
        (lambda pipe: pipe(CAT, height=0), ShapeError, "height=0 .* Use 8"),
        (lambda pipe: pipe(CAT, height=-8), ShapeError, "height=-8 .* Use 8"),
        (lambda pipe: pipe(CAT, num_inference_steps=-1), InputError, "num_inference_steps=-1 is not a"),
        (lambda pipe: pipe(CAT, num_inference_steps=0), InputError, "num_inference_steps=0 is not"),
        (lambda pipe: pipe(CAT, guidance_scale=math.nan), InputError, "guidance_scale=nan is not between"),
        (lambda pipe: pipe(CAT, guidance_scale=-1.0), InputError, "guidance_scale=-1.0 is not between"),
        (lambda pipe: pipe(CAT, guidance_scale=math.inf), InputError, "guidance_scale=inf is not between"),
        (lambda pipe: pipe(CAT, sampler="eular"), InputError, "unknown sampler 'eular'. Did you mean euler"),
        (lambda pipe: pipe(CAT, seed=[1, 2]), InputError, "2 seeds for 1 pictures"),
        (lambda pipe: pipe(CAT, seed=-1), InputError, "seed=-1 is not between"),
        (lambda pipe: pipe([CAT, CAT], seed=LARGEST_SEED), InputError, f"seed={LARGEST_SEED + 1} is not"),
        (lambda pipe: pipe(CAT, ["a", "b"]), InputError, "2 negative prompts for 1 prompts"),
        (lambda pipe: pipe(CAT, "blurry\udcff"), PromptError, "^the negative prompt has half of a character"),
        (lambda pipe: pipe(CAT, num_images_per_prompt=0), InputError, "num_images_per_prompt=0 is not"),
        (lambda pipe: pipe.draw(pipe.plan(CAT), batch_size=-1), InputError, "batch_size=-1 is not"),
        (lambda pipe: pipe.draw(pipe.plan(CAT), batch_size=0), InputError, "batch_size=0 is not"),
    ],
)
def test_what_breaks_a_rule_is_refused_with_the_rule(
    pipe: Pipeline, call: Callable[[Pipeline], object], kind: type[LineardiTError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        call(pipe)


def test_a_folder_that_is_not_there_or_holds_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="gone is no folder and no file here"):
        Pipeline.from_pretrained(tmp_path / "gone")
    with pytest.raises(CheckpointError, match="is a folder without a model"):
        Pipeline.from_pretrained(tmp_path)


def test_a_device_or_dtype_that_is_not_here_is_refused(tiny_model: Path) -> None:
    with pytest.raises(InputError, match="device=tpu is not there"):
        Pipeline.from_pretrained(tiny_model, device="tpu")
    with pytest.raises(InputError, match="dtype=int4 is unknown"):
        Pipeline.from_pretrained(tiny_model, dtype="int4")


def test_truncated_weights_are_named(damaged: Path) -> None:
    file = damaged / "transformer.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="transformer.safetensors .* cut off"):
        Pipeline.from_pretrained(damaged)


def test_foreign_weights_are_named(damaged: Path) -> None:
    (damaged / "autoencoder.safetensors").write_bytes(b"\x80\x02 a pickle")
    with pytest.raises(CheckpointError, match=r"autoencoder.safetensors has \d+ bytes, \d+ were written"):
        Pipeline.from_pretrained(damaged)


def test_an_incomplete_model_is_told_what_it_lacks(damaged: Path) -> None:
    index = json.loads((damaged / "lineardit.json").read_text("utf-8"))
    del index["components"]["autoencoder"], index["components"]["text_encoder"]
    (damaged / "lineardit.json").write_text(json.dumps(index), "utf-8")
    with pytest.raises(CheckpointError, match="holds no autoencoder, no text_encoder"):
        Pipeline.from_pretrained(damaged)


@pytest.mark.parametrize("sampling", [{"stride": 8}, 7])
def test_a_model_that_says_nonsense_of_its_sampling_is_damaged(damaged: Path, sampling: object) -> None:
    index = json.loads((damaged / "lineardit.json").read_text("utf-8"))
    index["about"]["sampling"] = sampling
    (damaged / "lineardit.json").write_text(json.dumps(index), "utf-8")
    with pytest.raises(CheckpointError, match="lineardit.json is damaged: about.sampling"):
        Pipeline.from_pretrained(damaged)


@pytest.mark.parametrize("changes", [{"guidance_interval": (0.0, 1.0)}, {"step_cache": 0.0}])
def test_a_trade_that_is_off_changes_no_bit(pipe: Pipeline, changes: dict[str, Any]) -> None:
    assert torch.equal(latents(pipe, CAT, **changes), latents(pipe, CAT))


def test_a_side_that_is_no_whole_number_is_refused(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for side in (24.0, True, "24"):
        with pytest.raises(InputError, match="height=.* is no whole number. Use 24."):
            pipe.plan(CAT, height=side)  # type: ignore[arg-type]


def test_outside_of_its_interval_guidance_is_off(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = []
    forward = type(pipe.transformer).forward

    def seen(self: Any, shown: torch.Tensor, *given: Any) -> Any:
        velocity = forward(self, shown, *given)
        assert len(shown) == 1  # also where it is drawn twice
        batches.append(len(velocity))
        return velocity

    monkeypatch.setattr(type(pipe.transformer), "forward", seen)
    guided = latents(pipe, CAT)
    assert batches == [2, 2, 2]
    batches.clear()
    partly = latents(pipe, CAT, guidance_interval=(0.5, 1.0))
    assert set(batches) == {1, 2} and len(batches) == 3
    assert not torch.allclose(guided, partly, atol=1e-3)
    monkeypatch.undo()
    never = latents(pipe, CAT, guidance_interval=(0.0, 1e-6))
    torch.testing.assert_close(never, latents(pipe, CAT, guidance_scale=1.0), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"guidance_interval": (0.7, 0.3)}, "does not rise within 0 and 1"),
        ({"step_cache": -1.0}, "step_cache=-1.0 is not 0 or more"),
    ],
)
def test_a_trade_out_of_range_is_refused(pipe: Pipeline, changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        pipe.plan(CAT, **changes)
