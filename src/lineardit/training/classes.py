"""Class-conditional training: LinearDiT or DiT learns what pictures of each class look like."""

import hashlib
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lineardit.autoencoder.model import Autoencoder
from lineardit.config.classes import ClassRun
from lineardit.data.batches import BucketBatches
from lineardit.data.emoji_scenes import EmojiScenes
from lineardit.data.prepared import PreparedData
from lineardit.diffusion.discrete import ddim, leading_times
from lineardit.diffusion.guidance import guided
from lineardit.diffusion.objective import Denoising
from lineardit.diffusion.paths import DDPMPath
from lineardit.diffusion.predictions import NoisePrediction
from lineardit.diffusion.randomness import hashed_seed, seeded_noise
from lineardit.errors import ConfigError
from lineardit.interop.assembly import assemble_autoencoder
from lineardit.interop.bundled import folder_named
from lineardit.interop.native import Component, autoencoder_component, load_strict, only, save_model
from lineardit.interop.places import open_place
from lineardit.training.loop import step_generator, train
from lineardit.training.pool import pool_latents
from lineardit.training.prefetch import Prefetch
from lineardit.training.probe import check_same, probe
from lineardit.training.shares import Share
from lineardit.transformer.dit import DiT, dit_of

SHOWN = 8
"""Classes that are drawn during training where the recipe names none."""
DESCRIBED = {"scenes", "pool", "label_dropout", "train"}
"""What the finished model's folder says of its recipe."""


@runtime_checkable
class Labelled(Protocol):
    """Latents of pictures in buckets of one size each, with their classes."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Pictures of each bucket; those of a bucket are numbered after those of the buckets before it."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, by number."""
        ...

    @property
    def digest(self) -> str:
        """Tells other data apart."""
        ...

    def latents(self, number: int) -> Float[Tensor, "c h w"]:
        """The latents of a picture."""
        ...

    def label(self, number: int) -> int:
        """The number of its class."""
        ...


class LabelledScenes:
    """Scenes of one object, whose class it is, as latents in memory."""

    def __init__(self, latents: Float[Tensor, "n c h w"], scenes: EmojiScenes) -> None:
        numbers = {name: number for number, name in enumerate(scenes.names)}
        self._latents = latents
        self._labels = [numbers[scenes.scene(number).objects[0].name] for number in range(len(latents))]
        self.counts, self.classes = (len(latents),), scenes.names
        self.digest = hashlib.sha256(f"{scenes.description()}:{len(latents)}".encode()).hexdigest()

    def latents(self, number: int) -> Float[Tensor, "c h w"]:
        """The latents of a scene."""
        return self._latents[number]

    def label(self, number: int) -> int:
        """The number of its object."""
        return self._labels[number]


class Batch(NamedTuple):
    """What is learned from in one step, or a share of it."""

    latents: Float[Tensor, "b c h w"]
    noise: Float[Tensor, "b c h w"]
    times: Int[Tensor, " b"]
    labels: Int[Tensor, " b"]

    def to(self, device: torch.device) -> "Batch":
        """The same on a device."""
        return Batch(*(each.to(device, non_blocking=True) for each in self))


class ClassTask:
    """Predicting the noise of latents of known classes, one bucket per step (DDPM, arXiv:2006.11239).

    What a step learns from is drawn for all processes together, from (seed, step) alone; each takes its rows.
    """

    def __init__(self, run: ClassRun, model: DiT, autoencoder: Autoencoder, data: Labelled) -> None:
        self.run, self.autoencoder, self.data = run, autoencoder, data
        self.model: nn.Module = model
        self._null = model.null_class
        self._network = torch.compile(model) if run.train.compile else model
        self.batches = BucketBatches(data.counts, run.train.batch_size, run.train.seed)
        self._path = DDPMPath.linear(run.model.num_steps)
        self._objective = Denoising(NoisePrediction(self._path))
        self.shown = shown_classes(run.sample.classes, data.classes)
        fullest = data.counts.index(max(data.counts))
        self._shape = data.latents([0, *accumulate(data.counts)][fullest]).shape
        self._prefetch: Prefetch[Share, Batch] = Prefetch(self.batch)

    def losses(self, step: int) -> Mapping[str, Tensor]:
        """The squared error of the noise in a step's batch."""
        return self.losses_of_share(step, Share())

    def losses_of_share(self, step: int, share: Share) -> Mapping[str, Tensor]:
        """The same of some rows of it."""
        batch = self._prefetch(step, share).to(next(self.model.parameters()).device)

        def noise_in(x: Tensor, times: Tensor) -> Tensor:
            predicted: Tensor = self._network(x, times, batch.labels)
            return predicted

        return {"loss": self._objective.loss_at(noise_in, batch.latents, batch.noise, batch.times).mean()}

    def batch(self, step: int, share: Share) -> Batch:
        """The rows of a share of what step `step` learns from."""
        count, seed = self.run.train.batch_size, self.run.train.seed
        generator = step_generator(seed, step)
        dropped = torch.rand(count, generator=generator) < self.run.label_dropout
        times = torch.randint(self._path.steps, (count,), generator=generator)
        samples = self.batches.batch(step).samples
        rows = share.rows(count)
        latents = torch.stack([self.data.latents(number).float() for number in samples[rows]])
        noise = torch.randn(count, *latents.shape[1:], generator=generator)
        labels = torch.tensor([self.data.label(number) for number in samples[rows]])
        return Batch(latents, noise[rows], times[rows], labels.masked_fill(dropped[rows], self._null))

    def position(self, step: int) -> Mapping[str, object]:
        """Where in the data a step begins, and in which data."""
        return {**self.batches.position(step), "data": self.data.digest}

    @torch.no_grad()
    def sample(self, model: nn.Module, step: int) -> Float[Tensor, "b 3 H W"]:
        """The recipe's classes, always from the same noise, in the size of the fullest bucket."""
        sample, device = self.run.sample, next(model.parameters()).device
        times = leading_times(sample.num_inference_steps, self._path)
        images = []
        for number in self.shown:
            labels = torch.tensor([self._null, number], device=device)

            def both(x: Tensor, times: Tensor, labels: Tensor = labels) -> Tensor:
                predicted: Tensor = model(x.float(), times, labels)
                return predicted

            for seed in sample.seeds:
                latents = seeded_noise(self._shape, [hashed_seed("sample", seed, number)], device)
                velocity = guided(both, sample.guidance_scale)
                for state in ddim(velocity, latents, times, NoisePrediction(self._path)):
                    latents = state.latents
                images.append(self.autoencoder.decode(latents.float()))
        return torch.cat(images)


def train_classes(run: ClassRun, folder: Path, *, resume: bool, device: torch.device) -> Path:
    """Train on prepared pictures or drawn scenes, and write the model with its autoencoder to `folder`/model.

    Raises:
        ConfigError: the pictures were prepared with another autoencoder or without classes, or their sizes
            are no whole tokens.
        CheckpointError: a model or the data is damaged, or the model to start from has another shape.
    """
    place = open_place(folder_named(run.autoencoder))
    if "autoencoder" not in place.networks:
        raise ConfigError(
            f"autoencoder={run.autoencoder}: it holds no autoencoder. Give a folder that has one."
        )
    autoencoder = assemble_autoencoder(place, "fp32").to(device).requires_grad_(False)
    data = _prepared(run, autoencoder) if run.data is not None else _scenes(run, folder, autoencoder)
    torch.manual_seed(int(torch.randint(2**31, (), generator=step_generator(run.train.seed, 0, "weights"))))
    model = dit_of(run.model.shape(autoencoder.config.latent_channels, len(data.classes))).to(device)
    if run.start is not None:
        load_strict(model, only(run.start, "transformer").tensors, run.start)
    task = ClassTask(run, model, autoencoder, data)
    outcome = train(task, run.train, folder, resume=resume)
    assert isinstance(outcome.average, DiT)
    return save_class_model(folder / "model", outcome.average, autoencoder, data, run, outcome.step)


def shown_classes(asked: Sequence[str], classes: Sequence[str]) -> list[int]:
    """Numbers of the classes that samples show: those asked for by name or number, else the first ones.

    Raises:
        ConfigError: there is no such class.
    """
    numbers = []
    for name in asked:
        if name in classes:
            numbers.append(classes.index(name))
        elif name.isdecimal() and int(name) < len(classes):
            numbers.append(int(name))
        else:
            raise ConfigError(
                f"sample.classes: there is no class {name}. Use names such as {', '.join(classes[:5])}, or "
                f"numbers from 0 to {len(classes) - 1}."
            )
    return numbers or list(range(min(SHOWN, len(classes))))


def save_class_model(
    folder: Path, transformer: DiT, autoencoder: Autoencoder, data: Labelled, run: ClassRun, step: int
) -> Path:
    """Write transformer and autoencoder with the names of the classes as one model folder."""
    fullest = data.counts.index(max(data.counts))
    sides = data.latents([0, *accumulate(data.counts)][fullest]).shape[-2:]
    pixels = autoencoder.config.stride * transformer.config.patch_size
    size = max(pixels, round((sides[0] * sides[1]) ** 0.5 * autoencoder.config.stride / pixels) * pixels)
    about = {
        "classes": list(data.classes),
        "sampling": {
            "sampler": "ddim",
            "guidance_scale": run.sample.guidance_scale,
            "num_inference_steps": run.sample.num_inference_steps,
            "size": size,
        },
        "steps_trained": step,
        "pictures": sum(data.counts),
        "recipe": run.model_dump(mode="json", include=DESCRIBED),
    }
    components = {
        "transformer": Component(type(transformer).__name__, transformer.config, transformer.state_dict()),
        "autoencoder": autoencoder_component(autoencoder),
    }
    save_model(folder, components, about=about)
    return folder


def _scenes(run: ClassRun, folder: Path, autoencoder: Autoencoder) -> LabelledScenes:
    latents = pool_latents(run, folder / "pool" / "latents", autoencoder)
    return LabelledScenes(latents, EmojiScenes(run.scenes, run.train.seed))


def _prepared(run: ClassRun, autoencoder: Autoencoder) -> PreparedData:
    """The pictures that were prepared with the autoencoder, after finding out whether they were."""
    assert run.data is not None
    data, config = PreparedData(run.data), autoencoder.config
    if not data.classes:
        raise ConfigError(f"{run.data} has no classes. Prepare the pictures again with --classes.")
    if (data.latent_channels, data.stride) != (config.latent_channels, config.stride):
        raise ConfigError(
            f"{run.data} was prepared with another autoencoder than {run.autoencoder}: it has "
            f"{data.latent_channels} latent channels and {data.stride} pixels per latent, the autoencoder "
            f"{config.latent_channels} and {config.stride}. Name its model with autoencoder=..., or prepare "
            f"the pictures again with --model {run.autoencoder}."
        )
    check_same(probe(autoencoder), data.probe(), str(run.autoencoder), str(run.data))
    pixels = config.stride * run.model.patch_size
    for bucket in data.buckets:
        if bucket.height % pixels or bucket.width % pixels:
            raise ConfigError(
                f"{run.data} has pictures of {bucket.width} x {bucket.height} pixels, which are no whole "
                f"tokens of {pixels} pixels. Use model.patch_size=1, or prepare again with --step {pixels}."
            )
    return data
