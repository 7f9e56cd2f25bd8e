"""From a recipe to a trained autoencoder whose latents are measured."""

from pathlib import Path
from typing import Any

import torch

from lineardit.autoencoder.model import Autoencoder
from lineardit.config.article import ArticleAutoencoderConfig
from lineardit.config.runs import ArticleAutoencoderRun, ReconstructionRun
from lineardit.data.emoji_scenes import EmojiScenes
from lineardit.errors import CheckpointError, ConfigError
from lineardit.interop.assembly import assemble_autoencoder
from lineardit.interop.bundled import folder_named
from lineardit.interop.native import load_strict, save_autoencoder
from lineardit.interop.places import open_place
from lineardit.training.latents import latent_statistics, with_statistics
from lineardit.training.loop import step_generator, train
from lineardit.training.picture_source import FolderPictures, PictureSource, ScenePictures
from lineardit.training.reconstruction import ReconstructionTask, without_reader

MEASURED_PICTURES = 4096
"""Pictures over which the latents' mean and deviation are measured once an autoencoder is trained."""


def train_autoencoder(run: ReconstructionRun, folder: Path, *, resume: bool, device: torch.device) -> Path:
    """Train, then export the averaged weights together with the mean and deviation of their latents.

    These are measured where the encoder has learned. Where only the decoder has, they are the old ones, to
    the bit, so that what was trained on such latents still fits.

    Raises:
        ConfigError: the crop, or the shape in the recipe, does not fit the autoencoder it starts from.
        CheckpointError: there is no autoencoder to start from.
    """
    model = first_model(run).to(device)
    _check_windows(run, model.config.stride)
    pictures = _pictures(run, model.config.stride)
    outcome = train(ReconstructionTask(run, pictures, model), run.train, folder, resume=resume)
    trained = without_reader(outcome.average)
    about: dict[str, Any] = {"steps_trained": outcome.step}
    if run.learns in ("all", "middle"):
        trained = with_statistics(trained, *latent_statistics(trained, pictures.whole(MEASURED_PICTURES)))
    return save_autoencoder(folder / "model", trained, about=about)


def first_model(run: ReconstructionRun) -> Autoencoder:
    """What the run begins with: random weights that follow from its seed, or those that are there."""
    torch.manual_seed(int(torch.randint(2**31, (), generator=step_generator(run.train.seed, 0, "weights"))))
    if run.start is None:
        assert run.model is not None
        return Autoencoder(run.model)
    place = open_place(folder_named(run.start))
    if "autoencoder" not in place.networks:
        raise CheckpointError(f"{place.path} holds no autoencoder to start from.")
    found = assemble_autoencoder(place, "fp32")
    wanted = isinstance(run, ArticleAutoencoderRun)
    if isinstance(found.config, ArticleAutoencoderConfig) != wanted:
        there, kind = ("a DC-AE", "autoencoder") if wanted else ("the article's", "article-autoencoder")
        raise ConfigError(f'start={run.start} is {there}. Use kind="{kind}", or start from another one.')
    if run.model is None:
        return found
    if run.learns in ("decoder", "decoder_head"):
        raise ConfigError(
            f'model: with learns="{run.learns}" shape and latents are those of {run.start}. Leave model out.'
        )
    model = Autoencoder(run.model)
    load_strict(model, found.state_dict(), run.start)
    return model


def _pictures(run: ReconstructionRun, stride: int) -> PictureSource:
    if run.pictures is not None:
        return FolderPictures(run)
    return ScenePictures(run, EmojiScenes(run.scenes, run.train.seed), stride)


def _check_windows(run: ReconstructionRun, stride: int) -> None:
    name, size = ("pictures.size", run.pictures.size) if run.pictures else ("scenes.size", run.scenes.size)
    for key, side in ((name, size), *([("crop", run.crop)] if run.crop else [])):
        if side % stride:
            below = side - side % stride
            choices = f"{below} or {below + stride}" if below else f"{stride}"
            raise ConfigError(f"{key}={side} is no multiple of the stride {stride}. Use {choices}.")
