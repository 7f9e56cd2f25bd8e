"""The shape of PixArt-alpha (arXiv:2310.00426) from our own layers, to be counted and timed."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from lineardit.nn.attention import CrossAttention, SoftmaxSelfAttention
from lineardit.nn.embedding import ScalarEmbedding, grid_positions
from lineardit.nn.feed_forward import MLP
from lineardit.nn.wide import Linear
from lineardit.transformer.block import NORM_EPS, Grid, Modulation

LATENT_CHANNELS = 4
MLP_RATIO = 4


class PixArtLike(nn.Module):
    """Softmax attention, cross-attention in every block, an MLP, adaLN-single; noise and variance out.

    Leaves out the size and aspect-ratio embeddings of the 1024 px weights: 0.5M parameters.
    """

    def __init__(
        self, depth: int = 28, width: int = 1152, head_dim: int = 72, text_width: int = 4096, patch: int = 2
    ) -> None:
        super().__init__()
        self.width, self.patch = width, patch
        self.patchify = nn.Conv2d(LATENT_CHANNELS, width, patch, stride=patch)
        self.time = ScalarEmbedding(width)
        self.to_table = Linear(width, 6 * width)
        self.prompt = _Prompt(text_width, width)
        self.blocks = nn.ModuleList(_Block(width, head_dim) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS, elementwise_affine=False)
        self.offset = nn.Parameter(torch.zeros(2, width))
        self.to_noise = Linear(width, patch**2 * 2 * LATENT_CHANNELS)

    def forward(
        self,
        latents: Float[Tensor, "b c h w"],
        times: Float[Tensor, " b"],
        text: Float[Tensor, "b m t"],
    ) -> Float[Tensor, "b out h w"]:
        """Noise, then variance."""
        patch = self.patch
        grid = Grid(latents.shape[-2] // patch, latents.shape[-1] // patch)
        x = self.patchify(latents).flatten(2).transpose(1, 2)
        x = x + grid_positions(*grid, self.width, base=max(grid)).to(x)
        vector = self.time(times)
        table = self.to_table(functional.silu(vector)).unflatten(-1, (6, -1))
        prompt = self.prompt(text)
        for block in self.blocks:
            x = block(x, prompt, table)
        shift, scale = (self.offset + vector.unsqueeze(1)).chunk(2, dim=1)
        noise = self.to_noise(self.norm(x) * (1 + scale) + shift)
        return rearrange(noise, "b (h w) (p q c) -> b c (h p) (w q)", h=grid.height, p=patch, q=patch)


class _Prompt(nn.Sequential):
    def __init__(self, text_width: int, width: int) -> None:
        super().__init__(Linear(text_width, width), nn.GELU("tanh"), Linear(width, width))


class _Block(nn.Module):
    def __init__(self, width: int, head_dim: int) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(6, width))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS, elementwise_affine=False)
        self.attention = SoftmaxSelfAttention(width, head_dim)
        self.cross_attention = CrossAttention(width, head_dim)
        self.feed_forward = MLP(width, MLP_RATIO * width)

    def forward(self, x: Tensor, prompt: Tensor, table: Tensor) -> Tensor:
        first, last = Modulation.pair(self.offset + table)
        x = x + first.gate * self.attention(first.steer(self.norm(x)))
        x = x + self.cross_attention(x, prompt)
        return x + last.gate * self.feed_forward(last.steer(self.norm(x)))
