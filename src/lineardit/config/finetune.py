"""Recipes that let a model which is there go on learning from prepared pictures."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from lineardit.config.models import Config
from lineardit.config.runs import LoopConfig


class FinetuneTimes(Config):
    """Where between image (0) and noise (1) training looks: t = sigmoid(mean + std n), then shifted."""

    mean: float = 0.0
    """Of the normal distribution inside the sigmoid; above 0 looks at noisier times."""
    std: float = Field(1.0, gt=0)
    """Of the normal distribution inside the sigmoid; larger looks more at the ends."""
    shift: float | None = Field(None, gt=0)
    """t' = shift t / (1 + (shift - 1) t); the model's own unless given."""


class FinetuneSample(Config):
    """The pictures drawn during training, always from the same noise."""

    prompts: tuple[str, ...] = ()
    """What is drawn; the captions of the first four pictures unless given."""
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    """Each prompt is drawn once from the noise of each of these."""
    num_inference_steps: int | None = Field(None, gt=0)
    """Calls of the network per picture, without those that guidance adds; the model's own unless given."""
    guidance_scale: float | None = Field(None, ge=0)
    """1 draws without guidance; the model's own unless given."""


class FinetuneRun(Config):
    """Let the transformer of a model learn from pictures that `lineardit prepare` has encoded."""

    kind: Literal["finetune"] = "finetune"
    """Tells recipes apart."""
    base: str | None = None
    """The model that goes on learning: a folder (ours or of diffusers) or a hub id; the bundled one unless
    given. Its autoencoder and text encoder stay as they are."""
    data: Path
    """Folder that `lineardit prepare` wrote, with the autoencoder and the text encoder of `base`."""
    method: Literal["full"] = "full"
    """full: every weight of the transformer learns."""
    times: FinetuneTimes = FinetuneTimes()
    prompt_dropout: float = Field(0.1, ge=0, lt=1)
    """Share of samples that are shown no prompt, so that guidance has something to lead away from."""
    sample: FinetuneSample = FinetuneSample()
    train: LoopConfig
