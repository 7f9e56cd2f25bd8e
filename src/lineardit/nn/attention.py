"""Attention layers: linear or softmax over the picture's own tokens, softmax over the prompt's."""

from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from lineardit.kernels import native
from lineardit.kernels import prompt as prompts
from lineardit.kernels.gradients import prompt_attention
from lineardit.kernels.linear_attention import (
    LinearAttentionState,
    linear_attention,
    linear_attention_state,
)
from lineardit.nn.int8 import Int8Linear
from lineardit.nn.norm import RMSNorm
from lineardit.nn.wide import Conv2d, Linear


def _qk_norm(width: int, wanted: bool) -> nn.Module:
    """RMSNorm over all heads together, as SANA-1.5 and Sprint have it, or nothing."""
    return RMSNorm(width) if wanted else nn.Identity()


class LinearSelfAttention(nn.Module):
    """Every token attends to every token with linear attention, O(n); ReLU as in SANA, section 2.2."""

    def __init__(
        self,
        width: int,
        head_dim: int,
        *,
        qk_norm: bool = False,
        feature_map: str = "relu",
        qkv_bias: bool = False,
    ) -> None:
        super().__init__()
        self.head_dim, self.feature_map = head_dim, feature_map
        self.to_qkv = Linear(width, 3 * width, bias=qkv_bias)
        self.query_norm, self.key_norm = _qk_norm(width, qk_norm), _qk_norm(width, qk_norm)
        self.to_out = Linear(width, width)

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """Mix the tokens; their order does not matter."""
        query, key, value = self.to_qkv(x).chunk(3, dim=-1)
        mixed = linear_attention(
            self._heads(self.query_norm(query)),
            self._heads(self.key_norm(key)),
            self._heads(value),
            feature_map=self.feature_map,
        )
        return self._joined(mixed)

    def state(self, x: Float[Tensor, "b n c"]) -> LinearAttentionState:
        """All that queries need to know of these tokens; states of disjoint tokens merge."""
        _, key, value = self.to_qkv(x).chunk(3, dim=-1)
        return linear_attention_state(
            self._heads(self.key_norm(key)), self._heads(value), feature_map=self.feature_map
        )

    def attend(self, x: Float[Tensor, "b n c"], state: LinearAttentionState) -> Float[Tensor, "b n c"]:
        """What these tokens find in the state of all of them: `forward`, where `x` is all of them."""
        query = self.to_qkv(x).chunk(3, dim=-1)[0]
        heads = self._heads(self.query_norm(query))
        return self._joined(linear_attention(heads, None, None, feature_map=self.feature_map, state=state))

    def _joined(self, mixed: Float[Tensor, "b heads n d"]) -> Float[Tensor, "b n c"]:
        out: Tensor = self.to_out(rearrange(mixed, "b heads n d -> b n (heads d)"))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        return rearrange(x, "b n (heads d) -> b heads n d", d=self.head_dim)


class SoftmaxSelfAttention(nn.Module):
    """Every token attends to every token with softmax attention: O(n^2), fused where torch has a kernel."""

    def __init__(self, width: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.to_qkv = Linear(width, 3 * width)
        self.to_out = Linear(width, width)

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """Mix the tokens; their order does not matter."""
        query, key, value = rearrange(
            self.to_qkv(x), "b n (three heads d) -> three b heads n d", three=3, d=self.head_dim
        ).unbind()
        mixed = functional.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.to_out(rearrange(mixed, "b heads n d -> b n (heads d)"))
        return out


PADDING = 32
"""Tokens that prompts are padded to a multiple of on a GPU."""


class KeyValue(NamedTuple):
    """What cross-attention makes of prompts; the same in every step of a generation."""

    key: Float[Tensor, "b heads m d"]
    value: Float[Tensor, "b heads m d"]
    mask: Bool[Tensor, "b m"] | None = None
    """The keys that count, all of them unless given."""
    counts: tuple[int, ...] = ()
    """Where given, row i has its first `counts[i]` keys and no mask."""
    folded: tuple[prompts.FoldedPrompt | None, ...] = ()
    """Where given, row i with the layers around the attention; what has None is attended to as usual."""

    @property
    def size_bytes(self) -> int:
        """Of its tensors, but for the mask."""
        folded = sum(each.size_bytes for each in self.folded if each is not None)
        return self.key.nbytes + self.value.nbytes + folded

    def rows(self, start: int, stop: int) -> "KeyValue":
        """Those of some prompts of the batch."""
        mask = None if self.mask is None else self.mask[start:stop]
        return KeyValue(
            self.key[start:stop],
            self.value[start:stop],
            mask,
            self.counts[start:stop],
            self.folded[start:stop],
        )


class CrossAttention(nn.Module):
    """Every image token attends to the prompt's tokens with softmax attention.

    A prompt whose mask is all false is attended to as if it were all true, instead of giving NaN.
    """

    def __init__(self, width: int, head_dim: int, *, qk_norm: bool = False) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.to_q = Linear(width, width)
        self.to_kv = Linear(width, 2 * width)
        self.query_norm, self.key_norm = _qk_norm(width, qk_norm), _qk_norm(width, qk_norm)
        self.to_out = Linear(width, width)

    def forward(
        self,
        x: Float[Tensor, "b n c"],
        prompt: Float[Tensor, "b m c"] | KeyValue,
        mask: Bool[Tensor, "b m"] | None = None,
    ) -> Float[Tensor, "b n c"]:
        """What the prompt says to each token; `mask` keeps the prompt's true tokens.

        Instead of a prompt and its mask it takes what `read` made of them.
        """
        if not isinstance(prompt, KeyValue) and (learned := self._learned(x, prompt, mask)) is not None:
            return learned
        read = prompt if isinstance(prompt, KeyValue) else self._keys_and_values(prompt, mask)
        if any(read.folded):
            return self._answered(x, read)
        mixed = _attended(self._heads(self.query_norm(self.to_q(x))), read)
        out: Tensor = self.to_out(rearrange(mixed, "b heads n d -> b n (heads d)"))
        return out

    def read(
        self, prompt: Float[Tensor, "tokens c"], counts: tuple[int, ...], *, folds: bool = True
    ) -> KeyValue:
        """Keys and values of prompts of `counts` tokens, given one after the other.

        `folds` allows short ones to be multiplied into the layers around (`kernels.prompt`): faster, in more
        memory.
        """
        both = nn.utils.rnn.pad_sequence(list(self.to_kv(prompt).split(counts)), batch_first=True)
        if both.is_cuda:
            return self._padded(both, counts)
        key, value = self._split(both)
        folded = self._folded(key, value, counts) if folds else ()
        return KeyValue(key, value, counts=counts, folded=folded)

    def _padded(self, both: Float[Tensor, "b m c2"], counts: tuple[int, ...]) -> KeyValue:
        """For a GPU: few lengths, each with kernels and graphs of its own, and nothing to copy in a step."""
        length = -(-both.shape[1] // PADDING) * PADDING
        key, value = self._split(functional.pad(both, (0, 0, 0, length - both.shape[1])))
        there = torch.arange(length, device=both.device) < torch.tensor(counts, device=both.device)[:, None]
        return KeyValue(key, value, there)

    def _keys_and_values(self, prompt: Tensor, mask: Tensor | None) -> KeyValue:
        return KeyValue(*self._split(self.to_kv(prompt)), None if mask is None else never_empty(mask))

    def _split(self, both: Float[Tensor, "b m c2"]) -> tuple[Tensor, Tensor]:
        key, value = both.chunk(2, dim=-1)
        return self._heads(self.key_norm(key)), self._heads(value)

    def _folded(
        self, key: Float[Tensor, "b heads m d"], value: Float[Tensor, "b heads m d"], counts: tuple[int, ...]
    ) -> tuple[prompts.FoldedPrompt | None, ...]:
        """The shortest prompts with the layers around, as long as all take no more room than those layers."""
        layers = self.to_q, self.to_out
        if not self._folds(Linear, Int8Linear) or native.takes(key) is None:
            return ()
        room, heads = sum(each.weight.nbytes for each in layers), key.shape[1]
        chosen = set()
        for i in sorted(range(len(counts)), key=lambda i: counts[i]):
            room -= 2 * heads * counts[i] * heads * self.head_dim * key.element_size()
            if room >= 0:
                chosen.add(i)
        if not chosen:
            return ()
        weights = [_weight(each, key.dtype) for each in layers]
        around = prompts.Around(weights[0], self.to_q.bias, weights[1], self.to_out.bias)
        return tuple(
            prompts.folded(around, key[i, :, :count], value[i, :, :count]) if i in chosen else None
            for i, count in enumerate(counts)
        )

    def _learned(self, x: Tensor, prompt: Tensor, mask: Tensor | None) -> Float[Tensor, "b n c"] | None:
        """`forward` with its gradients, where folding prompts pays in training."""
        if not self._folds(Linear) or native.learns(x, prompt, *self.parameters()) is None:
            return None
        kept = prompt.new_ones(prompt.shape[:2], dtype=torch.bool) if mask is None else never_empty(mask)
        counts, heads = kept.sum(1).tolist(), x.shape[-1] // self.head_dim
        if not prompts.are_short(counts, x.shape[1], x.shape[2], heads):
            return None
        key, value = self.to_kv(prompt[kept]).chunk(2, dim=-1)
        around = prompts.Around(self.to_q.weight, self.to_q.bias, self.to_out.weight, self.to_out.bias)
        return prompts.learned(x, around, key, value, counts, heads)

    def _folds(self, *kinds: type[nn.Module]) -> bool:
        """Whether prompts can be multiplied into the layers around: of these kinds, with no norm between."""
        plain = type(self.to_q) in kinds and type(self.to_out) in kinds
        return plain and isinstance(self.query_norm, nn.Identity)

    def _answered(self, x: Float[Tensor, "b n c"], read: KeyValue) -> Float[Tensor, "b n c"]:
        """`forward`, row by row, where some prompts are folded."""
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        for i, folded in enumerate(read.folded):
            if folded is None or not prompts.answer(x[i], folded, out[i]):
                one = slice(i, i + 1)
                out[one] = self(x[one], read.rows(i, i + 1)._replace(folded=()))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        return rearrange(x, "b n (heads d) -> b heads n d", d=self.head_dim)


def _weight(layer: nn.Module, dtype: torch.dtype) -> Float[Tensor, "d c"]:
    if isinstance(layer, Int8Linear):
        return layer.dequantized().to(dtype)
    weight: Tensor = layer.get_parameter("weight")
    return weight


def _attended(query: Float[Tensor, "b heads n d"], read: KeyValue) -> Float[Tensor, "b heads n d"]:
    attention = functional.scaled_dot_product_attention
    key, value, mask, counts, _ = read
    if not counts and (learned := prompt_attention(query, key, value, mask)) is not None:
        return learned
    if len(set(counts)) <= 1:
        count = counts[0] if counts else key.shape[2]
        kept = None if mask is None else mask[:, None, None, :]
        return attention(query, key[:, :, :count], value[:, :, :count], attn_mask=kept)
    if query.device.type != "cpu":
        lengths = torch.tensor(counts, device=key.device)[:, None]
        kept = torch.arange(key.shape[2], device=key.device) < lengths
        return attention(query, key, value, attn_mask=kept[:, None, None, :])
    # Without a mask, and without a product for a token that is not there.
    rows = [
        attention(query[i : i + 1], key[i : i + 1, :, :count], value[i : i + 1, :, :count])
        for i, count in enumerate(counts)
    ]
    return torch.cat(rows)


def never_empty(mask: Bool[Tensor, "b m"]) -> Bool[Tensor, "b m"]:
    """The mask, with rows that keep nothing keeping all."""
    return mask | ~mask.any(-1, keepdim=True)


class MultiScaleLinearAttention(nn.Module):
    """EfficientViT's linear attention over pixels (arXiv:2205.14756): extra heads see mixed q, k and v.

    The channels of [q k v] and of every extra scale are cut into groups of 3 head_dim, and each group is one
    head: so the published weights have it, whatever the names of the projections suggest.
    """

    def __init__(self, width: int, head_dim: int, kernels: tuple[int, ...], norm: nn.Module) -> None:
        super().__init__()
        self.head_dim, self.kernels = head_dim, kernels
        self.to_qkv = Linear(width, 3 * width, bias=False)
        self.scales = nn.ModuleList(_Scale(3 * width, head_dim, kernel) for kernel in kernels)
        self.to_out = Linear(width * (1 + len(kernels)), width, bias=False)
        self.norm = norm

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The branch's output, normalised; the caller adds it to `x`."""
        query, key, value = (part.flatten(3).transpose(-1, -2) for part in self.heads(x))
        return self.joined(linear_attention(query, key, value).transpose(-1, -2), x.shape[-2])

    @property
    def reach(self) -> int:
        """How many rows above and below a pixel its query, key and value depend on."""
        return max((kernel // 2 for kernel in self.kernels), default=0)

    def heads(self, x: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b heads d h w"], ...]:
        """Query, key and value of every pixel at every scale."""
        qkv = self.to_qkv(x.movedim(1, -1)).movedim(-1, 1)
        scales = torch.cat([qkv, *(scale(qkv) for scale in self.scales)], dim=1)
        parts = rearrange(scales, "b (heads three d) h w -> three b heads d h w", three=3, d=self.head_dim)
        return tuple(parts.unbind())

    def joined(self, mixed: Float[Tensor, "b heads d n"], height: int) -> Float[Tensor, "b c h w"]:
        """What the heads found, n = h w pixels, as the branch's output."""
        pixels = rearrange(mixed, "b heads d (h w) -> b h w (heads d)", h=height)
        out: Tensor = self.norm(self.to_out(pixels).movedim(-1, 1))
        return out


class _Scale(nn.Sequential):
    """Depthwise convolution of q, k and v, then a 1x1 convolution within each third of each head."""

    def __init__(self, channels: int, head_dim: int, kernel: int) -> None:
        super().__init__(
            Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False),
            Conv2d(channels, channels, 1, groups=channels // head_dim, bias=False),
        )
