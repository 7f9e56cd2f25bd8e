"""All that decides a picture apart from the weights, and what is refused of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lineardit.config.steps import steps_drawn
from lineardit.diffusion.times import check_steps
from lineardit.errors import InputError

LARGEST_SEED = 2**63 - 1

OutputType = Literal["pil", "np", "pt", "latent"]


@dataclass(frozen=True)
class Settings:
    """All that decides a picture, apart from the weights; saved in its PNG."""

    prompt: str
    negative_prompt: str
    height: int
    width: int
    num_inference_steps: int
    guidance_scale: float
    sampler: str
    seed: int
    model: str
    strength: float | None = None
    """Where an initial picture was given: the share of the steps that was drawn over it, in (0, 1]."""
    controlnet_conditioning_scale: float | None = None
    """Where a control picture was given: what the ControlNet's additions are multiplied by."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """The times, 0 the picture and 1 noise, in which guidance applies; outside only the prompt counts."""
    step_cache: float = 0.0
    """How far the first block's addition may change before the middle blocks run again; 0 is exact."""

    @property
    def steps_drawn(self) -> int:
        """Steps that are computed: the last ones, from an initial picture (SDEdit, arXiv:2108.01073)."""
        return steps_drawn(self.num_inference_steps, self.strength)


@dataclass(frozen=True)
class Output:
    """Pictures, and how each was made."""

    images: Any
    """A list of PIL pictures, an array (b H W 3) in [0, 1], a tensor (b 3 H W) in [-1, 1], or latents."""
    settings: tuple[Settings, ...]


def checked_steps(steps: int) -> int:
    """`steps` itself. Raises `InputError` unless it is a positive whole number."""
    try:
        return check_steps(steps)
    except InputError as error:
        raise InputError(f"num_inference_{error}") from None


def checked_scale(scale: float) -> float:
    """The guidance scale itself. Raises `InputError` unless it lies between 0 and 100."""
    if not 0 <= scale <= 100:  # NaN too
        raise InputError(f"guidance_scale={scale} is not between 0 and 100. Use 1 for none; 3 to 5 is usual.")
    return float(scale)


def checked_strength(strength: float) -> float:
    """`strength` itself. Raises `InputError` unless it is above 0 and at most 1."""
    if not 0 < strength <= 1:  # NaN too
        raise InputError(f"strength={strength} is not above 0 and at most 1. Use 0.6; 1 keeps nothing.")
    return float(strength)


def checked_control_scale(scale: float) -> float:
    """The scale of a ControlNet itself. Raises `InputError` unless it is a finite number."""
    if not math.isfinite(scale):
        raise InputError(f"controlnet_conditioning_scale={scale} is no finite number. Use 1.0.")
    return scale


def negatives_for(prompts: Sequence[str], negative_prompt: str | Sequence[str]) -> list[str]:
    """One negative prompt for each prompt. Raises `InputError` where there is neither one nor as many."""
    if isinstance(negative_prompt, str):
        return [negative_prompt] * len(prompts)
    if len(negative_prompt) != len(prompts):
        raise InputError(
            f"{len(negative_prompt)} negative prompts for {len(prompts)} prompts: "
            "give one for all, or one for each."
        )
    return list(negative_prompt)


def seeds_for(seed: int | Sequence[int], count: int) -> list[int]:
    """A seed for each picture, counted up from a single one.

    Raises:
        InputError: there are not as many as pictures, or one is out of range.
    """
    seeds = [seed + index for index in range(count)] if isinstance(seed, int) else list(seed)
    if len(seeds) != count:
        raise InputError(
            f"{len(seeds)} seeds for {count} pictures: give one to count up from, or one for each."
        )
    for each in seeds:
        if not 0 <= each <= LARGEST_SEED:
            raise InputError(f"seed={each} is not between 0 and {LARGEST_SEED}. Use 0.")
    return seeds
