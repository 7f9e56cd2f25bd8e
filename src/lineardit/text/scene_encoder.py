"""A small text encoder that is trained here, on the captions of scenes."""

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from lineardit.config.models import SceneTextConfig
from lineardit.text.offline import OfflineEncoder

EXPANSION = 2
"""Hidden width of the feed-forward over the width."""


class SceneTextEncoder(OfflineEncoder):
    """Word pieces with learned positions, pre-norm softmax attention, a norm at the end."""

    config: SceneTextConfig

    def __init__(self, config: SceneTextConfig, tokenizer: Tokenizer) -> None:
        super().__init__(config, tokenizer)
        self.pieces = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Parameter(torch.empty(config.max_tokens, config.width))
        self.blocks = nn.ModuleList(_Block(config.width, config.head_dim) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        self._initialise()

    def forward(
        self, tokens: Int[Tensor, "b m"], mask: Bool[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b m {self.config.width}"]:
        """One vector per token; those that `mask` leaves out are never looked at."""
        x = self.pieces(tokens) + self.positions[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x, mask)
        out: Tensor = self.norm(x)
        return out

    def _initialise(self) -> None:
        """Weights keep the size of what they are given; parts of the residual stream add up to size 1.

        Pieces start at size 1, so that every word is told apart from the first step on and stays so while all
        else is learned, and positions at half of it: which word it is matters more than where.
        """
        for name, parameter in self.named_parameters():
            if name == "pieces.weight":
                nn.init.normal_(parameter)
            elif name == "positions":
                nn.init.normal_(parameter, std=0.5)
            elif parameter.ndim == 2:
                into_stream = name.endswith(("to_out.weight", "contract.weight"))
                parts = 2 * self.config.depth if into_stream else 1
                nn.init.normal_(parameter, std=(parameter.shape[1] * parts) ** -0.5)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)


class _Block(nn.Module):
    """Every token looks at all tokens of its prompt, then thinks for itself."""

    def __init__(self, width: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * width)
        self.to_out = nn.Linear(width, width)
        self.expand = nn.Linear(width, EXPANSION * width)
        self.contract = nn.Linear(EXPANSION * width, width)

    def forward(self, x: Float[Tensor, "b m c"], mask: Bool[Tensor, "b m"] | None) -> Float[Tensor, "b m c"]:
        query, key, value = rearrange(
            self.to_qkv(self.attention_norm(x)),
            "b m (three heads d) -> three b heads m d",
            three=3,
            d=self.head_dim,
        ).unbind()
        seen = None if mask is None else mask[:, None, None, :]
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        x = x + self.to_out(rearrange(mixed, "b heads m d -> b m (heads d)"))
        out: Tensor = x + self.contract(
            functional.gelu(self.expand(self.feed_forward_norm(x)), approximate="tanh")
        )
        return out
