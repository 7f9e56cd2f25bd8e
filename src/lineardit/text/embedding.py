"""What every text encoder gives: one vector per token, and which tokens are there."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor


class TextEmbedding(NamedTuple):
    """Prompts as a network attends to them, padded to one length."""

    embeddings: Float[Tensor, "b m c"]
    mask: Bool[Tensor, "b m"]
    """True where there is a token."""


@runtime_checkable
class TextEncoder(Protocol):
    """Turns prompts into vectors. An empty prompt is allowed here: guidance leads away from it."""

    @property
    def width(self) -> int:
        """Channels of a token's vector."""
        ...

    def encode(self, prompts: Sequence[str]) -> TextEmbedding:
        """What is to be seen, one row per prompt."""
        ...

    def encode_negative(self, prompts: Sequence[str]) -> TextEmbedding:
        """What is not to be seen: the same without instructions that lead the encoder to elaborate."""
        ...
