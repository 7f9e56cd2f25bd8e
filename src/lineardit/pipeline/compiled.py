"""Steps and decoding compiled by torch.compile; on a GPU they run as CUDA graphs."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lineardit.autoencoder.model import Autoencoder
from lineardit.kernels import operators, pass_operators
from lineardit.transformer.generation import PromptReading
from lineardit.transformer.model import Transformer

SHAPES = 64
"""Of latents, batches and prompts that are compiled in a process."""


class Compiled:
    """A transformer that is compiled, for each shape anew, when it is called."""

    def __init__(self, transformer: Transformer) -> None:
        device = next(transformer.parameters()).device
        if device.type == "cuda":  # before anything is traced: then it would be too late
            operators.refusal(device, operators.block_of(transformer.config.head_dim))
            pass_operators.refusal(device)
        self._step: Any = torch.compile(transformer, **_options(device))

    def __call__(
        self,
        latents: Float[Tensor, "b c h w"],
        times: Float[Tensor, " b"],
        read: PromptReading,
        guidance: Float[Tensor, " b"] | None,
    ) -> Float[Tensor, "p c h w"]:
        """As `Transformer.forward`, in memory that the next call leaves alone."""
        if not latents.is_cuda:
            velocity: Tensor = self._step(latents, times, read, None, guidance)
            return velocity
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        kept: Tensor = self._step(latents, times, read, None, guidance).clone()
        return kept


def compile_decoder(autoencoder: Autoencoder) -> None:
    """Compile it in place."""
    autoencoder.decoder.compile(**_options(autoencoder.scale.device))


def _options(device: torch.device) -> dict[str, Any]:
    import torch._dynamo  # takes a second, which only those who compile should wait

    # Each shape has a graph of its own; beyond so many they run as they are.
    torch._dynamo.config.recompile_limit = max(SHAPES, torch._dynamo.config.recompile_limit)
    mode = "reduce-overhead" if device.type == "cuda" else None
    return {"dynamic": False, "mode": mode}
