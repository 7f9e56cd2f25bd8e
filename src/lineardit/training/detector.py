"""Training the detector: drawn scenes, a little distorted, and the names of what they show."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from lineardit.config.detector import DetectorConfig, DetectorRun, DistortionConfig
from lineardit.config.scenes import SceneConfig
from lineardit.data.backgrounds import BACKGROUND_NAMES
from lineardit.data.draws import Draws
from lineardit.data.emoji_atlas import Atlas
from lineardit.data.emoji_scenes import EmojiScenes, Split
from lineardit.data.scene import Scene
from lineardit.training.loop import step_generator
from lineardit.training.prefetch import Prefetch

SHOWN = 16
BLOCK = 8
"""Pixels per side of the blocks that JPEG compresses."""
SPLITS: tuple[Split, ...] = ("train", "held_out")


def detector_config(run: DetectorRun) -> DetectorConfig:
    """The shape of the recipe with the names of all that its scenes may show."""
    names = EmojiScenes(run.scenes).names
    return DetectorConfig(**run.model.model_dump(), objects=names, backgrounds=BACKGROUND_NAMES)


class DetectionTask:
    """loss = -sum target log p / mass - mean log p(background), over endless distorted scenes.

    The mass is 2 pi, what a target that falls off as a Gaussian sums to, times the number of objects.

    Scenes of both splits are shown: the detector is an instrument, which must read held-out compositions
    as well as others. What it never sees are the scenes of other seeds, which it is measured on. `model`
    gives logits per cell, the last class being `none`, and of the background.
    """

    def __init__(
        self, run: DetectorRun, model: nn.Module, config: DetectorConfig, atlas: Atlas | None = None
    ) -> None:
        self.run, self.config = run, config
        self.model: nn.Module = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._read = torch.compile(model) if run.train.compile else model
        self.sources = scene_sources(run, atlas)
        self._prefetch: Prefetch[None, tuple[Tensor, list[Scene]]] = Prefetch(
            lambda step, _: self.batch(step)
        )

    def losses(self, step: int) -> Mapping[str, Tensor]:
        """The loss of one batch, its parts, and the share of objects that the nearest cell names rightly."""
        images, scenes = self._prefetch(step, None)
        cells, background = self._read(images)
        target = cell_targets(scenes, self.config).to(cells.device)
        objects = sum(len(scene.objects) for scene in scenes)
        object_loss = -(target * cells.float().log_softmax(1)).sum() / (2 * math.pi * objects)
        true_background = torch.tensor([self.config.backgrounds.index(scene.background) for scene in scenes])
        background_loss = functional.cross_entropy(background.float(), true_background.to(background.device))
        return {
            "loss": object_loss + background_loss,
            "objects": object_loss.detach(),
            "background": background_loss.detach(),
            "named": _named(cells.detach(), scenes, self.config),
        }

    def batch(self, step: int) -> tuple[Float[Tensor, "b 3 H W"], list[Scene]]:
        """Pictures of step `step` as the network sees them, on its device, and what they show."""
        count, device = self.run.train.batch_size, next(self.model.parameters()).device
        indices = range(step * count, (step + 1) * count)
        draws = [Draws("detector", self.run.train.seed, index) for index in indices]
        scenes = [
            scaled(draw.one_of(self.sources).scene(index), draw.one_of(self.run.scales))
            for draw, index in zip(draws, indices, strict=True)
        ]
        images = self.sources[0].draw(scenes, size=self.config.size, device=device)
        generator = step_generator(self.run.train.seed, step, "distortion")
        with torch.autocast(device.type, enabled=False):
            images = distorted(images, self.run.distortion, generator)
        return images.contiguous(memory_format=torch.channels_last), scenes

    def position(self, step: int) -> Mapping[str, object]:
        """Where in the endless scenes a step begins, and in which scenes."""
        digests = [source.digest for source in self.sources]
        return {
            "step": step,
            "batch_size": self.run.train.batch_size,
            "data": hashlib.sha256(str(digests).encode()).hexdigest(),
        }

    def sample(self, model: nn.Module, step: int) -> Float[Tensor, "b 3 H W"] | None:
        """Some of the step's pictures, distorted as they are."""
        return self.batch(step)[0][:SHOWN]


def scene_sources(run: DetectorRun, atlas: Atlas | None = None) -> list[EmojiScenes]:
    """One source per lattice of the recipe and split; all draw from one atlas."""
    sources: list[EmojiScenes] = []
    for step in run.placement_steps:
        config = SceneConfig(**run.scenes.model_dump() | {"placement_step": step})
        for split in SPLITS:
            atlas = atlas or (sources[0].atlas if sources else None)
            sources.append(EmojiScenes(config, run.train.seed, split, atlas))
    return sources


def scaled(scene: Scene, factor: float) -> Scene:
    """The scene with objects of other sizes, moved only as far as it takes to keep them in the picture."""
    objects = []
    for each in scene.objects:
        side = factor * each.side
        x, y = (min(max(centre, side / 2), 1 - side / 2) for centre in (each.x, each.y))
        objects.append(replace(each, x=x, y=y, side=side))
    return replace(scene, objects=tuple(objects))


def cell_targets(scenes: Sequence[Scene], config: DetectorConfig) -> Float[Tensor, "b k n n"]:
    """Per cell: exp(-d^2 / 2) of a class, d cells from the centre of its object, and the rest of `none`."""
    side = config.cells
    target = torch.zeros(len(scenes), len(config.objects) + 1, side, side)
    middles = torch.arange(side) + 0.5
    classes = {name: position for position, name in enumerate(config.objects)}
    for picture, scene in enumerate(scenes):
        for each in scene.objects:
            down = (-0.5 * (middles - each.y * side).square()).exp()
            across = (-0.5 * (middles - each.x * side).square()).exp()
            target[picture, classes[each.name]] += down[:, None] * across
    objects = target[:, :-1]
    # Tails of neighbours add up to a little more than 1 in rare cells.
    objects /= objects.sum(1, keepdim=True).clamp_min(1)
    target[:, -1] = 1 - objects.sum(1)
    return target


@torch.no_grad()
def distorted(
    images: Float[Tensor, "b 3 H W"], config: DistortionConfig, generator: torch.Generator
) -> Float[Tensor, "b 3 H W"]:
    """Pictures as a generator might have made them: other colours, less sharp, compressed, noisy; in [-1, 1].

    Colours and contrast are drawn per picture; what costs more has one strength for the whole batch.
    """
    chances, strengths = torch.rand(2, 4, generator=generator)
    colour, blur, compression, noise = torch.where(chances < config.share, strengths, 0).tolist()
    if colour:
        draws = 2 * torch.rand(len(images), 4, 1, 1, generator=generator).to(images.device) - 1
        images = images * (1 + config.contrast * draws[:, :1]) + config.colour * draws[:, 1:]
    if blur * config.blur:
        images = _blurred(images, blur * config.blur * images.shape[-1] / 128)
    if compression * config.compression:
        images = _compressed(images, compression * config.compression)
    if noise * config.noise:
        grain = torch.randn(images.shape, generator=generator).to(images.device)
        images = images + noise * config.noise * grain
    return images.clamp(-1, 1)


def _blurred(images: Tensor, deviation: float) -> Tensor:
    """A Gaussian along both axes, cut at the edges of the picture, its weights summing to 1."""
    positions = torch.arange(images.shape[-1], device=images.device)
    distance = (positions[:, None] - positions).float()
    weights = (-0.5 * (distance / max(deviation, 0.05)).square()).exp()
    weights = weights / weights.sum(-1, keepdim=True)
    return weights @ images @ weights.T


def _compressed(images: Tensor, step: float) -> Tensor:
    """Round the cosine coefficients of blocks, high frequencies four times as coarsely as low ones."""
    blocks = images.shape[-1] // BLOCK
    k = torch.arange(BLOCK, dtype=torch.float64)
    basis = torch.cos(math.pi * k[:, None] * (k + 0.5) / BLOCK) * math.sqrt(2 / BLOCK)
    basis[0] /= math.sqrt(2)
    transform = torch.kron(torch.eye(blocks), basis.float()).to(images.device)
    frequency = (k[:, None] + k).float().to(images.device) / (2 * BLOCK - 2)
    grid = max(step, 1e-4) * (0.25 + 0.75 * frequency).repeat(blocks, blocks)
    coefficients = transform @ images @ transform.T
    return transform.T @ ((coefficients / grid).round() * grid) @ transform


def _named(cells: Tensor, scenes: Sequence[Scene], config: DetectorConfig) -> Tensor:
    right = [
        int(cells[picture, :-1, _cell(each.y, config), _cell(each.x, config)].argmax())
        == config.objects.index(each.name)
        for picture, scene in enumerate(scenes)
        for each in scene.objects
    ]
    return torch.tensor(sum(right) / len(right))


def _cell(position: float, config: DetectorConfig) -> int:
    return min(config.cells - 1, int(position * config.cells))
