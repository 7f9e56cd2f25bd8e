"""Drawing with the article's network: its samplers, its conditioning at any size, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from PIL import Image
from torch.nn import functional

from lineardit.autoencoder.model import Autoencoder
from lineardit.cli.app import main
from lineardit.config.article import ArticleAutoencoderConfig, ArticleConfig
from lineardit.diffusion.randomness import StepNoise, seeded_noise
from lineardit.errors import CheckpointError, InputError
from lineardit.interop.export import export
from lineardit.interop.native import Component, autoencoder_component, describe_model, read_model, save_model
from lineardit.interop.places import open_place
from lineardit.pipeline import Pipeline
from lineardit.transformer.article import ArticleSana

CONFIG = ArticleConfig(
    latent_channels=4, width=16, depth=4, heads=2, qk_dim=4, text_width=12, position_base=6
)


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model of the article: 24 pixels per side, 4 per token, all of whose weights say something."""
    torch.manual_seed(1)
    network, autoencoder = (
        ArticleSana(CONFIG),
        Autoencoder(ArticleAutoencoderConfig(latent_channels=4, base_width=4, halvings=2)),
    )
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    text = read_model(tiny_model).components["text_encoder"]
    place = tmp_path_factory.mktemp("models") / "article"
    save_model(
        place,
        {
            "transformer": Component("ArticleSana", CONFIG, network.state_dict()),
            "autoencoder": autoencoder_component(autoencoder),
            "text_encoder": text,
        },
        about={"sampling": {"sampler": "ddim", "guidance_scale": 7.5, "num_inference_steps": 20, "size": 24}},
        extra_files={"tokenizer.json": (tiny_model / "tokenizer.json").read_bytes()},
    )
    return place


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Pipeline:
    return Pipeline.from_pretrained(folder, device="cpu")


BETAS = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear"}
SCHEDULERS = {
    "ddim": lambda: DDIMScheduler(**BETAS, clip_sample=False),
    "ddpm": lambda: DDPMScheduler(**BETAS, clip_sample=False),
    "dpm++": lambda: DPMSolverMultistepScheduler(**BETAS, lower_order_final=True),
}


@torch.no_grad()
def by_hand(pipe: Pipeline, scheduler: Any, fresh: list[torch.Tensor]) -> torch.Tensor:
    """Guided drawing of one 24 x 40 picture from seed 3; `fresh` is given the noise of each step."""
    text, mask = pipe.text_encoder.encode(["", "a red cat"])
    latents = seeded_noise((4, 6, 10), [3])
    scheduler.set_timesteps(5)
    for number, time in enumerate(scheduler.timesteps, start=1):
        without, wanted = pipe.transformer(latents.repeat(2, 1, 1, 1), time.expand(2), text, mask).chunk(2)
        fresh[:] = [StepNoise([3])(number, latents)]
        latents = scheduler.step(without + 3.0 * (wanted - without), time, latents).prev_sample
    return latents


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm++"])
def test_each_sampler_is_diffusers_at_a_size_that_positions_were_not_made_for(
    pipe: Pipeline, sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh: list[torch.Tensor] = []
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: fresh[0])
    right = by_hand(pipe, SCHEDULERS[sampler](), fresh)
    drawn = pipe(
        "a red cat",
        height=24,
        width=40,
        num_inference_steps=5,
        guidance_scale=3.0,
        seed=3,
        sampler=sampler,
        output_type="latent",
    ).images
    # The schedulers' running products are float32.
    torch.testing.assert_close(drawn, right, rtol=1e-3, atol=1e-3)


def test_what_nothing_is_said_of_is_ddim_in_20_steps_with_guidance_7_5(pipe: Pipeline) -> None:
    (job,) = pipe.plan("a cat")
    assert (job.sampler, job.num_inference_steps, job.guidance_scale) == ("ddim", 20, 7.5)
    assert (job.height, job.width) == (24, 24)
    assert pipe.samplers == ("ddim", "ddpm", "dpm++")


def test_prompts_that_were_read_once_say_what_they_say_with_their_mask(pipe: Pipeline) -> None:
    network = pipe.transformer
    text, mask = pipe.text_encoder.encode(["", "a red apple left of a cat", "two dogs"])
    latents, times = torch.randn(3, 4, 5, 7), torch.tensor([0, 500, 999])
    with torch.no_grad():
        right = network(latents, times, text, mask)
        read = network.read(text, mask)
        torch.testing.assert_close(network(latents, times, read), right, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            network(latents[1:], times[1:], read.rows(1, 3)), right[1:], rtol=1e-4, atol=1e-5
        )


def test_a_picture_does_not_depend_on_the_prompts_it_is_drawn_with(pipe: Pipeline) -> None:
    settings = {"num_inference_steps": 3, "output_type": "pt", "height": 32, "width": 16}
    together = pipe(["a cat", "a red apple left of a cat"], seed=[5, 6], batch_size=2, **settings).images
    alone = pipe("a cat", seed=5, **settings).images
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-4)
    other = pipe("two dogs", seed=5, **settings).images
    assert not torch.allclose(other, alone, atol=1e-3)


def test_positions_stretch_with_the_picture(pipe: Pipeline) -> None:
    """With other networks the same: only where the positions are replaced do pictures of that size change."""
    network = pipe.transformer
    latents, times = torch.randn(1, 4, 12, 9), torch.tensor([400])
    text, mask = pipe.text_encoder.encode(["a cat"])
    wide = functional.interpolate(network.positions.detach(), size=(12, 9), mode="bilinear")
    larger = ArticleSana(CONFIG.model_copy(update={"position_base": 12}))
    larger.load_state_dict({**network.state_dict(), "positions": larger.positions.detach()})
    larger.positions = torch.nn.Parameter(wide)
    with torch.no_grad():
        torch.testing.assert_close(network(latents, times, text, mask), larger(latents, times, text, mask))


def test_guidance_holds_within_its_interval_of_the_path(pipe: Pipeline) -> None:
    settings = {"num_inference_steps": 4, "seed": 2, "output_type": "latent"}
    plain = pipe("a cat", guidance_scale=1.0, **settings).images
    full = pipe("a cat", **settings).images
    # The grid's times are 750, 500, 250 and 0 of 1000.
    never = pipe("a cat", guidance_interval=(0.8, 1.0), **settings).images
    partly = pipe("a cat", guidance_interval=(0.4, 0.6), **settings).images
    torch.testing.assert_close(never, plain, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(partly, plain) and not torch.allclose(partly, full)


def test_a_step_cache_of_nothing_is_exact_and_a_loose_one_skips_blocks(pipe: Pipeline) -> None:
    settings = {"num_inference_steps": 6, "seed": 2, "output_type": "latent"}
    exact = pipe("a cat", **settings).images
    calls = []
    handle = pipe.transformer.blocks[1].register_forward_hook(lambda *_: calls.append(1))
    loose = pipe("a cat", step_cache=1e6, **settings).images
    handle.remove()
    assert len(calls) == 1 and not torch.allclose(loose, exact)


def test_a_picture_to_start_from_is_noised_along_the_path(pipe: Pipeline) -> None:
    image = Image.new("RGB", (24, 24), (200, 40, 40))
    (job,) = pipe.plan("a cat", num_inference_steps=10, strength=0.3)
    initial = pipe.encode([image], job)
    first = next(pipe.states([job], initial=initial))
    scheduler = DDIMScheduler(**BETAS, clip_sample=False)
    noised = scheduler.add_noise(initial, seeded_noise((4, 6, 6), [0]), torch.tensor([200]))
    text, mask = pipe.text_encoder.encode(["", "a cat"])
    with torch.no_grad():
        both = pipe.transformer(noised.repeat(2, 1, 1, 1), torch.tensor([200, 200]), text, mask)
    predicted = both[:1] + 7.5 * (both[1:] - both[:1])
    scheduler.set_timesteps(10)
    right = scheduler.step(predicted, 200, noised).prev_sample
    torch.testing.assert_close(first.latents, right, rtol=1e-3, atol=1e-3)
    assert (first.step, first.total) == (1, 3)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_draws_nearly_the_same(folder: Path, pipe: Pipeline, dtype: str) -> None:
    settings = {"num_inference_steps": 3, "seed": 4, "output_type": "pt", "height": 40, "guidance_scale": 2.0}
    right = pipe("a red cat", **settings).images
    half = Pipeline.from_pretrained(folder, device="cpu", dtype=dtype)
    assert half.dtype != torch.float32
    drawn = half("a red cat", **settings).images
    assert float((drawn - right).norm() / right.norm()) < 0.1


def test_what_is_saved_draws_the_same(pipe: Pipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "copy")
    assert describe_model(tmp_path / "copy")[0]["autoencoder"].class_name == "ArticleAutoencoder"
    again = Pipeline.from_pretrained(tmp_path / "copy", device="cpu")
    settings = {"num_inference_steps": 2, "output_type": "pt"}
    assert torch.equal(again("a cat", **settings).images, pipe("a cat", **settings).images)


def test_memory_is_bounded_by_bands_in_decoding_only(folder: Path) -> None:
    bounded = Pipeline.from_pretrained(folder, device="cpu")
    right = bounded("a cat", num_inference_steps=1, height=512, output_type="pt").images
    held = bounded.limit_memory(4 * 10**9)
    assert held is None
    drawn = bounded("a cat", num_inference_steps=1, height=512, output_type="pt").images
    torch.testing.assert_close(drawn, right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--sampler", "euler"], "unknown sampler 'euler'. Use one of ddim, ddpm, dpm++."),
        (["--height", "26"], "height=26 is not a multiple of 4, the pixels per token. Use 24 or 28."),
        (
            ["--num-inference-steps", "1001"],
            "steps=1001 exceed the 1000 times of the path. Use 1000 or fewer.",
        ),
        (["--guidance-scale", "-1"], "guidance_scale=-1.0 is not between 0 and 100."),
    ],
)
def test_the_command_line_says_what_is_wrong(
    folder: Path, tmp_path: Path, options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--model", str(folder), "-o", str(tmp_path / "picture.png")]
    assert main(["generate", "a cat", *place, *options]) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "picture.png").exists()


def test_the_command_line_draws_and_tells(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "picture.png"
    options = ["--num-inference-steps", "2", "--height", "32", "--sampler", "ddpm"]
    assert main(["generate", "a cat", "--model", str(folder), "-o", str(picture), *options]) == 0
    with Image.open(picture) as image:
        assert image.size == (24, 32)
    capsys.readouterr()
    assert main(["info", str(picture), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["lineardit"]["sampler"] == "ddpm"
    assert main(["info", str(folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["transformer"]["class"] == "ArticleSana"
    assert facts["autoencoder"]["class"] == "ArticleAutoencoder"
    assert facts["memory"]["denoising_bytes"] > 0


def test_what_belongs_to_sana_is_refused(folder: Path, pipe: Pipeline, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no ControlNet to follow"):
        pipe.plan("a cat", controlnet_conditioning_scale=1.0)
    place = open_place(folder)
    alone = replace(place, networks={"transformer": place.networks["transformer"]})
    with pytest.raises(InputError, match="ArticleSana has no counterpart in diffusers"):
        export(alone, tmp_path / "foreign", "diffusers")
    with pytest.raises(InputError, match="ArticleSana has no counterpart among official files"):
        pipe.save_pretrained(tmp_path / "official", format="official")
    assert not list(tmp_path.iterdir())


def test_parts_of_two_models_are_not_mixed(folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    read = read_model(folder)
    wrong = Autoencoder(ArticleAutoencoderConfig(latent_channels=3, base_width=4, halvings=2))
    save_model(
        tmp_path / "mixed",
        {**read.components, "autoencoder": autoencoder_component(wrong)},
        extra_files={"tokenizer.json": (tiny_model / "tokenizer.json").read_bytes()},
    )
    with pytest.raises(CheckpointError, match="autoencoder has 3 latent channels, the transformer takes 4"):
        Pipeline.from_pretrained(tmp_path / "mixed")
