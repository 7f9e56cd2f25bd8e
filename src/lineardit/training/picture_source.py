"""The pictures that an autoencoder learns from: drawn scenes, or the pictures of a folder."""

import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from lineardit.config.runs import ReconstructionRun
from lineardit.data.emoji_scenes import EmojiScenes, Scene
from lineardit.data.picture_folder import PictureFolder
from lineardit.training.loop import step_generator

MEASURED_AT_ONCE = 64


@runtime_checkable
class PictureSource(Protocol):
    """Where pictures come from; what is drawn is a function of the recipe and the step alone."""

    def batch(self, step: int, device: torch.device) -> Float[Tensor, "b 3 h w"]:
        """The pictures, or windows of pictures, that step `step` learns from."""
        ...

    def unseen(self, count: int, device: torch.device) -> Float[Tensor, "b 3 h w"]:
        """At most `count` pictures that no step learns from."""
        ...

    def whole(self, count: int) -> Iterator[Float[Tensor, "b 3 h w"]]:
        """At most `count` whole pictures of training, in batches."""
        ...

    def position(self, step: int) -> Mapping[str, object]:
        """Where in the pictures a step begins, and what decides them, as JSON (`training.run_state`)."""
        ...


class ScenePictures:
    """Scenes one after the other, so that no step sees one again."""

    def __init__(self, run: ReconstructionRun, scenes: EmojiScenes, stride: int) -> None:
        self.run, self.scenes, self.stride = run, scenes, stride

    def batch(self, step: int, device: torch.device) -> Float[Tensor, "b 3 h w"]:
        """Scenes, or windows around one of their objects."""
        count = self.run.train.batch_size
        scenes = [self.scenes.scene(index) for index in range(step * count, (step + 1) * count)]
        images = self.scenes.draw(scenes, device=device)
        if self.run.crop is None:
            return images
        generator = step_generator(self.run.train.seed, step, "crop")
        return crop_around_objects(images, scenes, self.run.crop, self.stride, generator)

    def unseen(self, count: int, device: torch.device) -> Float[Tensor, "b 3 h w"]:
        """Scenes with pairs that training never has."""
        unseen = EmojiScenes(self.run.scenes, self.run.train.seed, split="held_out", atlas=self.scenes.atlas)
        return unseen.draw([unseen.scene(index) for index in range(count)], device=device)

    def whole(self, count: int) -> Iterator[Float[Tensor, "b 3 h w"]]:
        """The first scenes of training."""
        yield from scene_batches(self.scenes, count)

    def position(self, step: int) -> Mapping[str, object]:
        """Which scene is next, and in which windows they are seen."""
        batch_size = self.run.train.batch_size
        return {"step": step, "batch_size": batch_size, "crop": self.run.crop, "data": self.scenes.digest}


class FolderPictures:
    """Every picture once per epoch, in a new order; a picture that cannot be decoded ends the run."""

    def __init__(self, run: ReconstructionRun) -> None:
        assert run.pictures is not None
        self.run = run
        self.side = run.crop or run.pictures.size
        self.shown, self.kept = (PictureFolder(run.pictures, split) for split in ("train", "held_out"))
        # Names and lengths tell files apart without reading them once more.
        files = [
            (path.relative_to(run.pictures.folder).as_posix(), path.stat().st_size)
            for path in self.shown.paths
        ]
        self._digest = hashlib.sha256(f"{run.pictures.size}:{files}".encode()).hexdigest()

    def batch(self, step: int, device: torch.device) -> Float[Tensor, "b 3 h w"]:
        """Windows anywhere in the pictures."""
        count, seed, pictures = self.run.train.batch_size, self.run.train.seed, len(self.shown)
        places = range(step * count, (step + 1) * count)
        orders = {
            epoch: torch.randperm(pictures, generator=step_generator(seed, epoch, "order")).tolist()
            for epoch in {place // pictures for place in places}
        }
        chosen = [orders[place // pictures][place % pictures] for place in places]
        return self.shown.windows(chosen, self.side, step_generator(seed, step, "crop")).to(device)

    def unseen(self, count: int, device: torch.device) -> Float[Tensor, "b 3 h w"]:
        """The middle of pictures that are kept from training."""
        return self.kept.squares(range(min(count, len(self.kept)))).to(device)

    def whole(self, count: int) -> Iterator[Float[Tensor, "b 3 h w"]]:
        """The middle of the pictures of training."""
        yield from folder_batches(self.shown, count)

    def position(self, step: int) -> Mapping[str, object]:
        """How far the epochs have come, and over which files."""
        return {
            "step": step,
            "seed": self.run.train.seed,
            "batch_size": self.run.train.batch_size,
            "crop": self.side,
            "counts": [len(self.shown)],
            "data": self._digest,
        }


def scene_batches(
    scenes: EmojiScenes, count: int, *, batch_size: int = MEASURED_AT_ONCE
) -> Iterator[Float[Tensor, "b 3 h w"]]:
    """The first `count` scenes, in batches."""
    for start in range(0, count, batch_size):
        chosen: list[Scene] = [scenes.scene(index) for index in range(start, min(count, start + batch_size))]
        yield scenes.draw(chosen)


def folder_batches(
    folder: PictureFolder, count: int, *, batch_size: int = MEASURED_AT_ONCE
) -> Iterator[Float[Tensor, "b 3 h w"]]:
    """The middle of the first `count` pictures, in batches."""
    count = min(count, len(folder))
    for start in range(0, count, batch_size):
        yield folder.squares(range(start, min(count, start + batch_size)))


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
