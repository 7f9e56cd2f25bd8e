"""Recipes that let a model which is there go on learning from prepared pictures."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from lineardit.config.adapter import AdapterConfig, PriorConfig
from lineardit.config.models import Config
from lineardit.config.runs import LoopConfig, TimeConfig


class FinetuneTimes(TimeConfig):
    """Where between image (0) and noise (1) training looks: times of a distribution, then shifted."""

    shift: float | None = Field(None, gt=0)  # type: ignore[assignment]
    """t' = shift t / (1 + (shift - 1) t); the model's own unless given."""

    def resolved(self, shift: float) -> TimeConfig:
        """The same for a model whose own shift is `shift`."""
        given = {name: getattr(self, name) for name in TimeConfig.model_fields}
        return TimeConfig(**given | {"shift": shift if self.shift is None else self.shift})


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
    method: Literal["full", "lora", "dora"] = "full"
    """full: every weight of the transformer learns. lora, dora: none does, but low-rank additions to some of
    its layers, which are written alone."""
    adapter: AdapterConfig = AdapterConfig()
    prior: PriorConfig | None = None
    """Learn along what the model drew before, so that a handful of pictures do not make it forget."""
    times: FinetuneTimes = FinetuneTimes()
    prompt_dropout: float = Field(0.1, ge=0, lt=1)
    """Share of samples that are shown no prompt, so that guidance has something to lead away from."""
    sample: FinetuneSample = FinetuneSample()
    train: LoopConfig
