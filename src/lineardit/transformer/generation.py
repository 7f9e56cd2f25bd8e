"""What the steps of one generation share: prompts read once, and work that need not be done again."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from lineardit.errors import InputError
from lineardit.nn.attention import KeyValue


class PromptReading(NamedTuple):
    """Prompts as every block's cross-attention reads them; the same in all steps of a generation."""

    blocks: tuple[KeyValue, ...]
    pooled: Float[Tensor, "b c"] | None = None
    """The mean of each prompt's tokens, where the network adds it to the time."""

    @property
    def size_bytes(self) -> int:
        """What all steps hold of it."""
        return sum(each.size_bytes for each in self.blocks)

    def rows(self, start: int, stop: int) -> "PromptReading":
        """Those of some prompts of the batch."""
        pooled = None if self.pooled is None else self.pooled[start:stop]
        return PromptReading(tuple(each.rows(start, stop) for each in self.blocks), pooled)


class StepCache:
    """What the middle blocks added at the last step that ran them, reused while their input hardly changes.

    The first block always runs. Where what it adds differs from what it added at the last full step by less
    than `threshold`, as mean |change| over mean |what it added|, the middle blocks add what they added then;
    the last block runs again. The largest change of the batch decides. At 0 every block runs in every step.

    First-block caching, as in ParaAttention and diffusers, after TeaCache (arXiv:2411.19108); there the last
    block is skipped, too.
    """

    def __init__(self, threshold: float) -> None:
        """Raises: InputError unless the threshold is a number of 0 or more."""
        if not 0 <= threshold < float("inf"):
            raise InputError(f"step_cache={threshold} is not 0 or more. Use 0 for exact steps; 0.1 is usual.")
        self.threshold = threshold
        self.full, self.reused = 0, 0
        self._first: Tensor | None = None
        self._middle: Tensor | None = None

    def through(self, before: Tensor, x: Tensor, middle: Callable[[Tensor], Tensor]) -> Tensor:
        """`middle(x)`, or x and what it added before; `before` is what the first block made x of."""
        if self.threshold == 0:
            self.full += 1
            return middle(x)
        first = x - before
        if self._middle is not None and self._is_near(first):
            self.reused += 1
            return x + self._middle
        out = middle(x)
        self.full += 1
        self._first, self._middle = first, out - x
        return out

    def _is_near(self, first: Tensor) -> bool:
        last = self._first
        if last is None or last.shape != first.shape:
            return False
        change = (first - last).float().abs().flatten(1).mean(1)
        size = last.float().abs().flatten(1).mean(1)
        return bool((change < self.threshold * size).all())
