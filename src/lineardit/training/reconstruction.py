"""Training an autoencoder: scenes in, the same scenes out."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lineardit.autoencoder.model import Autoencoder
from lineardit.config.runs import AutoencoderRun, ReconstructionConfig
from lineardit.data.emoji_scenes import EmojiScenes, Scene
from lineardit.training.loop import step_generator
from lineardit.training.perceptual import perceptual_distance

SHOWN = 8


class ReconstructionTask:
    """loss = l1 mean|x' - x| + mse mean(x' - x)^2 + perceptual LPIPS(x', x) over scenes or windows."""

    def __init__(self, run: AutoencoderRun, scenes: EmojiScenes, model: Autoencoder) -> None:
        self.run, self.scenes = run, scenes
        self.model: nn.Module = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._reconstruct = torch.compile(model) if run.train.compile else model
        self._distance = perceptual_distance(run.loss.lpips).to(self._device) if run.loss.perceptual else None

    def losses(self, step: int) -> Mapping[str, Tensor]:
        """The weighted loss of one batch and its parts."""
        images = self.batch(step)
        reconstructions = self._reconstruct(images).float()
        error = reconstructions - images
        weights: ReconstructionConfig = self.run.loss
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
        return losses

    def batch(self, step: int) -> Float[Tensor, "b 3 H W"]:
        """The pictures of step `step`, drawn on the model's device."""
        count = self.run.train.batch_size
        scenes = [self.scenes.scene(index) for index in range(step * count, (step + 1) * count)]
        images = self.scenes.draw(scenes, device=self._device)
        if self.run.crop is not None:
            images = crop_around_objects(
                images,
                scenes,
                self.run.crop,
                self.run.model.stride,
                step_generator(self.run.train.seed, step, "crop"),
            )
        return images.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def sample(self, model: nn.Module, step: int) -> Float[Tensor, "b 3 H W"]:
        """Unseen scenes above their reconstructions."""
        unseen = EmojiScenes(self.run.scenes, self.run.train.seed, split="held_out", atlas=self.scenes.atlas)
        images = unseen.draw([unseen.scene(index) for index in range(SHOWN)], device=self._device)
        return torch.cat([images, model(images)])

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


def crop_around_objects(
    images: Float[Tensor, "b 3 H W"], scenes: list[Scene], crop: int, stride: int, generator: torch.Generator
) -> Float[Tensor, "b 3 crop crop"]:
    """A window of each picture that holds the centre of one of its objects, at a multiple of `stride`.

    Windows keep the objects' phase on the latent grid, and leave out most of the plain background.
    """
    height, width = images.shape[-2:]
    draws = torch.rand(len(scenes), 3, generator=generator).tolist()
    windows = []
    for image, scene, (which, down, right) in zip(images, scenes, draws, strict=True):
        chosen = scene.objects[int(which * len(scene.objects))]
        top = _window_start(chosen.y * height, down, crop, height, stride)
        left = _window_start(chosen.x * width, right, crop, width, stride)
        windows.append(image[:, top : top + crop, left : left + crop])
    return torch.stack(windows)


def _window_start(centre: float, draw: float, crop: int, side: int, stride: int) -> int:
    start = int((centre - crop * (0.25 + 0.5 * draw)) / stride) * stride
    # A window of fewer than 4 strides could end before the centre.
    first = (math.floor((centre - crop) / stride) + 1) * stride
    return min(max(0, first, start), side - crop)
