"""From a recipe to a finished model: builds the task of each kind of run, trains it, exports the result."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from lineardit.autoencoder.model import Autoencoder
from lineardit.config.detector import DetectorConfig, DetectorRun
from lineardit.config.runs import AutoencoderRun, Run, TextRun, TransformerRun
from lineardit.data.emoji_scenes import EmojiScenes
from lineardit.interop.native import load_autoencoder, save_autoencoder
from lineardit.kernels.select import inspect_machine, select
from lineardit.training.detector import DetectionTask, detector_config
from lineardit.training.generation import train_transformer
from lineardit.training.latents import latent_statistics, with_statistics
from lineardit.training.loop import Outcome, step_generator, train
from lineardit.training.reconstruction import ReconstructionTask
from lineardit.training.scene_text import train_scene_text

MEASURED_SCENES = 4096
"""Scenes over which the latents' mean and deviation are measured once an autoencoder is trained."""


def start(run: Run, folder: Path, *, resume: bool, device: str = "auto") -> Path:
    """Train `run` in `folder` and return the folder of the finished model, `folder`/model."""
    place = pick_device(device)
    if isinstance(run, AutoencoderRun):
        return train_autoencoder(run, folder, resume=resume, device=place)
    if isinstance(run, TransformerRun):
        return train_transformer(run, folder, resume=resume, device=place)
    assert isinstance(run, TextRun)
    return train_scene_text(run, folder, resume=resume)


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one.

    Raises:
        InputError: the device is not here.
    """
    return select(inspect_machine(), name).torch_device


def train_autoencoder(run: AutoencoderRun, folder: Path, *, resume: bool, device: torch.device) -> Path:
    """Train, then measure the latents of the averaged weights and export both together."""
    scenes = EmojiScenes(run.scenes, run.train.seed)
    seed_weights(run.train.seed)
    model = Autoencoder(run.model).to(device)
    if run.start is not None:
        model.load_state_dict(load_autoencoder(run.start).state_dict())
    outcome = train(ReconstructionTask(run, scenes, model), run.train, folder, resume=resume)
    assert isinstance(outcome.average, Autoencoder)
    measured = with_statistics(outcome.average, *latent_statistics(outcome.average, scenes, MEASURED_SCENES))
    return save_autoencoder(folder / "model", measured, about={"steps_trained": outcome.step})


def train_detector(
    run: DetectorRun,
    build: Callable[[DetectorConfig], nn.Module],
    folder: Path,
    *,
    resume: bool,
    device: str = "auto",
) -> Outcome:
    """Train the instrument that reads scenes, built by `build`; whoever owns its class exports it."""
    seed_weights(run.train.seed)
    config = detector_config(run)
    model = build(config).to(pick_device(device))
    return train(DetectionTask(run, model, config), run.train, folder, resume=resume)


def seed_weights(seed: int) -> None:
    """Let the weights that are made next follow from a run's seed."""
    torch.manual_seed(int(torch.randint(2**31, (), generator=step_generator(seed, 0, "weights"))))
