"""What differs where a model draws classes instead of what prompts say."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from lineardit.diffusion.paths import DDPMPath, Times, Velocity
from lineardit.diffusion.predictions import NoisePrediction
from lineardit.errors import InputError
from lineardit.pipeline.discrete import DiscreteTrajectory
from lineardit.pipeline.networks import Branches
from lineardit.pipeline.settings import Settings
from lineardit.text.prompt import check_prompts
from lineardit.transformer.dit import DiT

NAMED = 8
"""Classes that an error tells."""


class ClassConditioning:
    """Prompts as numbers of classes: each is the name of one, or its number where no class is called so."""

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = tuple(classes)
        self._numbers = {name: number for number, name in enumerate(self._classes)}

    def check(self, prompts: Sequence[str]) -> None:
        """Raises `PromptError` for no prompt, `InputError` for one that is no class."""
        check_prompts(prompts)
        for prompt in prompts:
            self._number(prompt)

    def read(self, jobs: Sequence[Settings], dtype: torch.dtype, *, negative: bool) -> Int[Tensor, "rows"]:
        """A number for each job; an empty negative prompt is the null class."""
        wanted = [self._number(job.prompt) for job in jobs]
        without = [
            self._number(job.negative_prompt) if job.negative_prompt.strip() else len(self._classes)
            for job in jobs
            if negative
        ]
        return torch.tensor(without + wanted)

    def rows(self, conditions: Int[Tensor, "rows"], numbers: Sequence[int]) -> Int[Tensor, "some"]:
        """Some of them."""
        return conditions[list(numbers)]

    def joined(self, found: Sequence[Int[Tensor, "_parts"]]) -> Int[Tensor, "rows"]:
        """All that lead away first, then all that are wanted."""
        return torch.stack(list(found), dim=1).flatten()

    def _number(self, prompt: str) -> int:
        name = prompt.strip()
        if name in self._numbers:
            return self._numbers[name]
        if name.isdecimal() and int(name) < len(self._classes):
            return int(name)
        close = difflib.get_close_matches(name, self._classes, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        more = ", ..." if len(self._classes) > NAMED else ""
        raise InputError(
            f"{prompt[:80]!r} is none of the {len(self._classes)} classes that this model draws.{hint} Use a "
            f"name ({', '.join(self._classes[:NAMED])}{more}) or a number from 0 to {len(self._classes) - 1}."
        )


def class_trajectory(transformer: DiT) -> DiscreteTrajectory:
    """The path that class-conditional models are trained on: DDPM's own, of which they predict the noise."""
    return DiscreteTrajectory(NoisePrediction(DDPMPath.linear(transformer.config.num_steps)))


@dataclass(frozen=True)
class DiTNetwork:
    """LinearDiT or the softmax DiT, told the number of a class."""

    transformer: DiT
    seen: Callable[[Times], Times]
    """Times as the network was shown them in training."""

    def is_guided(self, jobs: Sequence[Settings]) -> bool:
        """Where a scale is not 1."""
        return any(job.guidance_scale != 1 for job in jobs)

    def check(self, step_cache: float) -> None:
        """Raises `InputError` where blocks are to be skipped."""
        if step_cache:
            raise InputError(
                f"step_cache={step_cache}: a class-conditional model runs every block in every step. "
                "Use step_cache=0."
            )

    def branches(
        self, jobs: Sequence[Settings], conditions: Int[Tensor, "rows"], control: Tensor | None
    ) -> Branches:
        """The classes alone, and with what they are led away from before them. Raises as `check` does."""
        self.check(jobs[0].step_cache)
        wanted = conditions[-len(jobs) :]
        return Branches(self._noise(wanted), self._noise(conditions) if self.is_guided(jobs) else None)

    def _noise(self, labels: Tensor) -> Velocity:
        weight = self.transformer.to_tokens.weight
        classes = labels.to(weight.device)

        def noise(latents: Tensor, times: Tensor) -> Tensor:
            predicted: Tensor = self.transformer(latents.to(weight.dtype), self.seen(times), classes)
            # Of a model that predicts a variance, too, the noise comes first.
            return predicted[:, : latents.shape[1]]

        return noise
