"""Noise that depends on a sample's seed alone: the same picture whatever the batch, on every device."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lineardit.diffusion.paths import Samples
from lineardit.errors import InputError


def hashed_seed(*parts: int | str) -> int:
    """A seed below 2^63 that depends on every part and on their order, the same on every machine."""
    text = "\0".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def seeded_noise(
    shape: Sequence[int],
    seeds: Sequence[int],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "b *axes"]:
    """Normal noise of shape (len(seeds), *shape), each sample from a generator of its own seed.

    Drawn in float32 on the CPU whatever `device` and `dtype`, which it is then converted to: the
    generators of other devices draw other numbers.
    """
    for seed in seeds:
        if not 0 <= seed < 2**64:
            raise InputError(f"seed={seed} does not lie in 0 .. 2^64 - 1. Use 0 or any other number there.")
    samples = [torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(samples).to(device=device, dtype=dtype)


@dataclass(frozen=True)
class StepNoise:
    """Fresh noise for each step of a stochastic sampler, a function of each sample's seed and the step."""

    seeds: Sequence[int]
    """One for each sample."""

    def __call__(self, step: int, like: Samples) -> Samples:
        """Noise for `step`, in the shape of `like`, on its device and in its dtype."""
        seeds = [hashed_seed(seed, step) for seed in self.seeds]
        return seeded_noise(like.shape[1:], seeds, like.device, like.dtype)
