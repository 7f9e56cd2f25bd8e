"""Text encoders that run from files alone: word pieces in, one vector per piece out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from tokenizers import Tokenizer
from torch import Tensor, nn

from lineardit.config.models import TextConfig
from lineardit.errors import ConfigError
from lineardit.text.embedding import TextEmbedding
from lineardit.text.prompt import warn_of_cut


class OfflineEncoder(nn.Module, ABC):
    """A network over the pieces of a `tokenizer`.

    A prompt's embedding does not depend, to the bit, on the prompts it is encoded with.
    """

    config: TextConfig

    def __init__(self, config: TextConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        entries = tokenizer.get_vocab_size()
        if entries > config.vocabulary:
            raise ConfigError(
                f"vocabulary={config.vocabulary} is less than the tokenizer's {entries} entries. "
                f"Use vocabulary={entries}."
            )
        self.config, self.tokenizer = config, tokenizer

    @property
    def width(self) -> int:
        """Channels of a token's vector."""
        return self.config.width

    @abstractmethod
    def forward(
        self, tokens: Int[Tensor, "b m"], mask: Bool[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b m {self.config.width}"]:
        """One vector per token; those that `mask` leaves out are never looked at."""

    def tokens(self, prompts: Sequence[str]) -> list[list[int]]:
        """The pieces of each prompt, at most `max_tokens`; what is beyond is named in a warning."""
        budget = self.config.max_tokens
        found = []
        for prompt, encoding in zip(prompts, self.tokenizer.encode_batch(list(prompts)), strict=True):
            ids = encoding.ids
            if len(ids) > budget:
                # What ends every prompt, such as [SEP], ends the shortened one too.
                ends = encoding.special_tokens_mask[1:][::-1]
                tail = ends.index(0)
                warn_of_cut(prompt, encoding.offsets[budget - tail - 1][1], budget)
                ids = ids[: budget - tail] + ids[len(ids) - tail :]
            found.append(ids)
        return found

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> TextEmbedding:
        """Embeddings padded with zeros to the longest prompt; an empty prompt has its special tokens."""
        # One at a time: in a batch the sums would be taken in another order for another batch.
        known = {prompt: self._encode_alone(prompt) for prompt in dict.fromkeys(prompts)}
        rows = [known[prompt] for prompt in prompts]
        mask = [torch.ones(len(row), dtype=torch.bool, device=row.device) for row in rows]
        pad = nn.utils.rnn.pad_sequence
        return TextEmbedding(pad(rows, batch_first=True), pad(mask, batch_first=True))

    def encode_negative(self, prompts: Sequence[str]) -> TextEmbedding:
        """The same: such an encoder has no instruction."""
        return self.encode(prompts)

    def _encode_alone(self, prompt: str) -> Float[Tensor, "m c"]:
        (tokens,) = self.tokens([prompt])
        row: Tensor = self(torch.tensor([tokens], device=next(self.parameters()).device))[0]
        return row
