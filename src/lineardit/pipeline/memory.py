"""A bound on the memory that drawing takes, and what fits below it."""

from dataclasses import dataclass

import torch

from lineardit.config.models import AutoencoderConfig, TransformerConfig
from lineardit.errors import InputError
from lineardit.interop.memory import decoder_rows, transformer_bytes
from lineardit.kernels.allocator import resident_bytes


@dataclass(frozen=True)
class MemoryBound:
    """So many bytes, of which some are held before anything is drawn."""

    in_all: int
    held: int
    """Weights included."""

    @classmethod
    def beside_held(cls, in_all: int, device: torch.device) -> "MemoryBound":
        """Of this process as it is now. Raises `InputError` where it holds more than that already."""
        held = torch.cuda.memory_allocated(device) if device.type == "cuda" else resident_bytes()
        bound = cls(in_all, held or 0)
        if bound.room <= 0:
            raise InputError(
                f"memory={in_all / 1e9:.2f} GB is less than the {bound.held / 1e9:.2f} GB that are "
                "held already, weights included. Allow more, or load the model in bf16."
            )
        return bound

    @property
    def room(self) -> int:
        """Bytes that drawing may take."""
        return self.in_all - self.held

    def decoder_rows(
        self, config: AutoencoderConfig, height: int, width: int, dtype: torch.dtype
    ) -> int | None:
        """Rows of latents that are decoded at a time; None is all. Raises `InputError` where none fits."""
        return decoder_rows(config, height, width, dtype, self.room)

    def check(
        self,
        transformer: TransformerConfig,
        autoencoder: AutoencoderConfig,
        height: int,
        width: int,
        dtype: torch.dtype,
    ) -> None:
        """Raises `InputError` where a picture of (height, width) pixels cannot be drawn within the bound."""
        self.decoder_rows(autoencoder, height, width, dtype)
        stride = autoencoder.stride
        needed = transformer_bytes(transformer, height // stride, width // stride, dtype)
        if needed > self.room:
            raise InputError(
                f"a step at {width} x {height} pixels takes {needed / 1e9:.2f} GB beside the "
                f"{self.held / 1e9:.2f} GB that are held. Allow {(needed + self.held) / 1e9 + 0.01:.2f} GB."
            )
