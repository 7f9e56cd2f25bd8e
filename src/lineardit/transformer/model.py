"""The SANA transformer: noisy latents, a time and a prompt in, a velocity out (arXiv:2410.10629)."""

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from lineardit.config.models import TransformerConfig
from lineardit.errors import InputError, ShapeError, check_multiple
from lineardit.kernels.passes import steered
from lineardit.nn.attention import KeyValue, never_empty
from lineardit.nn.embedding import ScalarEmbedding, grid_positions
from lineardit.nn.norm import RMSNorm
from lineardit.nn.offload import loaded
from lineardit.nn.wide import Conv2d, Linear
from lineardit.transformer.bands import bands_of, refined
from lineardit.transformer.block import NORM_EPS, Block, Grid, for_prompts
from lineardit.transformer.generation import PromptReading, StepCache

SMALL = 0.02


class TimeConditioning(nn.Module):
    """The time (and the guidance scale, where it is an input) as a vector and a table of modulations."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.time = ScalarEmbedding(config.width)
        self.guidance = ScalarEmbedding(config.width) if config.guidance_embedding else None
        self.to_table = Linear(config.width, 6 * config.width)

    def forward(
        self, time: Float[Tensor, " b"], guidance: Float[Tensor, " b"] | None
    ) -> tuple[Float[Tensor, "b c"], Float[Tensor, "b 6 c"]]:
        """The vector for the last layer, and the table that all blocks share."""
        vector = self.time(time)
        if self.guidance is not None:
            vector = vector + self.guidance(guidance)
        return vector, self.to_table(functional.silu(vector)).unflatten(-1, (6, -1))


class PromptProjection(nn.Module):
    """Text embeddings to the transformer's width: two layers, then an RMSNorm that starts small."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.first = Linear(config.text_width, config.width)
        self.second = Linear(config.width, config.width)
        self.norm = RMSNorm(config.width)

    def forward(self, text: Float[Tensor, "b m t"]) -> Float[Tensor, "b m c"]:
        """What cross-attention reads; the same in every step of a generation."""
        projected: Tensor = self.norm(self.second(functional.gelu(self.first(text), approximate="tanh")))
        return projected


class Transformer(nn.Module):
    """Predicts the velocity noise - image of a noisy latent, at any size that the patch divides."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        patch = config.patch_size
        self.patchify = Conv2d(config.latent_channels, config.width, patch, stride=patch)
        self.conditioning = TimeConditioning(config)
        self.prompt_projection = PromptProjection(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.offset = nn.Parameter(torch.empty(2, config.width))
        self.to_velocity = Linear(config.width, patch**2 * config.latent_channels)
        if self.offset.device.type != "meta":
            self.initialise()

    def initialise(self) -> None:
        """Xavier for every matrix, 0.02 for what embeds time and prompt, 1/sqrt(width) for the tables.

        Depthwise convolutions have torch's own: as matrices of thousands of rows they would start ten times
        too small, and the feed-forward with them. Two zeros: the velocity starts at zero, so that the first
        loss is the variance of its target (SANA keeps Xavier there), and the guidance embedding starts
        silent, so that it can be added to a trained model.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                if isinstance(module, nn.Conv2d) and module.groups > 1:
                    module.reset_parameters()
                else:
                    nn.init.xavier_uniform_(module.weight.flatten(1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        conditioning, prompt = self.conditioning, self.prompt_projection
        embeddings = [conditioning.time.first, conditioning.time.second, conditioning.to_table]
        for layer in (*embeddings, prompt.first, prompt.second):
            nn.init.normal_(layer.weight, std=SMALL)
        nn.init.constant_(prompt.norm.weight, self.config.prompt_norm_start)
        for table in (self.offset, *(block.get_parameter("offset") for block in self.blocks)):
            nn.init.normal_(table, std=1 / math.sqrt(self.config.width))
        nn.init.zeros_(self.to_velocity.weight)
        if conditioning.guidance is not None:
            nn.init.zeros_(conditioning.guidance.second.weight)

    def forward(
        self,
        latents: Float[Tensor, "b c h w"],
        times: Float[Tensor, " b"],
        text: Float[Tensor, "p m t"] | PromptReading,
        mask: Bool[Tensor, "p m"] | None = None,
        guidance: Float[Tensor, " b"] | None = None,
        residuals: Sequence[Float[Tensor, "p n d"]] = (),
        cache: StepCache | None = None,
        rows: int | None = None,
    ) -> Float[Tensor, "p c h w"]:
        """The velocity at `times` (1 is noise, 0 is the image), given the text encoder's hidden states.

        Latents may have several prompts each, those of latent i at i, b + i and so on, as guidance has them:
        the velocities come in the order of the prompts, and what the first block does before it reads them is
        done once.

        `mask` keeps the text's true tokens; instead of both it takes what `read` made of them. `guidance` is
        the scale a distilled model imitates. `residuals` are what a ControlNet adds to the tokens after the
        second block and those that follow. `cache` belongs to the steps of one generation. `rows` is how many
        rows of tokens a block has in hand at a time, all unless given: the same velocity to 1e-5 in float32,
        in less memory, and without gradients.

        Raises:
            ShapeError: a side is no multiple of the patch, the text has another width, or the latents have
                not as many prompts each.
            InputError: guidance is given to a model without that input, or missing where it is needed.
        """
        self._check(latents, text, guidance)
        patch = self.config.patch_size
        grid = Grid(latents.shape[-2] // patch, latents.shape[-1] // patch)
        scaled = None if guidance is None else guidance * self.config.guidance_embedding_scale
        vector, table = self.conditioning(times * self.config.time_scale, scaled)
        prompts = self._prompts(text, mask)
        vector, table = (for_prompts(each, _count(text)) for each in (vector, table))

        def through(x: Tensor, start: int, stop: int) -> Tensor:
            for number in range(start, stop):
                block = self.blocks[number]
                with loaded(block):
                    x = refined(block, x, prompts[number], mask, table, grid, rows)
                if 0 < number <= len(residuals):
                    x = x + residuals[number - 1]
            return x

        last = len(self.blocks) - 1
        # No name here for the tokens as they come: they need not outlive the first block.
        if cache is None or last < 2:
            x = through(self._tokens(latents, grid), 0, last + 1)
        else:
            x = self._tokens(latents, grid)
            first = through(x, 0, 1)
            x = for_prompts(x, len(first))
            x = through(cache.through(x, first, lambda x: through(x, 1, last)), last, last + 1)
        shift, scale = (self.offset + vector.unsqueeze(1)).chunk(2, dim=1)
        parts = (band.of(x) for band in bands_of(grid, rows or grid.height))
        velocity = torch.cat(
            [self.to_velocity(steered(part, shift, scale, NORM_EPS)) for part in parts], dim=1
        )
        return rearrange(
            velocity, "b (h w) (p q c) -> b c (h p) (w q)", h=grid.height, w=grid.width, p=patch, q=patch
        )

    def _tokens(self, latents: Tensor, grid: Grid) -> Tensor:
        tokens: Tensor = self.patchify(latents.to(self.patchify.weight.dtype)).flatten(2).transpose(1, 2)
        if self.config.position == "none":
            return tokens
        return tokens + self._positions(grid, tokens.device).to(tokens)

    def read(
        self, text: Float[Tensor, "b m t"], mask: Bool[Tensor, "b m"] | None = None, *, folds: bool = True
    ) -> PromptReading:
        """What all steps of a generation share of prompts: only the tokens that are there, and those once.

        `folds` lets up to an eighth of the weights' memory be spent on speed (`CrossAttention.read`).

        Raises:
            ShapeError: the text has another width.
        """
        self._check_text(text)
        if mask is None:
            there, counts = text.flatten(0, 1), (text.shape[1],) * len(text)
        else:
            kept = never_empty(mask)
            there, counts = text[kept], tuple(kept.sum(1).tolist())
        prompt = self.prompt_projection(there.to(self.patchify.weight.dtype).unsqueeze(0)).squeeze(0)
        readings = []
        for block in self.blocks:
            assert isinstance(block, Block)
            with loaded(block):
                readings.append(block.cross_attention.read(prompt, counts, folds=folds))
        return PromptReading(tuple(readings))

    def _prompts(self, text: Tensor | PromptReading, mask: Tensor | None) -> Sequence[Tensor | KeyValue]:
        """What each block's cross-attention takes."""
        if not isinstance(text, PromptReading):
            return [self.prompt_projection(text.to(self.patchify.weight.dtype))] * len(self.blocks)
        if mask is not None:
            raise InputError("mask is given beside prompts that were read with theirs. Leave it out.")
        return text.blocks

    def _positions(self, grid: Grid, device: torch.device) -> Tensor:
        base, interpolation = self.config.position_base, self.config.position_interpolation
        return grid_positions(*grid, self.config.width, base=base, interpolation=interpolation, device=device)

    def _check(self, latents: Tensor, text: Tensor | PromptReading, guidance: Tensor | None) -> None:
        config = self.config
        for name, side in zip(("height", "width"), latents.shape[-2:], strict=True):
            check_multiple(f"latent {name}", side, config.patch_size, f"patch_size={config.patch_size}")
        if not isinstance(text, PromptReading):
            self._check_text(text)
        prompts, pictures = _count(text), len(latents)
        if not prompts or not pictures or prompts % pictures:
            raise ShapeError(
                f"there are {prompts} prompts for {pictures} latents. Give each latent one prompt, or as "
                "many as the others."
            )
        if (guidance is None) == config.guidance_embedding:
            if guidance is None:
                raise InputError(
                    "guidance is missing: a model with guidance_embedding needs a scale per picture."
                )
            raise InputError("guidance is given to a model without guidance_embedding. Leave it out.")

    def _check_text(self, text: Tensor) -> None:
        if text.shape[-1] != self.config.text_width:
            raise ShapeError(
                f"the text embeddings have width {text.shape[-1]}, the model takes "
                f"text_width={self.config.text_width}. Use the text encoder the model was trained with."
            )


def _count(text: Tensor | PromptReading) -> int:
    """Of prompts."""
    return len(text.blocks[0].key) if isinstance(text, PromptReading) else len(text)
