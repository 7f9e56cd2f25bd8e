"""A bound on the memory that drawing takes, and the bands of rows in which it is kept."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from lineardit.autoencoder.model import AnyAutoencoderConfig
from lineardit.config.models import TransformerConfig
from lineardit.errors import MemoryLimitError
from lineardit.interop.memory import decoder_bytes, encoder_bytes, transformer_bytes
from lineardit.kernels.allocator import resident_bytes
from lineardit.transformer.denoiser import DenoiserConfig

UNTOLD = 0.03
"""Of a bound: what libraries take inside a product is not counted, and was at most that where measured."""


class Steps(NamedTuple):
    """What the steps of one generation see, as far as memory goes."""

    height: int
    """Of the picture, in pixels."""
    width: int
    pictures: int
    """At a time, those without the prompt included."""
    follows: bool = False
    """Whether a ControlNet runs beside the network."""
    caches: bool = False
    """As in `transformer_bytes`."""


class Fit(NamedTuple):
    """In how many rows at a time a part of drawing runs, and what it takes then."""

    part: str
    """What is done, as errors call it."""
    rows: int | None
    """None is all of them."""
    needed: int
    """Bytes beside what is held before: the weights that are read for it included."""
    kept: int | None = None
    """How many blocks keep their weights from step to step, where not all (None) do."""
    folds: bool = False
    """Whether there is room for prompts that are folded (`Transformer.read`)."""
    gaps: int = 0
    """More bytes, for the gaps that freed memory leaves where it is kept; 0 where it is given back."""


def tallest(part: str, needed: Callable[[int | None], int], height: int, room: int) -> Fit:
    """The tallest bands of `height` rows that need at most `room` bytes, or those of least need.

    Heights are the whole, its half, the half of that, and so on.
    """
    best = Fit(part, None, needed(None))
    rows = height
    while best.needed > room and rows > 1:
        rows = -(-rows // 2)
        tried = Fit(part, rows, needed(rows))
        best = min(best, tried, key=lambda fit: fit.needed)
    return best


@dataclass(frozen=True)
class MemoryBound:
    """So many bytes, of which some are held before anything is drawn."""

    in_all: int
    held: int
    """Weights included, but for offloaded ones."""

    @classmethod
    def beside_held(cls, in_all: int, device: torch.device) -> "MemoryBound":
        """Of this process as it is now, or of what its tensors take on a GPU."""
        held = torch.cuda.memory_allocated(device) if device.type == "cuda" else resident_bytes()
        return cls(in_all, held or 0)

    @property
    def room(self) -> int:
        """Bytes that drawing may take, as far as they are told."""
        return int(self.in_all * (1 - UNTOLD)) - self.held

    def denoising(
        self,
        config: DenoiserConfig,
        control: TransformerConfig | None,
        height: int,
        width: int,
        dtype: torch.dtype,
        pictures: int,
        *,
        block: int = 0,
        reading: int = 0,
        caches: bool = False,
        keeps_freed: bool = False,
    ) -> Fit:
        """Of a step with so many pictures of (height, width) latents, those without the prompt included.

        `control` is the configuration of a ControlNet that runs beside it. Where blocks are offloaded
        (`nn.offload`), the weights of one take `block` bytes, and `reading` more while they are changed
        (`nn.int8`). `caches` is as in `transformer_bytes`.

        Room goes to what saves most time. Where freed memory may be kept (`kernels.allocator`), first to its
        gaps, as large as what comes and goes: fresh pages cost a step more than reading a few blocks anew.
        Then to the weights of all blocks, to folded prompts, and to tall bands.
        """

        def needed(rows: int | None, *, folds: bool = False) -> int:
            given = (config, height, width, dtype, pictures)
            return transformer_bytes(*given, rows=rows, control=control, folds=folds, caches=caches)

        if not isinstance(config, TransformerConfig):  # the article's network has no bands
            return Fit("a step", None, needed(None, folds=True), folds=True)
        rows, blocks = height // config.patch_size, config.depth * block + reading
        hand = block + reading
        folded, plain = needed(None, folds=True), needed(None)
        for folds, work in ((True, folded), (False, plain)) if keeps_freed else ():
            if 2 * work + blocks <= self.room:
                return Fit("a step", None, work + blocks, folds=folds, gaps=work)
        one = plain + hand  # which comes and goes, too
        if keeps_freed and block and 2 * one <= self.room:
            return Fit("a step", None, one, (self.room - 2 * one) // block, gaps=one)
        if folded + blocks <= self.room:
            return Fit("a step", None, folded + blocks, folds=True)
        all_kept = tallest("a step", needed, rows, self.room - blocks)
        if not block or all_kept.needed + blocks <= self.room:
            return all_kept._replace(needed=all_kept.needed + blocks)
        # One block is in hand, and those keep their weights that fit beside.
        found = tallest("a step", needed, rows, self.room - hand)
        least = found.needed + hand
        return found._replace(needed=least, kept=max(0, self.room - least) // block)

    def decoding(
        self, config: AnyAutoencoderConfig, height: int, width: int, dtype: torch.dtype, *, weights: int = 0
    ) -> Fit:
        """Of one picture of (height, width) pixels; `weights` are those of an offloaded decoder."""

        def needed(rows: int | None) -> int:
            return weights + decoder_bytes(config, height, width, dtype, rows)

        return tallest("decoding", needed, height // config.stride, self.room)

    def encoding(
        self, config: AnyAutoencoderConfig, height: int, width: int, dtype: torch.dtype, *, weights: int = 0
    ) -> Fit:
        """Of one picture of (height, width) pixels; `weights` are those of an offloaded encoder."""

        def needed(rows: int | None) -> int:
            return weights + encoder_bytes(config, height, width, dtype, rows)

        return tallest("encoding", needed, height // config.stride, self.room)

    def check(self, fits: list[Fit], height: int, width: int) -> None:
        """Raises `MemoryLimitError`, with the least that works, where a part does not fit."""
        most = max(fits, key=lambda fit: fit.needed)
        if most.needed > self.room:
            raise MemoryLimitError(
                f"memory={_said(self.in_all)} is not enough: {_said(self.held)} are held, "
                f"and {most.part} at {width} x {height} pixels takes at least {_said(most.needed)} more. "
                f"Allow {_said(math.ceil((most.needed + self.held) / (1 - UNTOLD)))}, or draw fewer pixels."
            )


def _said(count: int) -> str:
    """Rounded up, so that what is said suffices."""
    if count < 10**9:
        return f"{-(-count // 10**6)} MB"
    return f"{-(-count // 10**7) / 100:.2f} GB"
