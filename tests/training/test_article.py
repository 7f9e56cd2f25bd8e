"""Training as the article has it: each loss by its definition, and runs of a few steps that lower them."""

import math
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch.nn import functional

from lineardit.autoencoder.model import Autoencoder
from lineardit.config.article import ArticleAutoencoderConfig, ArticleConfig
from lineardit.config.reconstruction import AdversarialConfig
from lineardit.config.runs import (
    ArticleAutoencoderRun,
    ArticleTransformerRun,
    AutoencoderRun,
    LoopConfig,
    SampleConfig,
)
from lineardit.config.scenes import SceneConfig
from lineardit.data.emoji_atlas import Atlas
from lineardit.data.emoji_scenes import EmojiScenes
from lineardit.diffusion.objective import Denoising
from lineardit.diffusion.predictions import ddpm_path, ddpm_prediction
from lineardit.errors import ConfigError, InputError
from lineardit.interop.native import describe_model, load_autoencoder
from lineardit.interop.text import load_text_encoder
from lineardit.text.encoder import T5Encoder
from lineardit.training import pool as pools
from lineardit.training.adversarial import PatchDiscriminator, discriminator_loss, fooling_loss
from lineardit.training.autoencoder import train_autoencoder
from lineardit.training.distributed import World
from lineardit.training.generation import GenerationTask, train_transformer
from lineardit.training.latents import moment_penalty
from lineardit.training.loop import step_generator
from lineardit.training.perceptual import FilterDistance
from lineardit.training.picture_source import ScenePictures
from lineardit.training.pool import pool_captions, pool_latents
from lineardit.training.reconstruction import ReconstructionTask
from lineardit.training.rival import opponents
from lineardit.training.shares import Share
from lineardit.transformer.article import ArticleSana

CPU = torch.device("cpu")
SHAPE = ArticleAutoencoderConfig(latent_channels=4, base_width=8, halvings=2)
SCENES = SceneConfig(size=32, objects=12, placement_step=4)


@pytest.fixture(autouse=True)
def no_font(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few scenes per shard, in glyphs that need no font."""

    def from_font(names: tuple[str, ...], path: Path | None = None) -> Atlas:
        glyphs = torch.randint(0, 256, (len(names), 4, 8, 8), generator=torch.Generator().manual_seed(0))
        glyphs[:, 3] = 255
        return Atlas(names, glyphs.to(torch.uint8))

    monkeypatch.setattr(Atlas, "from_font", from_font)
    monkeypatch.setattr(pools, "SHARD", 12)


@pytest.fixture
def autoencoder_run() -> ArticleAutoencoderRun:
    loss = ArticleAutoencoderRun(model=SHAPE, train=LoopConfig(steps=1, batch_size=1)).loss
    small = AdversarialConfig(weight=0.1, adaptive=False, width=4, depth=1, learning_rate=3e-3)
    return ArticleAutoencoderRun(
        model=SHAPE,
        scenes=SCENES,
        loss=loss.model_copy(update={"adversarial": small}),
        train=LoopConfig(steps=2, batch_size=4, seed=3, dtype="fp32", warmup_steps=0, learning_rate=3e-3),
    )


def reconstruction(run: ArticleAutoencoderRun) -> ReconstructionTask:
    torch.manual_seed(0)
    pictures = ScenePictures(run, EmojiScenes(run.scenes, run.train.seed), SHAPE.stride)
    return ReconstructionTask(run, pictures, Autoencoder(SHAPE))


def test_the_path_is_the_articles_scheduler() -> None:
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="scaled_linear")
    path = ddpm_path(ArticleConfig())
    torch.testing.assert_close(path.betas.float(), scheduler.betas, rtol=1e-6, atol=0.0)
    x0, noise, times = torch.randn(3, 2), torch.randn(3, 2), torch.tensor([0, 500, 999])
    right = scheduler.add_noise(x0, noise, times)
    torch.testing.assert_close(path.add_noise(x0, noise, times), right, rtol=0.0, atol=1e-5)


def test_the_moment_penalty_is_the_divergence_of_two_normals() -> None:
    generator = torch.Generator().manual_seed(0)
    latents = 3 + 2 * torch.randn(5, 2, 3, 7, generator=generator, dtype=torch.float64)
    divergences = []
    for channel in range(2):
        values = latents[:, channel]
        fitted = torch.distributions.Normal(values.mean(), values.std(unbiased=False))
        standard = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0)
        divergences.append(torch.distributions.kl_divergence(fitted, standard))
    torch.testing.assert_close(moment_penalty(latents), torch.stack(divergences).mean())
    # Not at zero, where the article's formula would lead, but at unit variance.
    unit = (latents - latents.mean((0, 2, 3), keepdim=True)) / latents.std(
        (0, 2, 3), keepdim=True, unbiased=False
    )
    assert moment_penalty(unit) < 1e-12 < moment_penalty(0.1 * unit)


def test_both_adversarial_losses_are_cross_entropies() -> None:
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(width=3, depth=1).double()
    real, fake = torch.randn(2, 2, 3, 16, 16, dtype=torch.float64)
    cross_entropy = functional.binary_cross_entropy_with_logits
    yes, no = discriminator(real), discriminator(fake)
    right = (cross_entropy(yes, torch.ones_like(yes)) + cross_entropy(no, torch.zeros_like(no))) / 2
    torch.testing.assert_close(discriminator_loss(discriminator, real, fake), right)
    torch.testing.assert_close(fooling_loss(discriminator, fake), cross_entropy(no, torch.ones_like(no)))


def test_the_discriminators_loss_reaches_no_autoencoder() -> None:
    discriminator = PatchDiscriminator(width=3, depth=1)
    fake = torch.randn(1, 3, 16, 16, requires_grad=True)
    discriminator_loss(discriminator, torch.randn(1, 3, 16, 16), fake).backward()
    assert fake.grad is None and all(parameter.grad is not None for parameter in discriminator.parameters())


def test_a_patch_is_70_pixels() -> None:
    discriminator = PatchDiscriminator(width=2)
    image = torch.randn(1, 3, 128, 128, requires_grad=True)
    logits = discriminator(image)
    logits[0, 0, 7, 7].backward()
    assert image.grad is not None
    rows = image.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert rows.max() - rows.min() + 1 == 70


def test_the_loss_is_the_weighted_sum_of_the_articles_four(autoencoder_run: ArticleAutoencoderRun) -> None:
    task = reconstruction(autoencoder_run)
    losses, images = task.losses(1), task.batch(1)
    assert task.rival is not None
    latents = task.model.autoencoder.encoder(images)
    made = task.model.autoencoder.decoder(latents)
    parts = {
        "l1": functional.l1_loss(made, images),
        "perceptual": FilterDistance()(made, images).mean(),
        "fooling": fooling_loss(task.rival.discriminator, made),
        "latent": moment_penalty(latents),
    }
    for name, part in parts.items():
        torch.testing.assert_close(losses[name], part)
    weighted = parts["l1"] + 0.5 * parts["perceptual"] + 0.1 * parts["fooling"] + 1e-4 * parts["latent"]
    torch.testing.assert_close(losses["loss"], weighted)


def test_a_few_steps_lower_the_loss_and_teach_the_discriminator(
    autoencoder_run: ArticleAutoencoderRun,
) -> None:
    task = reconstruction(autoencoder_run)
    (opponent,) = opponents(task, World())
    optimizer = torch.optim.AdamW(task.model.parameters(), 3e-3)
    seen = []
    for _ in range(30):
        losses = task.losses(0)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        judged = opponent.step(0, torch.autocast("cpu", enabled=False))
        seen.append({name: float(value.detach()) for name, value in {**losses, **judged}.items()})
    assert seen[-1]["l1"] < 0.8 * seen[0]["l1"] and seen[-1]["perceptual"] < seen[0]["perceptual"]
    assert seen[-1]["rival"] < seen[0]["rival"] == pytest.approx(math.log(2), abs=0.1)


def test_an_article_autoencoder_is_trained_measured_and_written(
    autoencoder_run: ArticleAutoencoderRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lineardit.training.autoencoder.MEASURED_PICTURES", 64)
    folder = train_autoencoder(autoencoder_run, tmp_path / "run", resume=False, device=CPU)
    (summary,) = describe_model(folder)[0].values()
    assert summary.class_name == "ArticleAutoencoder"
    trained = load_autoencoder(folder)
    assert isinstance(trained.config, ArticleAutoencoderConfig) and len(trained.config.latent_scale) == 4
    scenes = EmojiScenes(SCENES, autoencoder_run.train.seed)
    with torch.no_grad():
        latents = trained.encode(scenes.draw([scenes.scene(number) for number in range(64)]))
    deviation, mean = torch.std_mean(latents, (0, 2, 3), unbiased=False)
    torch.testing.assert_close(mean, torch.zeros(4), rtol=0.0, atol=1e-4)
    torch.testing.assert_close(deviation, torch.ones(4), rtol=1e-4, atol=0.0)
    # Another run goes on from there, and one of the other kind says that it cannot.
    further = autoencoder_run.model_copy(update={"model": None, "start": folder, "learns": "decoder"})
    again = load_autoencoder(train_autoencoder(further, tmp_path / "again", resume=False, device=CPU))
    assert torch.equal(again.encoder[0].weight, trained.encoder[0].weight)
    other = AutoencoderRun(start=folder, scenes=SCENES, train=autoencoder_run.train)
    with pytest.raises(ConfigError, match='start=.* is the article\'s. Use kind="article-autoencoder"'):
        train_autoencoder(other, tmp_path / "other", resume=False, device=CPU)


@pytest.fixture
def run(tiny_model: Path) -> ArticleTransformerRun:
    return ArticleTransformerRun(
        model=ArticleConfig(
            latent_channels=4, width=16, depth=4, heads=2, qk_dim=4, text_width=12, position_base=8
        ),
        scenes=SCENES,
        autoencoder=tiny_model,
        text_encoder=tiny_model,
        pool=12,
        captions_per_scene=2,
        prompt_dropout=0.3,
        sample=SampleConfig(prompts=("a dog", "two cats"), num_inference_steps=3, guidance_scale=2.0),
        train=LoopConfig(steps=2, batch_size=4, seed=3, dtype="fp32", warmup_steps=0),
    )


@pytest.fixture
def task(run: ArticleTransformerRun, tmp_path: Path) -> GenerationTask:
    autoencoder, text_encoder = load_autoencoder(run.autoencoder), load_text_encoder(run.text_encoder)
    latents = pool_latents(run, tmp_path / "latents", autoencoder)
    captions = pool_captions(run, tmp_path / "captions", text_encoder)
    torch.manual_seed(0)
    return GenerationTask(run, ArticleSana(run.model), autoencoder, text_encoder, latents, captions)


def test_the_loss_is_that_of_the_noise_at_whole_times(task: GenerationTask) -> None:
    for parameter in task.model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    generator = step_generator(3, 5)
    chosen, (text, mask) = task.batch(5, generator)
    times = torch.randint(1000, (4,), generator=generator)
    latents = task.latents[chosen].float()
    noise = torch.randn(latents.shape, generator=generator)
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="scaled_linear")
    seen = task.model(scheduler.add_noise(latents, noise, times), times, text, mask)
    torch.testing.assert_close(task.losses(5)["loss"], functional.mse_loss(seen, noise), rtol=1e-4, atol=0.0)
    shares = [task.losses_of_share(5, Share(index, 2))["loss"] for index in range(2)]
    torch.testing.assert_close((shares[0] + shares[1]) / 2, task.losses(5)["loss"])


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_a_few_steps_lower_the_loss(task: GenerationTask, prediction: str) -> None:
    config = task.run.model.model_copy(update={"prediction_type": prediction})
    course = task._course._replace(objective=Denoising(ddpm_prediction(config)))
    task._course = course
    with torch.no_grad():
        before = sum(float(task.losses(step)["loss"]) for step in range(1000, 1010)) / 10
    optimizer = torch.optim.AdamW(task.model.parameters(), 1e-2)
    for step in range(30):
        optimizer.zero_grad()
        task.losses(step)["loss"].backward()
        optimizer.step()
    with torch.no_grad():
        after = sum(float(task.losses(step)["loss"]) for step in range(1000, 1010)) / 10
    assert after < 0.9 * before


def test_samples_are_diffusers_guided_ddim(task: GenerationTask) -> None:
    for parameter in task.model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    drawn = []
    task.autoencoder.decode = lambda latents: drawn.append(latents) or torch.zeros(2, 3, 8, 8)  # type: ignore[method-assign]
    task.sample(task.model, 0)
    scheduler = DDIMScheduler(num_train_timesteps=1000, beta_schedule="scaled_linear", clip_sample=False)
    scheduler.set_timesteps(3)
    text, mask = task.text_encoder.encode(["", "", "a dog", "two cats"])
    latents = torch.stack(
        [torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    )
    with torch.no_grad():
        for time in scheduler.timesteps:
            both = task.model(latents.repeat(2, 1, 1, 1), time.expand(4), text, mask)
            without, wanted = both.chunk(2)
            latents = scheduler.step(without + 2.0 * (wanted - without), time, latents).prev_sample
    # The scheduler's running products are float32.
    torch.testing.assert_close(drawn[0], latents, rtol=1e-3, atol=1e-3)


def test_naming_objects_reaches_the_articles_tokens_too(task: GenerationTask) -> None:
    run = task.run.model_copy(update={"layout_weight": 0.5})
    torch.manual_seed(0)
    named = GenerationTask(
        run, ArticleSana(run.model), task.autoencoder, task.text_encoder, task.latents, task.captions
    ).losses(5)
    torch.testing.assert_close(named["loss"], named["epsilon"] + 0.5 * named["layout"])


def test_a_run_writes_a_whole_model_that_says_how_it_is_drawn_with(
    run: ArticleTransformerRun, tmp_path: Path
) -> None:
    folder = train_transformer(run, tmp_path / "run", resume=False, device=CPU)
    summaries, about = describe_model(folder)
    assert {name: summary.class_name for name, summary in summaries.items()} == {
        "transformer": "ArticleSana",
        "autoencoder": "Autoencoder",
        "text_encoder": "SceneTextEncoder",
    }
    assert about["sampling"] == {
        "sampler": "ddim",
        "guidance_scale": 2.0,
        "num_inference_steps": 3,
        "size": 32,
    }
    assert (tmp_path / "run" / "samples" / "step-00000002.png").is_file()
    further = run.model_copy(update={"start": folder})
    assert train_transformer(further, tmp_path / "further", resume=False, device=CPU).is_dir()


def test_what_does_not_fit_together_is_refused(run: ArticleTransformerRun, tmp_path: Path) -> None:
    for change, message in (
        ({"patch_size": 3}, "scenes.size=32 is not a multiple of 12, the pixels per token. Use 24 or 36."),
        ({"latent_channels": 5}, "model.latent_channels=5, but .* makes 4. Use model.latent_channels=4"),
        ({"text_width": 13}, "model.text_width=13, but .* gives 12. Use model.text_width=12"),
    ):
        other = run.model_copy(update={"model": run.model.model_copy(update=change)})
        with pytest.raises(InputError, match=message):
            train_transformer(other, tmp_path, resume=False, device=CPU)
    assert not list(tmp_path.iterdir())


def test_captions_are_read_with_a_t5_of_the_users_too(run: ArticleTransformerRun, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra [hub] is not installed")
    torch.manual_seed(0)
    config = transformers.T5Config(vocab_size=40, d_model=12, d_kv=6, d_ff=20, num_layers=1, num_heads=2)
    transformers.T5EncoderModel(config).save_pretrained(tmp_path / "t5")
    words = ["<pad>", "</s>", "<unk>", "a", "red", "dog", "two", "cats"]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(tmp_path / "t5")
    reading = run.model_copy(update={"text_encoder": tmp_path / "t5"})
    folder = train_transformer(reading, tmp_path / "run", resume=False, device=CPU)
    assert describe_model(folder)[1]["published_text"] == "T5EncoderModel"
    t5 = T5Encoder.from_folder(tmp_path / "t5")
    lengths = pool_captions(reading, tmp_path / "run" / "pool" / "captions", t5).lengths
    scenes = EmojiScenes(SCENES, run.train.seed)
    captions = scenes.captions(scenes.scene(3), 3, 2)
    assert lengths[3].tolist() == [len(tokenizer.encode(caption.lower()).ids) for caption in captions]
