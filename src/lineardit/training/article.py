"""Training and drawing as the article has them: four losses for the autoencoder, DDPM and DDIM for SANA."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lineardit.autoencoder.article import ArticleAutoencoder
from lineardit.config.article import ArticleLossConfig
from lineardit.diffusion.discrete import ddim, leading_times
from lineardit.diffusion.guidance import guided, prompt_dropout
from lineardit.diffusion.objective import Denoising
from lineardit.diffusion.paths import DDPMPath
from lineardit.diffusion.predictions import NoisePrediction
from lineardit.training.adversarial import PatchDiscriminator, discriminator_loss, fooling_loss
from lineardit.transformer.article import ArticleSana

STEPS, GUIDANCE = 20, 7.5
CLIP = 1.0
LEARNING_RATE = 1e-4
DROPPED = 0.1
"""Share of prompts that training drops, so that there is something to guide away from."""


def article_path(num_steps: int = 1000) -> DDPMPath:
    """scaled_linear betas from 0.0001 to 0.02, the ends that diffusers takes where none are given."""
    return DDPMPath.scaled_linear(num_steps, first=0.0001, last=0.02)


def moment_penalty(latents: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
    """(mean^2 + variance - 1 - log variance) / 2, the mean over channels: 0 at zero mean and unit variance.

    The divergence from a standard normal of the normal that has the moments of a channel over batch and
    places. An encoder that gives one latent per picture has no distribution of its own whose divergence could
    be taken; the article's (z^2 - 1) / 2 falls until all latents are zero.
    """
    values = latents.transpose(0, 1).flatten(1)
    mean, variance = values.mean(1), values.var(1, unbiased=False).clamp_min(1e-6)
    return ((mean.square() + variance - 1 - variance.log()) / 2).mean()


class AutoencoderTrainer:
    """One step trains the autoencoder on the four losses; the discriminator then has a step of its own."""

    def __init__(
        self,
        model: ArticleAutoencoder,
        discriminator: PatchDiscriminator,
        perceptual: nn.Module,
        weights: ArticleLossConfig | None = None,
        learning_rate: float = LEARNING_RATE,
    ) -> None:
        self.model, self.discriminator, self.perceptual = model, discriminator, perceptual
        self.weights = weights or ArticleLossConfig()
        # A discriminator that remembers less of the past follows what it judges (arXiv:1511.06434).
        self._model_step = torch.optim.AdamW(model.parameters(), learning_rate, (0.5, 0.9))
        self._discriminator_step = torch.optim.AdamW(discriminator.parameters(), learning_rate, (0.5, 0.9))

    def losses(self, images: Float[Tensor, "b 3 H W"]) -> tuple[Mapping[str, Tensor], Tensor]:
        """The weighted loss of the autoencoder with its four parts, and the reconstructions."""
        reconstructions, latents = self.model(images)
        parts = {
            "l1": (reconstructions - images).abs().mean(),
            "perceptual": self.perceptual(reconstructions, images).mean(),
            "adversarial": fooling_loss(self.discriminator, reconstructions),
            "latent": moment_penalty(latents),
        }
        loss = sum((getattr(self.weights, name) * part for name, part in parts.items()), images.new_zeros(()))
        return {"loss": loss, **parts}, reconstructions

    def step(self, images: Float[Tensor, "b 3 H W"]) -> Mapping[str, float]:
        """Two updates, the autoencoder's and the discriminator's; the losses before them."""
        losses, reconstructions = self.losses(images)
        _update(self._model_step, self.model, losses["loss"])
        judged = discriminator_loss(self.discriminator, images, reconstructions)
        _update(self._discriminator_step, self.discriminator, judged)
        return {name: float(value.detach()) for name, value in {**losses, "discriminator": judged}.items()}


def article_loss(
    model: ArticleSana,
    latents: Float[Tensor, "b c h w"],
    text: Float[Tensor, "b m t"],
    mask: Bool[Tensor, "b m"],
    empty: Float[Tensor, "e t"],
    generator: torch.Generator,
) -> Float[Tensor, ""]:
    """Mean squared error of the noise at uniform times; some prompts are replaced by the `empty` one."""
    dropped = prompt_dropout(len(latents), DROPPED, generator).to(text.device)
    text, mask = _with_empty(text, mask, empty, dropped)
    objective = Denoising(NoisePrediction(article_path(model.config.num_steps)))
    return objective.loss(lambda x, times: model(x, times, text, mask), latents, generator).mean()


def draw_latents(
    model: ArticleSana,
    noise: Float[Tensor, "b c h w"],
    text: Float[Tensor, "b m t"],
    mask: Bool[Tensor, "b m"],
    empty: Float[Tensor, "e t"],
    *,
    steps: int = STEPS,
    guidance_scale: float = GUIDANCE,
) -> Float[Tensor, "b c h w"]:
    """Latents by DDIM, guided away from the `empty` prompt, along the path that training follows."""
    everyone = torch.ones(len(text), dtype=torch.bool, device=text.device)
    none_text, none_mask = _with_empty(text, mask, empty, everyone)
    both_text, both_mask = torch.cat([none_text, text]), torch.cat([none_mask, mask])
    path = article_path(model.config.num_steps)
    velocity = guided(lambda x, times: model(x.float(), times, both_text, both_mask), guidance_scale)
    latents = noise
    for state in ddim(velocity, noise, leading_times(steps, path), NoisePrediction(path)):
        latents = state.latents
    return latents


def _with_empty(text: Tensor, mask: Tensor, empty: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
    """The prompts with the empty one in some rows; it fills as many tokens as there is room for."""
    count = min(len(empty), text.shape[1])
    row, kept = torch.zeros_like(text[0]), torch.zeros_like(mask[0])
    row[:count], kept[:count] = empty[:count].to(text), True
    return torch.where(where[:, None, None], row, text), torch.where(where[:, None], kept, mask)


def _update(optimizer: torch.optim.Optimizer, model: nn.Module, loss: Tensor) -> None:
    model.zero_grad()
    # Only these weights: the discriminator's are not moved by what the autoencoder learns, nor the other way.
    parameters = list(model.parameters())
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = gradient
    nn.utils.clip_grad_norm_(parameters, CLIP)
    optimizer.step()
