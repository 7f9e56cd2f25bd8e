"""Training as the article has it: each loss by its definition, and runs of a few steps that lower them."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch.nn import functional

from lineardit.autoencoder.article import ArticleAutoencoder
from lineardit.config.article import ArticleAutoencoderConfig, ArticleConfig, ArticleLossConfig
from lineardit.training.adversarial import PatchDiscriminator, discriminator_loss, fooling_loss
from lineardit.training.article import (
    AutoencoderTrainer,
    article_loss,
    article_path,
    draw_latents,
    moment_penalty,
)
from lineardit.training.perceptual import FilterDistance
from lineardit.transformer.article import ArticleSana

SMALL = ArticleConfig(latent_channels=3, width=16, depth=4, heads=2, qk_dim=4, text_width=5, position_side=4)


def test_the_path_is_the_articles_scheduler() -> None:
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="scaled_linear")
    path = article_path()
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


@pytest.fixture
def trainer() -> AutoencoderTrainer:
    torch.manual_seed(0)
    return AutoencoderTrainer(
        ArticleAutoencoder(ArticleAutoencoderConfig(latent_channels=4, base_width=8, halvings=2)),
        PatchDiscriminator(width=4, depth=1),
        FilterDistance(),
        learning_rate=3e-3,
    )


def pictures() -> torch.Tensor:
    places = torch.linspace(-1, 1, 16)
    across, down = places.expand(16, 16), places[:, None].expand(16, 16)
    return torch.stack([torch.stack([across, down, across * down]), torch.stack([-down, across, down])])


def test_the_loss_is_the_weighted_sum_of_its_four_parts(trainer: AutoencoderTrainer) -> None:
    losses, reconstructions = trainer.losses(pictures())
    assert set(losses) == {"loss", "l1", "perceptual", "adversarial", "latent"}
    weights = ArticleLossConfig()
    right = sum(getattr(weights, name) * losses[name] for name in losses if name != "loss")
    torch.testing.assert_close(losses["loss"], right)
    torch.testing.assert_close(losses["l1"], functional.l1_loss(reconstructions, pictures()))
    assert [weights.l1, weights.perceptual, weights.adversarial, weights.latent] == [1.0, 0.5, 0.1, 1e-4]


def test_a_few_steps_lower_the_loss_and_teach_the_discriminator(trainer: AutoencoderTrainer) -> None:
    first = trainer.step(pictures())
    for _ in range(40):
        last = trainer.step(pictures())
    assert last["l1"] < 0.6 * first["l1"] and last["perceptual"] < first["perceptual"]
    assert last["discriminator"] < first["discriminator"] == pytest.approx(math.log(2), abs=0.1)


def test_each_step_moves_both_networks_and_not_the_features(trainer: AutoencoderTrainer) -> None:
    before = [each.detach().clone() for each in trainer.model.parameters()]
    judge = [each.detach().clone() for each in trainer.discriminator.parameters()]
    trainer.step(pictures())
    assert all(not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    assert all(not torch.equal(a, b) for a, b in zip(judge, trainer.discriminator.parameters(), strict=True))
    assert not list(trainer.perceptual.parameters())


def text() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    words = torch.randn(3, 7, 5, generator=generator)
    return words, torch.arange(7) < torch.tensor([[7], [2], [4]]), torch.randn(2, 5, generator=generator)


def test_a_few_steps_lower_the_loss_of_the_noise() -> None:
    torch.manual_seed(0)
    model, (words, mask, empty) = ArticleSana(SMALL), text()
    latents = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)

    def loss(seed: int) -> torch.Tensor:
        return article_loss(model, latents, words, mask, empty, torch.Generator().manual_seed(seed))

    with torch.no_grad():
        before = sum(float(loss(seed)) for seed in range(1000, 1010)) / 10
    assert before == pytest.approx(1, abs=0.2)
    for seed in range(60):
        optimizer.zero_grad()
        loss(seed).backward()
        optimizer.step()
    with torch.no_grad():
        after = sum(float(loss(seed)) for seed in range(1000, 1010)) / 10
    assert after < 0.8 * before


def test_drawing_is_diffusers_guided_ddim() -> None:
    torch.manual_seed(0)
    model, (words, mask, empty) = ArticleSana(SMALL), text()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    noise = torch.randn(3, 3, 4, 4)
    scheduler = DDIMScheduler(num_train_timesteps=1000, beta_schedule="scaled_linear", clip_sample=False)
    scheduler.set_timesteps(20)
    hollow = torch.zeros_like(words)
    hollow[:, :2] = empty
    hollow_mask = (torch.arange(7) < 2).expand(3, 7)
    latents = noise
    with torch.no_grad():
        for time in scheduler.timesteps:
            times = time.expand(3)
            without = model(latents, times, hollow, hollow_mask)
            noise_seen = without + 7.5 * (model(latents, times, words, mask) - without)
            latents = scheduler.step(noise_seen, time, latents).prev_sample
        drawn = draw_latents(model, noise, words, mask, empty)
    # The scheduler's running products are float32.
    torch.testing.assert_close(drawn, latents, rtol=1e-3, atol=1e-3)
