"""Classifier-free guidance (arXiv:2207.12598): away from what the model says without the prompt."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from lineardit.diffusion.paths import PerSample, Samples, Velocity, per_sample, widened
from lineardit.errors import InputError


@dataclass(frozen=True)
class Interval:
    """The times from `lowest` to `highest`, ends included, in which guidance applies (arXiv:2404.07724)."""

    lowest: float = 0.0
    highest: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.lowest < self.highest <= 1:
            raise InputError(
                f"the guidance interval from {self.lowest} to {self.highest} does not rise within 0 and 1. "
                "Use 0.0 and 1.0 to guide at all times."
            )

    def covers(self, times: PerSample) -> Bool[Tensor, "b"]:
        """Which of `times` lie inside."""
        return (times >= self.lowest) & (times <= self.highest)


ALWAYS = Interval()


def guide(conditional: Samples, unconditional: Samples, scale: float | PerSample) -> Samples:
    """conditional + (scale - 1) (conditional - unconditional), in float32 or wider.

    Scale 1 is exactly the conditional velocity. A tensor gives each sample its own scale.
    """
    conditional = widened(conditional)
    if isinstance(scale, Tensor):
        scale = per_sample(scale, conditional).to(conditional)
    return conditional + (scale - 1) * (conditional - unconditional)


def guided(
    pair: Velocity,
    scale: float | PerSample,
    conditional: Velocity | None = None,
    interval: Interval = ALWAYS,
) -> Velocity:
    """A guided velocity that calls `pair` once a step, with every sample twice.

    `pair` receives 2b samples and times: the first b without the prompt, the last b with it. Where
    guidance changes nothing (outside of `interval`, or at scale 1) only `conditional`, over b samples,
    is called, if it is given.

    Raises: InputError where an interval needs a `conditional` that is missing.
    """
    check_scale(scale)
    if conditional is None:
        if interval != ALWAYS:
            raise InputError("a guidance interval needs the conditional velocity, to run it alone outside.")
        return lambda x, times: guide(*_both(pair, x, times), scale)
    if not isinstance(scale, Tensor) and scale == 1:
        return conditional
    return _only_inside(interval, conditional, lambda x, times: guide(*_both(pair, x, times), scale))


def guided_apart(
    conditional: Velocity,
    unconditional: Velocity,
    scale: float | PerSample,
    interval: Interval = ALWAYS,
) -> Velocity:
    """A guided velocity that calls both branches one after the other: half the memory of `guided`.

    Where guidance changes nothing (outside of `interval`, or at scale 1) only `conditional` is called.
    """
    check_scale(scale)
    if not isinstance(scale, Tensor) and scale == 1:
        return conditional
    return _only_inside(
        interval, conditional, lambda x, times: guide(conditional(x, times), unconditional(x, times), scale)
    )


def prompt_dropout(batch: int, probability: float, generator: torch.Generator) -> Bool[Tensor, "batch"]:
    """Which samples of a training batch lose their prompt, so that the model learns both branches."""
    if not 0 <= probability <= 1:
        raise InputError(f"a dropout probability of {probability} does not lie in [0, 1]. Use 0.1.")
    return torch.rand(batch, generator=generator, device=generator.device) < probability


def check_scale(scale: float | PerSample) -> None:
    """Raises `InputError` unless every guidance scale is a finite number, 0 or more."""
    values = torch.as_tensor(scale)
    if not (values.isfinite() & (values >= 0)).all():
        raise InputError(f"guidance scale {scale} is not 0 or more. Use 1.0 for no guidance; 4.5 is usual.")


def _both(pair: Velocity, x: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    without, with_prompt = pair(torch.cat([x, x]), torch.cat([times, times])).chunk(2)
    return with_prompt, without


def _only_inside(interval: Interval, conditional: Velocity, inside: Velocity) -> Velocity:
    def velocity(x: Tensor, times: Tensor) -> Tensor:
        covered = interval.covers(times)
        count = int(covered.sum())  # one look for both questions: each stalls a GPU
        if count == 0:
            return conditional(x, times)
        if count == len(covered):
            return inside(x, times)
        return torch.where(per_sample(covered, x), inside(x, times), conditional(x, times))

    return inside if interval == ALWAYS else velocity
