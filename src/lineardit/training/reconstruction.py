"""Training an autoencoder: pictures in, the same pictures out, in the three phases of DC-AE or in one."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lineardit.autoencoder.model import Autoencoder, Decoder, Encoder
from lineardit.config.reconstruction import Learns
from lineardit.config.runs import ReconstructionRun
from lineardit.training.adversarial import Judge, fooling_loss
from lineardit.training.latents import moment_penalty
from lineardit.training.perceptual import perceptual_distance
from lineardit.training.picture_source import PictureSource
from lineardit.training.prefetch import Prefetch

SHOWN = 8
MOST_PULL = 1e4
"""Largest factor that makes the second player's gradient as long as the others'."""


class LatentReader(nn.Module):
    """An autoencoder that also hands out the latents of its reconstructions."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(
        self, images: Float[Tensor, "b 3 H W"]
    ) -> tuple[Float[Tensor, "b 3 H W"], Float[Tensor, "b c h w"]]:
        """Reconstructions, and latents before shift and scale."""
        latents = self.autoencoder.encoder(images)
        return self.autoencoder.decoder(latents), latents


class ReconstructionTask:
    """loss = l1 mean|x' - x| + mse mean(x' - x)^2 + perceptual LPIPS(x', x) + adversarial fooling(x')
    + latent moments(z).

    The discriminator is the second player: what it learns in a step is told it by this task's losses.
    """

    def __init__(self, run: ReconstructionRun, pictures: PictureSource, model: Autoencoder) -> None:
        self.run, self.pictures = run, pictures
        learn_only(model, run.learns)
        learner = LatentReader(model) if run.loss.latent else model
        self.model: nn.Module = learner.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.rival = (
            Judge(run.loss.adversarial, run.train, self._device) if run.loss.adversarial.weight else None
        )
        self._reconstruct = torch.compile(self.model) if run.train.compile else self.model
        self._prefetch: Prefetch[None, Tensor] = Prefetch(lambda step, _: pictures.batch(step, self._device))
        self._distance = perceptual_distance(run.loss.lpips).to(self._device) if run.loss.perceptual else None

    def losses(self, step: int) -> Mapping[str, Tensor]:
        """The weighted loss of one batch and its parts."""
        images = self.batch(step)
        made = self._reconstruct(images)
        reconstructions, latents = made if self.run.loss.latent else (made, None)
        reconstructions = reconstructions.float()
        error = reconstructions - images
        weights = self.run.loss
        l1, mse = error.abs().mean(), error.square().mean()
        losses = {
            "loss": weights.l1 * l1 + weights.mse * mse,
            "l1": l1,
            "psnr": 10 * torch.log10(4 / mse.detach()),
        }
        if self._distance is not None:
            # The lengths that features are divided by would drown in bfloat16.
            with torch.autocast(images.device.type, enabled=False):
                losses["perceptual"] = self._distance(reconstructions, images).mean()
            losses["loss"] = losses["loss"] + weights.perceptual * losses["perceptual"]
        if latents is not None:
            with torch.autocast(images.device.type, enabled=False):
                losses["latent"] = moment_penalty(latents.float())
            losses["loss"] = losses["loss"] + weights.latent * losses["latent"]
        if self.rival is not None:
            self.rival.sees(images, reconstructions)
            if step >= weights.adversarial.start:
                losses |= self._with_adversary(losses["loss"], reconstructions, self.rival)
        return losses

    def batch(self, step: int) -> Float[Tensor, "b 3 H W"]:
        """The pictures of step `step`, on the model's device."""
        return self._prefetch(step, None).contiguous(memory_format=torch.channels_last)

    def position(self, step: int) -> Mapping[str, object]:
        """Where in the pictures a step begins, and in which pictures."""
        return self.pictures.position(step)

    @torch.no_grad()
    def sample(self, model: nn.Module, step: int) -> Float[Tensor, "b 3 H W"]:
        """Unseen pictures above their reconstructions."""
        images = self.pictures.unseen(SHOWN, self._device)
        return torch.cat([images, without_reader(model)(images)])

    def _with_adversary(self, loss: Tensor, reconstructions: Tensor, judge: Judge) -> dict[str, Tensor]:
        adversarial = self.run.loss.adversarial
        fooling = fooling_loss(judge.frozen, reconstructions)
        weight = torch.as_tensor(adversarial.weight, device=loss.device)
        if adversarial.adaptive:
            weight = weight * adaptive_weight(loss, fooling, reconstructions)
        return {"loss": loss + weight * fooling, "fooling": fooling, "fooling_weight": weight}

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


def without_reader(trained: nn.Module) -> Autoencoder:
    """The autoencoder of what was trained, be its latents read or not."""
    autoencoder = trained.autoencoder if isinstance(trained, LatentReader) else trained
    assert isinstance(autoencoder, Autoencoder)
    return autoencoder


def adaptive_weight(
    loss: Float[Tensor, ""], fooling: Float[Tensor, ""], reconstructions: Float[Tensor, "b 3 H W"]
) -> Float[Tensor, ""]:
    """|d loss / d x'| / |d fooling / d x'|, at most 10,000: both then pull equally hard at the pixels x'.

    VQGAN (arXiv:2012.09841, equation 7) compares gradients of the decoder's last weights. They are linear in
    these, and would cost two more passes through the decoder.
    """
    (wanted,) = torch.autograd.grad(loss, reconstructions, retain_graph=True)
    (given,) = torch.autograd.grad(fooling, reconstructions, retain_graph=True)
    return (wanted.norm() / given.norm().clamp_min(1e-12)).clamp_max(MOST_PULL).detach()


def learn_only(model: Autoencoder, learns: Learns) -> None:
    """Let parts of an autoencoder learn, and nothing else (DC-AE, arXiv:2410.10733, section 3.3).

    middle: the encoder's last stage and head, the decoder's stem and first stage, all at the resolution of
    the latents. decoder_head: the decoder's last stage that has blocks, its last norm and its head. The
    statistics of batch norms are learned where everything learns, and stay as they are otherwise.
    """
    model.train(learns == "all").requires_grad_(learns == "all")
    for part in learned_parts(model, learns):
        part.requires_grad_(True)


def learned_parts(model: Autoencoder, learns: Learns) -> list[nn.Module]:
    """The modules whose weights move."""
    encoder, decoder = model.encoder, model.decoder
    if learns == "all":
        return [encoder, decoder]
    if learns == "decoder":
        return [decoder]
    assert isinstance(encoder, Encoder) and isinstance(decoder, Decoder), "other halves have no such parts"
    if learns == "middle":
        return [encoder.stages[-1], encoder.head, decoder.stem, decoder.stages[0]]
    last = [stage for stage in decoder.stages if list(stage.parameters())][-1]
    return [last, decoder.norm, decoder.head]
