"""ControlNet for SANA (arXiv:2302.05543): a copy of the first blocks that sees a second picture."""

import math

from jaxtyping import Bool, Float
from torch import Tensor, nn

from lineardit.config.models import TransformerConfig
from lineardit.errors import ConfigError
from lineardit.nn.wide import Conv2d, Linear
from lineardit.transformer.bands import refined
from lineardit.transformer.block import Block, Grid
from lineardit.transformer.model import PromptProjection, TimeConditioning, Transformer


class ControlNet(nn.Module):
    """What a picture of edges, depth or poses adds after each of a transformer's blocks from the second on.

    Both ways in and out of it start at zero: a new one changes nothing.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        if config.qk_norm or config.guidance_embedding or config.position != "none":
            raise ConfigError(
                "a ControlNet has no qk_norm, no guidance_embedding and position='none', as published."
            )
        self.config = config
        patch = config.patch_size
        self.patchify = Conv2d(config.latent_channels, config.width, patch, stride=patch)
        self.conditioning = TimeConditioning(config)
        self.prompt_projection = PromptProjection(config)
        self.control_in = Linear(config.width, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.outs = nn.ModuleList(Linear(config.width, config.width) for _ in range(config.depth))
        for block in self.blocks:
            nn.init.normal_(block.get_parameter("offset"), std=1 / math.sqrt(config.width))
        for layer in (self.control_in, *self.outs):
            nn.init.zeros_(layer.get_parameter("weight"))
            nn.init.zeros_(layer.get_parameter("bias"))

    @classmethod
    def beside(cls, transformer: Transformer, depth: int = 7) -> "ControlNet":
        """A new one that starts as the first `depth` blocks of a transformer, 7 as published.

        Raises:
            ConfigError: the transformer has fewer blocks than that, or options that no ControlNet has.
        """
        if depth >= transformer.config.depth:
            raise ConfigError(
                f"depth={depth} is not less than the transformer's {transformer.config.depth} blocks: "
                "what the last block adds would go nowhere."
            )
        config = TransformerConfig(**transformer.config.model_dump() | {"depth": depth})
        network = cls(config)
        copied = {
            name: tensor
            for name, tensor in transformer.state_dict().items()
            if name in network.state_dict() and not name.startswith(("control_in.", "outs."))
        }
        network.load_state_dict(network.state_dict() | copied)
        return network

    def forward(
        self,
        latents: Float[Tensor, "b c h w"],
        times: Float[Tensor, " b"],
        text: Float[Tensor, "b m t"],
        control: Float[Tensor, "b c h w"],
        mask: Bool[Tensor, "b m"] | None = None,
        scale: float = 1.0,
        rows: int | None = None,
    ) -> list[Float[Tensor, "b n d"]]:
        """`residuals` for the transformer; `control` is the second picture as the autoencoder encodes it.

        `rows` as in the transformer.
        """
        patch = self.config.patch_size
        grid = Grid(latents.shape[-2] // patch, latents.shape[-1] // patch)
        dtype = self.patchify.weight.dtype
        x = self._tokens(latents.to(dtype)) + self.control_in(self._tokens(control.to(dtype)))
        _, table = self.conditioning(times * self.config.time_scale, None)
        prompt = self.prompt_projection(text.to(dtype))
        residuals = []
        for block, out in zip(self.blocks, self.outs, strict=True):
            x = refined(block, x, prompt, mask, table, grid, rows)
            residuals.append(out(x) * scale)
        return residuals

    def _tokens(self, latents: Tensor) -> Tensor:
        tokens: Tensor = self.patchify(latents).flatten(2).transpose(1, 2)
        return tokens
