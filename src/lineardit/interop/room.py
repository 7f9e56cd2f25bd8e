"""How much of a picture, and which weights, are in memory at a time: as much as a bound leaves room for."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lineardit.autoencoder.model import Autoencoder
from lineardit.config.models import TransformerConfig
from lineardit.interop.bound import Fit, MemoryBound, Steps
from lineardit.kernels.allocator import keep_freed_memory, keeps_freed_memory, return_freed_memory
from lineardit.nn.offload import Offloaded, loaded_bytes, offloaded
from lineardit.transformer.controlnet import ControlNet
from lineardit.transformer.denoiser import DenoiserConfig

LONGEST_PROMPT = 512
"""Tokens, those of SANA's instruction included."""


class Room:
    """The memory that the networks of a model share.

    Each part of drawing asks for its rows before it runs. What it needs then has its room: weights of
    networks that are not at work are forgotten where they are offloaded and do not fit beside it.

    `networks` tells which there are: `transformer` and `autoencoder`, with `text_encoder` and `controlnet`
    where the model has them.
    """

    def __init__(self, networks: Callable[[], Mapping[str, nn.Module]]) -> None:
        self._networks = networks
        self._limited: MemoryBound | None = None
        self._waiting: frozenset[Offloaded] = frozenset()
        self._beside = 0
        self._keep_freed = False
        # Looking for them takes a while, and most models have none.
        self._offloads = any(offloaded(network) for network in networks().values())

    @property
    def is_bounded(self) -> bool:
        """Whether there is a bound at all."""
        return self._limited is not None

    @property
    def _bound(self) -> MemoryBound | None:
        """The bound, beside what is held by now: weights may have been read for good since it was set."""
        if self._limited is None:
            return None
        settled = sum(each.size_bytes for each in self._waiting.difference(self._offloaded()))
        return MemoryBound(self._limited.in_all, self._limited.held + settled)

    def limit(self, bytes_in_all: int | None, *, keep_freed: bool = True) -> None:
        """Stay within so many bytes from now on, what is held by now included; None lifts the bound.

        On a CPU the C library is told to give freed memory back at once (`kernels.allocator`), but between
        steps that have room for its gaps, if `keep_freed` allows that.
        """
        self._keep_freed = keep_freed
        for part in self._offloaded():
            part.forget()
        self._limited = None
        if bytes_in_all is not None:
            if self._device.type == "cpu":
                return_freed_memory()
            self._waiting = frozenset(self._offloaded())
            self._limited = MemoryBound.beside_held(bytes_in_all, self._device)

    def check(
        self, height: int, width: int, *, from_picture: bool, follows_picture: bool, caches: bool
    ) -> None:
        """Whether one picture of (height, width) pixels can be drawn within the bound.

        Raises:
            MemoryLimitError: it cannot, with the least that works.
        """
        bound = self._bound
        if bound is None:
            return
        config = self._networks()["transformer"].config
        fits = [self._reading(bound), self._decoding(bound, height, width)]
        if isinstance(config, DenoiserConfig):
            # With guidance every step sees two pictures.
            pictures = 1 if isinstance(config, TransformerConfig) and config.guidance_embedding else 2
            fits.append(self._denoising(bound, Steps(height, width, pictures, follows_picture, caches)))
        if from_picture or follows_picture:
            fits.append(self._encoding(bound, height, width))
        bound.check(fits, height, width)

    @contextmanager
    def beside_steps(self, shared_bytes: int) -> Iterator[None]:
        """Inside, steps go on that share so many bytes: what else runs meanwhile has that much less."""
        self._beside += shared_bytes
        try:
            yield
        finally:
            self._beside -= shared_bytes

    def make_to_read(self) -> None:
        """Room for the text encoder."""
        self._made_for(self._beside_those(self._reading), self._layers())

    def rows_to_decode(self, height: int, width: int) -> int | None:
        """How many rows of latents are decoded at a time; None is all. Raises as `check`."""
        fit = self._beside_those(lambda bound: self._decoding(bound, height, width))
        return self._rows_of(fit, self._autoencoder.decoder, height, width)

    def rows_to_encode(self, height: int, width: int) -> int | None:
        """The same for encoding."""
        fit = self._beside_those(lambda bound: self._encoding(bound, height, width))
        return self._rows_of(fit, self._autoencoder.encoder, height, width)

    def _beside_those(self, fit: Callable[[MemoryBound], Fit]) -> Fit | None:
        """What fits beside steps that go on, where anything does: a preview must not end them."""
        bound = self._bound
        if bound is None:
            return None
        beside = MemoryBound(bound.in_all, bound.held + self._beside)
        found = fit(beside)
        if found.needed > beside.room:
            return fit(bound)
        return found._replace(needed=found.needed + self._beside)

    def _rows_of(self, fit: Fit | None, half: nn.Module, height: int, width: int) -> int | None:
        if fit is not None and self._bound is not None:
            self._bound.check([fit], height, width)
        return self._made_for(fit, offloaded(half))

    def rows_to_denoise(self, steps: Steps) -> int | None:
        """How many rows of tokens a block has in hand at a time; None is all. Raises as `check`."""
        fit = self._step_fit(steps)
        if fit is not None and self._bound is not None:
            self._bound.check([fit], steps.height, steps.width)
        return self._made_for(fit, self._blocks())

    def folds_prompts(self, steps: Steps) -> bool:
        """Whether there is room for prompts that are folded (`Transformer.read`) beside such steps."""
        fit = self._step_fit(steps)
        return fit is None or fit.folds

    def _step_fit(self, steps: Steps) -> Fit | None:
        """None without a bound, and of a network whose steps nobody has counted (DiT)."""
        bound = self._bound
        if bound is None or not isinstance(self._networks()["transformer"].config, DenoiserConfig):
            return None
        return self._denoising(bound, steps)

    def _reading(self, bound: MemoryBound) -> Fit:
        """Of one prompt: all layers where they fit, or one at a time."""
        layers = [each.size_bytes for each in self._layers()]
        beside = _prompt_bytes(self._networks()["text_encoder"]) if layers else 0
        if sum(layers) + beside <= bound.room:
            return Fit("reading a prompt", None, sum(layers) + beside)
        return Fit("reading a prompt", None, max(layers, default=0) + beside, kept=0)

    def _denoising(self, bound: MemoryBound, steps: Steps) -> Fit:
        config, beside = self._networks()["transformer"].config, self._networks().get("controlnet")
        assert isinstance(config, DenoiserConfig)
        control = beside.config if steps.follows and isinstance(beside, ControlNet) else None
        block = max((each.size_bytes for each in self._blocks()), default=0)
        changed = (each.stored_bytes for each in self._blocks() if each.when_read is not None)
        sides = (side // self._autoencoder.config.stride for side in (steps.height, steps.width))
        given = (config, control, *sides, self._dtype, steps.pictures)
        keeps = self._keep_freed and self._device.type == "cpu"
        weights = {"block": block, "reading": max(changed, default=0)}
        return bound.denoising(*given, **weights, caches=steps.caches, keeps_freed=keeps)

    def _decoding(self, bound: MemoryBound, height: int, width: int) -> Fit:
        weights = _size(self._autoencoder.decoder)
        return bound.decoding(self._autoencoder.config, height, width, self._dtype, weights=weights)

    def _encoding(self, bound: MemoryBound, height: int, width: int) -> Fit:
        weights = _size(self._autoencoder.encoder)
        return bound.encoding(self._autoencoder.config, height, width, self._dtype, weights=weights)

    def _made_for(self, fit: Fit | None, using: Sequence[Offloaded]) -> int | None:
        """Room for what is used next, which keeps its weights as far as they fit; the rows of the fit."""
        others = [each for each in self._offloaded() if each not in using]
        kept = len(using) if fit is None or fit.kept is None else fit.kept
        for each in using[kept:]:
            each.forget()
        in_the_way = (
            fit is None
            or self._bound is None
            or kept < len(using)
            or fit.needed + fit.gaps + loaded_bytes(others) > self._bound.room
        )
        for each in others if in_the_way else []:
            each.forget()
        for each in using[:kept]:
            each.kept = True
        if fit is not None:
            self._keep_or_return(fit.gaps > 0, [each for each in using[:kept] if not each.is_loaded])
        return None if fit is None else fit.rows

    def _keep_or_return(self, keeps: bool, waiting: Sequence[Offloaded]) -> None:
        """Freed memory, from now on; weights that stay must not lie among what comes and goes."""
        if not keeps:
            if keeps_freed_memory() and self._device.type == "cpu":
                return_freed_memory()
        elif waiting or not keeps_freed_memory():
            return_freed_memory()
            for each in waiting:
                with each:
                    pass
            keep_freed_memory()

    @property
    def _autoencoder(self) -> Autoencoder:
        found = self._networks()["autoencoder"]
        assert isinstance(found, Autoencoder)
        return found

    @property
    def _device(self) -> torch.device:
        return next(self._networks()["transformer"].parameters()).device

    @property
    def _dtype(self) -> torch.dtype:
        return next(self._networks()["transformer"].parameters()).dtype

    def _blocks(self) -> list[Offloaded]:
        return offloaded(self._networks()["transformer"]) if self._offloads else []

    def _layers(self) -> list[Offloaded]:
        text = self._networks().get("text_encoder")
        return [] if text is None or not self._offloads else offloaded(text)

    def _offloaded(self) -> list[Offloaded]:
        if not self._offloads:
            return []
        return [part for network in self._networks().values() for part in offloaded(network)]


def _prompt_bytes(text: nn.Module) -> int:
    """What a long prompt takes in Gemma: vectors of a layer, and scores three times and in float32."""
    sizes: Any = text.config
    itemsize = next(text.parameters()).dtype.itemsize
    vectors = LONGEST_PROMPT * (6 * sizes.intermediate_size + 8 * sizes.hidden_size) * itemsize
    return int(vectors + sizes.num_attention_heads * LONGEST_PROMPT**2 * (3 * itemsize + 4))


def _size(half: nn.Module) -> int:
    return sum(each.size_bytes for each in offloaded(half))
