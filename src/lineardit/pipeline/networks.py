"""How a network is run: what it is shown beside latents and times, with and without the prompt."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from lineardit.diffusion.paths import Times, Velocity
from lineardit.interop.bound import Steps
from lineardit.interop.room import Room
from lineardit.pipeline.compiled import Compiled
from lineardit.pipeline.settings import Settings
from lineardit.text.embedding import TextEmbedding
from lineardit.transformer.controlnet import ControlNet
from lineardit.transformer.denoiser import Denoiser
from lineardit.transformer.generation import PromptReading, StepCache
from lineardit.transformer.model import Transformer

Conditions = TypeVar("Conditions", contravariant=True)


class Branches(NamedTuple):
    """A network that was told what to draw, for the steps of one generation."""

    prompted: Velocity
    """Over the b samples of the batch."""
    pair: Velocity | None
    """Over the b samples twice, first without the prompt; None where nothing is guided."""
    shared_bytes: int = 0
    """What the steps share, as long as they go on."""


@runtime_checkable
class Network(Protocol[Conditions]):
    """What the pipeline has to know of a network."""

    def is_guided(self, jobs: Sequence[Settings]) -> bool:
        """Whether guidance needs the network a second time, without the prompt."""
        ...

    def check(self, step_cache: float) -> None:
        """Raises `InputError` for a threshold that this network has no way for."""
        ...

    def branches(self, jobs: Sequence[Settings], conditions: Conditions, control: Tensor | None) -> Branches:
        """What runs in each step; the conditions are those of the jobs, `control` a ControlNet's picture."""
        ...


def steps_of(network: Network[Any], jobs: Sequence[Settings], control: Tensor | None) -> Steps:
    """What the steps of these jobs see; with guidance anywhere, every picture twice."""
    first, pictures = jobs[0], len(jobs) * (2 if network.is_guided(jobs) else 1)
    return Steps(first.height, first.width, pictures, control is not None, first.step_cache > 0)


class PromptedNetwork(ABC):
    """A network that reads prompts once for all steps."""

    transformer: Denoiser

    def is_guided(self, jobs: Sequence[Settings]) -> bool:
        """Where a scale is not 1."""
        return any(job.guidance_scale != 1 for job in jobs)

    def check(self, step_cache: float) -> None:
        """Raises `InputError` for a threshold that no step cache has."""
        StepCache(step_cache)

    def branches(
        self, jobs: Sequence[Settings], conditions: TextEmbedding, control: Tensor | None
    ) -> Branches:
        """Both share what was read of the prompts, and each has its own cache."""
        read = self._read(jobs, conditions, control)
        if not self.is_guided(jobs):
            return Branches(self._velocity(jobs, conditions, read, control), None, read.size_bytes)
        wanted, twice = len(jobs), 2 * len(jobs)  # the negative prompts come first
        only = TextEmbedding(conditions.embeddings[wanted:], conditions.mask[wanted:])
        return Branches(
            self._velocity(jobs, only, read.rows(wanted, twice), control),
            self._velocity(jobs, conditions, read, control),
            read.size_bytes,
        )

    def _read(
        self, jobs: Sequence[Settings], conditions: TextEmbedding, control: Tensor | None
    ) -> PromptReading:
        return self.transformer.read(conditions.embeddings, conditions.mask)

    @abstractmethod
    def _velocity(
        self, jobs: Sequence[Settings], text: TextEmbedding, read: PromptReading, control: Tensor | None
    ) -> Velocity:
        """The network, told the prompts."""


@dataclass(frozen=True)
class SanaNetwork(PromptedNetwork):
    """The SANA transformer, with a ControlNet where there is one."""

    transformer: Transformer
    controlnet: ControlNet | None
    seen: Callable[[Times], Times]
    """Times as the network was shown them in training."""
    room: Room
    compiled: Compiled | None = None
    """The transformer's steps, where nothing but latents and times changes between them."""

    def is_guided(self, jobs: Sequence[Settings]) -> bool:
        """Where a scale is not 1, unless the scale is an input of the network."""
        return not self.transformer.config.guidance_embedding and super().is_guided(jobs)

    def _velocity(
        self, jobs: Sequence[Settings], text: TextEmbedding, read: PromptReading, control: Tensor | None
    ) -> Velocity:
        weight = self.transformer.patchify.weight
        # A distilled model takes the guidance scale as an input.
        guidance = (
            torch.tensor([job.guidance_scale for job in jobs], device=weight.device)
            if self.transformer.config.guidance_embedding
            else None
        )
        # Where every block runs in every step, none of the tokens between them need outlive the next.
        cache = StepCache(jobs[0].step_cache) if jobs[0].step_cache else None
        # Room for the most that a step sees, also where guidance pauses: else blocks would come and go.
        steps = steps_of(self, jobs, control)

        def velocity(latents: Tensor, times: Tensor) -> Tensor:
            shown = latents.to(weight.dtype), self.seen(times).float()
            # With and without its prompt a sample is the same until the prompt is read.
            once = shown[0][: len(jobs)], shown[1][: len(jobs)]
            rows = self.room.rows_to_denoise(steps)
            residuals: Sequence[Tensor] = ()
            if control is not None and self.controlnet is not None:
                both = control.repeat(len(latents) // len(control), 1, 1, 1).to(weight.dtype)
                scale = jobs[0].controlnet_conditioning_scale or 0.0
                residuals = self.controlnet(*shown, text.embeddings, both, text.mask, scale, rows)
            if self.compiled is not None and control is None and cache is None and rows is None:
                return self.compiled(*once, read, guidance)
            out: Tensor = self.transformer(*once, read, None, guidance, residuals, cache, rows)
            return out

        return velocity

    def _read(
        self, jobs: Sequence[Settings], conditions: TextEmbedding, control: Tensor | None
    ) -> PromptReading:
        folds = self.room.folds_prompts(steps_of(self, jobs, control))
        return self.transformer.read(conditions.embeddings, conditions.mask, folds=folds)
