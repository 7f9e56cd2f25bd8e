"""BERT as sentence encoders such as MiniLM use it, run from its folder alone, and its pruned vocabulary."""

import json
from collections.abc import Iterable

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from lineardit.config.models import BertConfig
from lineardit.text.offline import OfflineEncoder


class BertEncoder(OfflineEncoder):
    """Post-norm softmax attention over word pieces with learned positions (BERT, arXiv:1810.04805).

    There is one kind of segment, so its vector is part of the positions.
    """

    config: BertConfig

    def __init__(self, config: BertConfig, tokenizer: Tokenizer) -> None:
        super().__init__(config, tokenizer)
        self.pieces = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Parameter(torch.zeros(config.max_tokens, config.width))
        self.norm = nn.LayerNorm(config.width, config.norm_eps)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.depth))

    def forward(
        self, tokens: Int[Tensor, "b m"], mask: Bool[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b m {self.config.width}"]:
        """The last hidden states; tokens that `mask` leaves out are never looked at."""
        x = self.norm(self.pieces(tokens) + self.positions[: tokens.shape[1]])
        for block in self.blocks:
            x = block(x, mask)
        out: Tensor = x
        return out


class _Block(nn.Module):
    """Every token looks at all tokens of its prompt, then thinks for itself; each sum is normalised."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width = config.width
        self.head_dim = config.head_dim
        self.to_qkv, self.to_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, config.norm_eps)
        self.expand, self.contract = nn.Linear(width, config.hidden), nn.Linear(config.hidden, width)
        self.feed_forward_norm = nn.LayerNorm(width, config.norm_eps)

    def forward(self, x: Float[Tensor, "b m c"], mask: Bool[Tensor, "b m"] | None) -> Float[Tensor, "b m c"]:
        query, key, value = rearrange(
            self.to_qkv(x), "b m (three heads d) -> three b heads m d", three=3, d=self.head_dim
        ).unbind()
        seen = None if mask is None else mask[:, None, None, :]
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        x = self.attention_norm(x + self.to_out(rearrange(mixed, "b heads m d -> b m (heads d)")))
        out: Tensor = self.feed_forward_norm(x + self.contract(functional.gelu(self.expand(x))))
        return out


def prune(encoder: BertEncoder, texts: Iterable[str], entries: int) -> BertEncoder:
    """The same encoder with `entries` word pieces instead of all.

    Kept are the special ones and single ASCII characters, so that any ASCII word can still be spelled; what
    `texts` use; then the entries that come first, as BERT's vocabulary is in order of frequency. A word that
    loses its entry is read in pieces; all other prompts keep their embeddings to the bit.
    """
    tokenizer = encoder.tokenizer
    numbers = tokenizer.get_vocab()
    used = {number for encoding in tokenizer.encode_batch(list(texts)) for number in encoding.ids}
    special = {token["id"] for token in json.loads(tokenizer.to_str())["added_tokens"]}
    single = {n for piece, n in numbers.items() if piece.isascii() and len(piece.removeprefix("##")) == 1}
    kept = sorted(used | special | single)
    rest = (n for piece, n in sorted(numbers.items(), key=lambda item: item[1]) if _is_plain(piece))
    for number in rest:
        if len(kept) >= entries:
            break
        if number not in used and number not in single:
            kept.append(number)
    kept.sort()
    return _with_pieces(encoder, kept)


def _with_pieces(encoder: BertEncoder, kept: list[int]) -> BertEncoder:
    new_number = {old: new for new, old in enumerate(kept)}
    description = json.loads(encoder.tokenizer.to_str())
    vocabulary = description["model"]["vocab"]
    description["model"]["vocab"] = {
        piece: new_number[old]
        for piece, old in sorted(vocabulary.items(), key=lambda item: item[1])
        if old in new_number
    }
    for token in description["added_tokens"]:
        token["id"] = new_number[token["id"]]
    for token in description["post_processor"]["special_tokens"].values():
        token["ids"] = [new_number[old] for old in token["ids"]]
    config = encoder.config.model_copy(update={"vocabulary": len(kept)})
    pruned = BertEncoder(config, Tokenizer.from_str(json.dumps(description)))
    pruned.load_state_dict(
        {**encoder.state_dict(), "pieces.weight": encoder.pieces.weight.detach()[kept].clone()}
    )
    return pruned.eval().requires_grad_(False)


def _is_plain(piece: str) -> bool:
    """A word or a part of one, in ASCII: what is not is reserved or another script."""
    return piece.isascii() and not piece.startswith("[")
