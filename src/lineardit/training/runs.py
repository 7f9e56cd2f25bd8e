"""From a recipe to a finished model: builds the task of each kind of run, trains it, exports the result."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from lineardit.config.classes import ClassRun
from lineardit.config.detector import DetectorConfig, DetectorRun
from lineardit.config.finetune import FinetuneRun
from lineardit.config.runs import PoolRun, ReconstructionRun, Run, TextRun
from lineardit.kernels.select import inspect_machine, select
from lineardit.training.autoencoder import train_autoencoder
from lineardit.training.classes import train_classes
from lineardit.training.detector import DetectionTask, detector_config
from lineardit.training.finetune import train_finetune
from lineardit.training.generation import train_transformer
from lineardit.training.loop import Outcome, step_generator, train
from lineardit.training.scene_text import train_scene_text


def start(run: Run | ClassRun | FinetuneRun, folder: Path, *, resume: bool, device: str = "auto") -> Path:
    """Train `run` in `folder` and return the folder of the finished model, `folder`/model."""
    place = pick_device(device)
    if isinstance(run, ReconstructionRun):
        return train_autoencoder(run, folder, resume=resume, device=place)
    if isinstance(run, PoolRun):
        return train_transformer(run, folder, resume=resume, device=place)
    if isinstance(run, ClassRun):
        return train_classes(run, folder, resume=resume, device=place)
    if isinstance(run, FinetuneRun):
        return train_finetune(run, folder, resume=resume, device=place)
    assert isinstance(run, TextRun)
    return train_scene_text(run, folder, resume=resume)


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one.

    Raises:
        InputError: the device is not here.
    """
    return select(inspect_machine(), name).torch_device


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
