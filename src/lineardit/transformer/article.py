"""SANA as the article prints it: learned feature map, Mix-FFN, adaLN per block, sparse cross-attention.

What was repaired, and why, is in docs/article.md.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake
from torch.nn import functional

from lineardit.config.article import ArticleConfig
from lineardit.errors import ConfigError, InputError, ShapeError, check_multiple
from lineardit.kernels.linear_attention import linear_attention
from lineardit.nn.attention import CrossAttention, KeyValue, never_empty
from lineardit.nn.embedding import sinusoids
from lineardit.nn.wide import Conv2d, LayerNorm, Linear
from lineardit.transformer.block import NORM_EPS, Grid, Modulation
from lineardit.transformer.dit_block import xavier
from lineardit.transformer.generation import PromptReading, StepCache

AUTOENCODER_STRIDE = 32


class LearnedMapAttention(nn.Module):
    """Linear attention whose features are relu(W x + b), learned and shared by queries, keys and heads."""

    def __init__(self, config: ArticleConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.to_query = Linear(config.width, config.heads * config.qk_dim)
        self.to_key = Linear(config.width, config.heads * config.qk_dim)
        self.to_value = Linear(config.width, config.width)
        self.to_feature = Linear(config.qk_dim, config.qk_dim)
        self.to_out = Linear(config.width, config.width)

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """Mix the tokens; their order does not matter."""
        query, key = (self.to_feature(self._heads(layer(x))) for layer in (self.to_query, self.to_key))
        mixed = linear_attention(query, key, self._heads(self.to_value(x)), feature_map="relu")
        out: Tensor = self.to_out(rearrange(mixed, "b heads n d -> b n (heads d)"))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        return rearrange(x, "b n (heads d) -> b heads n d", heads=self.heads)


class MixFeedForward(nn.Module):
    """Linear, depthwise 3x3, GELU, linear (Mix-FFN, SegFormer, arXiv:2105.15203); no gate."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.expand = Linear(width, hidden_width)
        self.depthwise = Conv2d(hidden_width, hidden_width, 3, padding=1, groups=hidden_width)
        self.contract = Linear(hidden_width, width)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        """Mix every pixel with its eight neighbours and its channels."""
        near = self.depthwise(self.expand(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        mixed: Tensor = self.contract(functional.gelu(near))
        return mixed


class ArticleBlock(nn.Module):
    """Linear attention, then a Mix-FFN, both steered by a table that the block makes of the condition."""

    def __init__(self, config: ArticleConfig) -> None:
        super().__init__()
        self.norm = LayerNorm(config.width, eps=NORM_EPS, elementwise_affine=False)
        self.attention = LearnedMapAttention(config)
        self.feed_forward = MixFeedForward(config.width, config.hidden_width)
        self.to_table = Linear(config.width, 6 * config.width)

    def forward(
        self, x: Float[Tensor, "b n c"], condition: Float[Tensor, "b c"], grid: Grid
    ) -> Float[Tensor, "b n c"]:
        """Refine the tokens once."""
        first, last = Modulation.pair(self.to_table(functional.silu(condition)).unflatten(-1, (6, -1)))
        x = x + first.gate * self.attention(first.steer(self.norm(x)))
        steered = torch.unflatten(last.steer(self.norm(x)), 1, grid)
        return x + last.gate * self.feed_forward(steered).flatten(1, 2)


class PromptBlock(nn.Module):
    """x + cross-attention of the normalised tokens to the prompt."""

    def __init__(self, config: ArticleConfig) -> None:
        super().__init__()
        self.norm = LayerNorm(config.width, eps=NORM_EPS)
        self.attention = CrossAttention(config.width, config.head_dim)

    def forward(
        self,
        x: Float[Tensor, "b n c"],
        prompt: Float[Tensor, "b m c"] | KeyValue,
        mask: Bool[Tensor, "b m"] | None,
    ) -> Float[Tensor, "b n c"]:
        """What the prompt says to each token; `mask` keeps the prompt's true tokens.

        Instead of a prompt and its mask it takes what its attention's `read` made of them.
        """
        return x + self.attention(self.norm(x), prompt, mask)


class ArticleSana(nn.Module):
    """Predicts the noise of a noisy latent, at any size that the patch divides."""

    def __init__(self, config: ArticleConfig) -> None:
        super().__init__()
        width, patch_numbers = config.width, config.latent_channels * config.patch_size**2
        self.config = config
        self.to_tokens = Linear(patch_numbers, width)
        self.positions = nn.Parameter(torch.zeros(1, width, config.position_base, config.position_base))
        self.time = nn.Sequential(Linear(width, width), nn.SiLU(), Linear(width, width))
        self.to_prompt = Linear(config.text_width, width)
        self.blocks = nn.ModuleList(ArticleBlock(config) for _ in range(config.depth))
        self.prompt_blocks = nn.ModuleList(PromptBlock(config) for _ in range(config.prompt_blocks))
        self.norm = LayerNorm(width, eps=NORM_EPS)
        self.to_noise = Linear(width, patch_numbers)
        if self.positions.device.type != "meta":
            self.initialise()

    @classmethod
    def build(
        cls,
        image_size: int = 1024,
        patch_size: int = 32,
        latent_channels: int = 32,
        hidden_dim: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        text_dim: int = 4096,
    ) -> "ArticleSana":
        """A fresh model by the article's own call, where `patch_size` counts pixels: 32 is one latent.

        Raises: ConfigError where a patch is no whole number of latents, or `image_size` of patches.
        """
        if patch_size % AUTOENCODER_STRIDE or image_size % patch_size:
            raise ConfigError(
                f"patch_size={patch_size} pixels must be a multiple of {AUTOENCODER_STRIDE}, the pixels per "
                f"latent, and divide image_size={image_size}. Use patch_size=32 and image_size=1024."
            )
        config = ArticleConfig(
            latent_channels=latent_channels,
            patch_size=patch_size // AUTOENCODER_STRIDE,
            width=hidden_dim,
            depth=depth,
            heads=num_heads,
            feed_forward_ratio=mlp_ratio,
            text_width=text_dim,
            position_base=image_size // patch_size,
        )
        return cls(config)

    def initialise(self) -> None:
        """Xavier for every matrix, torch's own for depthwise convolutions.

        Three zeros: the positions, as printed; the tables, so that each fresh block is the identity; and the
        noise, so that the first loss is the variance of its target.
        """
        xavier(self)
        for block in self.blocks:
            assert isinstance(block, ArticleBlock)
            nn.init.zeros_(block.to_table.weight)
        nn.init.zeros_(self.to_noise.weight)

    def forward(
        self,
        latents: Float[Tensor, "b c h w"],
        times: Int[Tensor, " b"],
        text: Float[Tensor, "b m t"] | PromptReading,
        mask: Bool[Tensor, "b m"] | None = None,
        cache: StepCache | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """The noise at 0 <= times < num_steps, given the text encoder's hidden states.

        `mask` keeps the text's true tokens, for cross-attention and for the mean that joins the time; where
        none is true all are read, instead of giving NaN. Instead of both it takes what `read` made of them.
        `cache` belongs to the steps of one generation. What is predicted is the noise, or what the
        configuration says instead.

        Raises:
            ShapeError: a side is no multiple of the patch, or latents or text have another width.
            InputError: a time is out of range, or there is a mask beside prompts that were read with theirs.
        """
        self._check(latents, times)
        patch, dtype = self.config.patch_size, self.to_tokens.weight.dtype
        grid = Grid(latents.shape[-2] // patch, latents.shape[-1] // patch)
        patches = rearrange(latents.to(dtype), "b c (h p) (w q) -> b (h w) (c p q)", p=patch, q=patch)
        x = self.to_tokens(patches) + self._positions(grid)
        prompts, pooled = self._prompts(text, mask)
        condition = self.time(sinusoids(times.float(), self.config.width).to(dtype)) + pooled
        every = self.config.cross_attention_every

        def through(x: Tensor, start: int, stop: int) -> Tensor:
            for number in range(start, stop):
                x = self.blocks[number](x, condition, grid)
                reads, left = divmod(number + 1, every)
                if not left:
                    x = self.prompt_blocks[reads - 1](x, prompts[reads - 1], mask)
            return x

        last = len(self.blocks) - 1
        if cache is None or last < 2:
            x = through(x, 0, last + 1)
        else:
            first = through(x, 0, 1)
            x = through(cache.through(x, first, lambda x: through(x, 1, last)), last, last + 1)
        noise = self.to_noise(self.norm(x))
        return rearrange(noise, "b (h w) (c p q) -> b c (h p) (w q)", h=grid.height, p=patch, q=patch)

    def read(self, text: Float[Tensor, "b m t"], mask: Bool[Tensor, "b m"] | None = None) -> PromptReading:
        """What all steps of a generation share of prompts: only the tokens that are there, and those once.

        Raises:
            ShapeError: the text has another width.
        """
        self._check_width("text", text.shape[-1], self.config.text_width)
        if mask is None:
            there, counts = text.flatten(0, 1), (text.shape[1],) * len(text)
        else:
            kept = never_empty(mask)
            there, counts = text[kept], tuple(kept.sum(1).tolist())
        prompt = self.to_prompt(there.to(self.to_tokens.weight.dtype))
        readings = []
        for block in self.prompt_blocks:
            assert isinstance(block, PromptBlock)
            readings.append(block.attention.read(prompt, counts))
        return PromptReading(tuple(readings), torch.stack([each.mean(0) for each in prompt.split(counts)]))

    def _prompts(
        self, text: Tensor | PromptReading, mask: Tensor | None
    ) -> tuple[Sequence[Tensor | KeyValue], Tensor]:
        """What each cross-attention takes, and what joins the time."""
        if isinstance(text, PromptReading):
            if mask is not None:
                raise InputError("mask is given beside prompts that were read with theirs. Leave it out.")
            assert text.pooled is not None
            return text.blocks, text.pooled
        self._check_width("text", text.shape[-1], self.config.text_width)
        prompt = self.to_prompt(text.to(self.to_tokens.weight.dtype))
        return [prompt] * len(self.prompt_blocks), _mean(prompt, mask)

    def _positions(self, grid: Grid) -> Tensor:
        """The learned table, stretched to other grids between its entries."""
        table: Tensor = self.positions
        if tuple(grid) != tuple(table.shape[-2:]):
            wide = table.to(torch.promote_types(table.dtype, torch.float32))
            stretched = functional.interpolate(wide, size=tuple(grid), mode="bilinear", align_corners=False)
            table = stretched.to(table.dtype)
        return table.flatten(2).transpose(1, 2)

    def _check_width(self, name: str, given: int, right: int) -> None:
        if given != right:
            raise ShapeError(f"{name} have {given} channels, the model takes {right}.")

    def _check(self, latents: Tensor, times: Tensor) -> None:
        config = self.config
        self._check_width("latents", latents.shape[1], config.latent_channels)
        for name, side in zip(("height", "width"), latents.shape[-2:], strict=True):
            check_multiple(f"latent {name}", side, config.patch_size, f"patch_size={config.patch_size}")
        if torch.compiler.is_compiling() or times.is_meta or is_fake(times):
            return  # there are no numbers to look at
        if not ((times >= 0) & (times < config.num_steps)).all():
            raise InputError(
                f"times {times.tolist()} do not all lie in 0 <= time < {config.num_steps}. "
                f"Use 0 to {config.num_steps - 1}."
            )


def _mean(prompt: Float[Tensor, "b m c"], mask: Bool[Tensor, "b m"] | None) -> Float[Tensor, "b c"]:
    """The mean of the tokens that the mask keeps, or of all where it keeps none."""
    if mask is None:
        return prompt.mean(1)
    weights = never_empty(mask).to(prompt.dtype)
    return torch.einsum("bm,bmc->bc", weights / weights.sum(-1, keepdim=True), prompt)
