"""What prompts become before the first step."""

from collections.abc import Sequence
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from lineardit.pipeline.settings import Settings
from lineardit.text.embedding import TextEmbedding, TextEncoder
from lineardit.text.prompt import check_prompts

Conditions = TypeVar("Conditions")


@runtime_checkable
class Conditioning(Protocol[Conditions]):
    """Reads the prompts of jobs. Conditions have a row for each job, negative prompts in rows before them."""

    def check(self, prompts: Sequence[str]) -> None:
        """Raises `PromptError` for what says nothing to this model."""
        ...

    def read(self, jobs: Sequence[Settings], dtype: torch.dtype, *, negative: bool) -> Conditions:
        """What the jobs ask for; with `negative`, what they lead away from in as many rows before it."""
        ...

    def rows(self, conditions: Conditions, numbers: Sequence[int]) -> Conditions:
        """Some rows, as if they alone had been read."""
        ...

    def joined(self, found: Sequence[Conditions]) -> Conditions:
        """Conditions of single jobs as those of a batch."""
        ...


class TextConditioning:
    """Prompts as vectors of their tokens, padded to one length."""

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder = encoder

    def check(self, prompts: Sequence[str]) -> None:
        """Raises `PromptError` for no prompt, or an empty one."""
        check_prompts(prompts)

    def read(self, jobs: Sequence[Settings], dtype: torch.dtype, *, negative: bool) -> TextEmbedding:
        """Vectors and mask of each prompt."""
        wanted = self._encoder.encode([job.prompt for job in jobs])
        if not negative:
            return TextEmbedding(wanted.embeddings.to(dtype), wanted.mask)
        without = self._encoder.encode_negative([job.negative_prompt for job in jobs])
        longest = max(without.mask.shape[1], wanted.mask.shape[1])
        embeddings, mask = zip(*(_padded(text, longest) for text in (without, wanted)), strict=True)
        return TextEmbedding(torch.cat(embeddings).to(dtype), torch.cat(mask))

    def rows(self, conditions: TextEmbedding, numbers: Sequence[int]) -> TextEmbedding:
        """Cut to the longest prompt among them."""
        kept = list(numbers)
        longest = int(conditions.mask[kept].sum(1).max())
        return TextEmbedding(conditions.embeddings[kept, :longest], conditions.mask[kept, :longest])

    def joined(self, found: Sequence[TextEmbedding]) -> TextEmbedding:
        """Padded to the longest: all that lead away first, then all prompts."""
        longest = max(text.mask.shape[1] for text in found)
        padded = [_padded(text, longest) for text in found]
        parts = range(len(found[0].mask))  # the negative and the prompt, or the prompt alone
        return TextEmbedding(
            torch.stack([embeddings[part] for part in parts for embeddings, _ in padded]),
            torch.stack([mask[part] for part in parts for _, mask in padded]),
        )


def _padded(text: TextEmbedding, length: int) -> tuple[Tensor, Tensor]:
    missing = length - text.mask.shape[1]
    pad = functional.pad
    return pad(text.embeddings, (0, 0, 0, missing)), pad(text.mask, (0, missing))
