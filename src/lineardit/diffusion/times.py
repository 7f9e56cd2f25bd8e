"""Times between image (0) and noise (1): their shift, how training draws them, grids."""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from lineardit.config.runs import TimeConfig
from lineardit.errors import InputError

TRAINING_STEPS = 1000
"""Times that a network trained on whole steps has seen, as diffusers' schedulers assume."""


def check_steps(steps: object) -> int:
    """`steps` itself. Raises `InputError` unless it is a positive whole number."""
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InputError(f"steps={steps!r} is not a positive whole number. Use 1 or more; 20 is usual.")
    return steps


def check_shift(shift: float) -> float:
    """`shift` itself. Raises `InputError` unless it is a positive finite number."""
    if not (math.isfinite(shift) and shift > 0):
        raise InputError(f"shift={shift} is not a positive number. Use 1.0 for none, 3.0 for large pictures.")
    return shift


def shift_times(times: Float[Tensor, "*axes"], shift: float) -> Float[Tensor, "*axes"]:
    """t' = s t / (s t + 1 - t): keeps 0 and 1, and moves what lies between towards noise where s > 1.

    More pixels hide the same noise better, so larger pictures need a larger shift (Stable Diffusion 3,
    arXiv:2403.03206, section 5.3.2). Over 1 + (s - 1) t, which is the same, rounding leads out of [0, 1].
    """
    check_shift(shift)
    shifted = shift * times
    return shifted / (shifted + (1 - times))


def unshift_times(times: Float[Tensor, "*axes"], shift: float) -> Float[Tensor, "*axes"]:
    """The inverse of `shift_times`."""
    return shift_times(times, 1 / check_shift(shift))


@runtime_checkable
class TimeDistribution(Protocol):
    """Where on (0, 1) training looks."""

    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, "count"]:
        """`count` times in float32, on the generator's device."""
        ...


@dataclass(frozen=True)
class Uniform:
    """Every time is as likely as any other."""

    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, "count"]:
        """`count` times in float32, on the generator's device."""
        return torch.rand(count, generator=generator, device=generator.device)


@dataclass(frozen=True)
class LogitNormal:
    """t = sigmoid(mean + std n) with n normal: looks at the middle most (arXiv:2403.03206, section 3.1)."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise InputError(
                f"LogitNormal(mean={self.mean}, std={self.std}) needs a finite mean and a positive std. "
                "Use mean=0.0 and std=1.0."
            )

    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, "count"]:
        """`count` times in float32, on the generator's device."""
        normal = torch.randn(count, generator=generator, device=generator.device)
        return torch.sigmoid(self.mean + self.std * normal)


@dataclass(frozen=True)
class Mode:
    """t = 1 - u - scale (cos(pi u / 2)^2 - 1 + u) with u uniform (arXiv:2403.03206, section 3.1).

    A positive scale looks at the middle, a negative one at the ends, 0 is uniform. Outside
    [-1, 2 / (pi - 2)] the map from u to t would fold back on itself.
    """

    scale: float = 1.29

    def __post_init__(self) -> None:
        if not -1 <= self.scale <= 2 / (math.pi - 2):
            raise InputError(f"Mode(scale={self.scale}) lies outside [-1, 1.75]. Use 1.29, or 0 for uniform.")

    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, "count"]:
        """`count` times in float32, on the generator's device."""
        u = torch.rand(count, generator=generator, device=generator.device)
        return 1 - u - self.scale * (torch.cos(math.pi / 2 * u).square() - 1 + u)


def time_distribution(config: TimeConfig) -> TimeDistribution:
    """The distribution that a recipe names, before the shift."""
    match config.distribution:
        case "logit_normal":
            return LogitNormal(config.mean, config.std)
        case "mode":
            return Mode(config.mode_scale)
        case "uniform":
            return Uniform()


def shift_at(config: TimeConfig, tokens: int) -> float:
    """The shift that a recipe asks for in pictures of `tokens` tokens: shift sqrt(tokens / shift_tokens).

    n times as many tokens show the same picture with 1 / sqrt(n) of the uncertainty that noise leaves about
    it (Stable Diffusion 3, arXiv:2403.03206, section 5.3.2, equation 23).
    """
    if config.shift_tokens is None:
        return config.shift
    return config.shift * math.sqrt(tokens / config.shift_tokens)


def flow_times(steps: int, shift: float = 1.0) -> Float[Tensor, "stops"]:
    """`steps + 1` times from exactly 1 to exactly 0: equal steps, then shifted. float64, on the CPU."""
    return shift_times(torch.linspace(1, 0, check_steps(steps) + 1, dtype=torch.float64), shift)


def dpm_flow_times(steps: int, shift: float = 1.0) -> Float[Tensor, "stops"]:
    """The grid of diffusers' DPMSolverMultistepScheduler(use_flow_sigmas=True, flow_shift=shift).

    Equal steps from 0.999 down to 0, then shifted: it never starts at pure noise, where lambda would be
    -inf. With shift 3 the first time is 0.99967 instead of the 1 of `flow_times`. float64, on the CPU.
    """
    highest = 1 - 1 / TRAINING_STEPS
    return shift_times(torch.linspace(highest, 0, check_steps(steps) + 1, dtype=torch.float64), shift)


def euler_flow_times(steps: int, shift: float = 1.0) -> Float[Tensor, "stops"]:
    """The grid of diffusers' FlowMatchEulerDiscreteScheduler(shift=shift).

    Equal steps from 1 down to shift(1 / 1000), shifted (its lower end for the second time, as there),
    and one last step to 0. `flow_times` spends that last step like the others. float64, on the CPU.
    """
    check_steps(steps)
    lowest = shift_times(torch.tensor(1 / TRAINING_STEPS, dtype=torch.float64), shift)
    times = torch.linspace(1, lowest.item(), steps, dtype=torch.float64)
    return torch.cat([shift_times(times, shift), torch.zeros(1, dtype=torch.float64)])


def whole_times(times: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """Cut to whole thousandths, as a network sees them that was trained on 1,000 whole steps only."""
    # A thousandth of a step is less than any grid leaves and more than float32 loses.
    return torch.floor(times * TRAINING_STEPS + 1e-3) / TRAINING_STEPS
