"""How much memory a training step takes: counted by running it on tensors that have shapes and no numbers.

What autograd keeps, casts of weights to half precision and temporaries included, follows from the code of the
network as it is; nothing is estimated by hand but what the optimizer keeps per weight. Kernels that need room
of their own, allocators that leave gaps, and the CUDA context (about 0.5 GB) come on top.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from lineardit.autoencoder.model import AnyAutoencoderConfig, Autoencoder
from lineardit.config.dit import DiTConfig
from lineardit.config.models import TransformerConfig
from lineardit.config.reconstruction import Learns
from lineardit.config.runs import OptimizerConfig
from lineardit.kernels.select import DTYPES
from lineardit.training.came import IN_HAND
from lineardit.training.optimizer import block_matrices
from lineardit.training.parallel import blocks_of, checkpoint_blocks
from lineardit.training.reconstruction import learn_only
from lineardit.transformer.denoiser import DenoiserConfig, denoiser_of
from lineardit.transformer.dit import dit_of

PROMPT_TOKENS = 300
"""Of the published models' prompts."""
FLOAT = 4
"""Bytes of the numbers that weights, gradients, moments and averages are kept in."""
_FEW = (2, 3)
"""Blocks of SANA that are run; what each further one adds is the difference of the two."""


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes that one process needs at once."""

    weights: int
    gradients: int
    moments: int
    """What the optimizer keeps."""
    average: int
    working: int
    """What a step needs beyond these at its peak: activations and weights in half precision on the way back,
    or what the optimizer computes with, whichever is more."""
    gathered: int = 0
    """Under FSDP: the weights of two blocks and the gradient of one, whole."""
    beside: int = 0
    """What lies beside the network that learns: those that encode, and those that it is compared with."""

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, field.name) for field in fields(self))

    def sharded(self, within: int, largest_block: int) -> "TrainingMemory":
        """The same step where `within` processes share every tensor; `largest_block` is in bytes."""
        state = (self.weights, self.gradients, self.moments, self.average)
        weights, gradients, moments, average = (-(-each // within) for each in state)
        gathered = 3 * largest_block
        return TrainingMemory(weights, gradients, moments, average, self.working, gathered, self.beside)


def transformer_memory(
    config: DenoiserConfig,
    optimizer: OptimizerConfig,
    batch: int,
    height: int,
    width: int,
    *,
    dtype: str = "bf16",
    checkpointed: bool = False,
    device: str = "cuda",
    prompt_tokens: int = PROMPT_TOKENS,
    learner: Callable[[nn.Module], nn.Module] | None = None,
) -> TrainingMemory:
    """Of one step on `batch` latents of (height, width), `device` choosing between attention kernels.

    `learner` makes of the transformer what learns instead of it, such as a LoRA; the rest of the transformer
    then lies beside.
    """

    def step_of(depth: int) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
        def loss(model: nn.Module) -> Tensor:
            latents = torch.empty(batch, config.latent_channels, height, width)
            text = torch.empty(batch, prompt_tokens, config.text_width)
            mask = torch.ones(batch, prompt_tokens, dtype=torch.bool)
            predicted = model(latents, times, text, mask, *guidance)
            return (predicted.float() - torch.empty_like(latents)).square().mean()

        embedded = isinstance(config, TransformerConfig) and config.guidance_embedding
        guidance = [torch.empty(batch)] if embedded else []
        times = torch.empty(batch) if isinstance(config, TransformerConfig) else torch.zeros(batch).long()
        model = denoiser_of(config.model_copy(update={"depth": depth}))
        return (model if learner is None else learner(model)), loss

    fewer = (
        _FEW
        if isinstance(config, TransformerConfig)
        else tuple(number * config.cross_attention_every for number in (1, 2))
    )
    few, more = (_activations(partial(step_of, depth), dtype, checkpointed, device) for depth in fewer)
    further = (config.depth - fewer[0]) / (fewer[1] - fewer[0])
    activations = math.ceil(few + further * (more - few))
    activations = max(activations, more if config.depth > fewer[0] else few)
    with FakeTensorMode():
        model = denoiser_of(config)
        learns = model if learner is None else learner(model)
        memory = _memory(learns, optimizer, activations, device)
        own = {id(parameter) for parameter in learns.parameters()}
        frozen = sum(each.numel() for each in model.parameters() if id(each) not in own)
    return replace(memory, beside=FLOAT * frozen)


def dit_memory(
    config: DiTConfig,
    optimizer: OptimizerConfig,
    batch: int,
    height: int,
    width: int,
    *,
    dtype: str = "bf16",
    checkpointed: bool = False,
    device: str = "cuda",
) -> TrainingMemory:
    """Of one step on `batch` latents of (height, width) with their classes."""
    channels = config.input_dim // config.patch_size**2

    def step_of(depth: int) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
        def loss(model: nn.Module) -> Tensor:
            latents = torch.empty(batch, channels, height, width)
            labels = None if config.num_classes is None else numbers
            predicted = model(latents, numbers, labels)[:, :channels]
            return (predicted.float() - torch.empty_like(latents)).square().mean()

        numbers = torch.zeros(batch, dtype=torch.int64)
        return dit_of(config.model_copy(update={"num_layers": depth})), loss

    few, more = (_activations(partial(step_of, depth), dtype, checkpointed, device) for depth in _FEW)
    activations = few + (config.num_layers - _FEW[0]) * (more - few)
    with torch.device("meta"):
        model = dit_of(config)
    return _memory(model, optimizer, max(activations, more if config.num_layers > _FEW[0] else few), device)


def autoencoder_memory(
    config: AnyAutoencoderConfig,
    optimizer: OptimizerConfig,
    batch: int,
    height: int,
    width: int,
    *,
    dtype: str = "bf16",
    checkpointed: bool = False,
    device: str = "cuda",
    further: Callable[[Tensor, Tensor], Tensor] | None = None,
    learns: Learns = "all",
) -> TrainingMemory:
    """Of one step on `batch` pictures of (height, width) pixels, with the mean absolute error as its loss.

    `further` is a loss of (reconstructions, pictures) that is added; `learns` says which part learns.
    """

    def step() -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
        def loss(model: nn.Module) -> Tensor:
            images = torch.empty(batch, 3, height, width)
            made = model(images).float()
            value = (made - images).abs().mean()
            return value if further is None else value + further(made, images)

        model = Autoencoder(config)
        learn_only(model, learns)
        return model, loss

    activations = _activations(step, dtype, checkpointed, device)
    with torch.device("meta"):
        model = Autoencoder(config)
        learn_only(model, learns)
    return _memory(model, optimizer, activations, device)


def largest_block(model: nn.Module) -> int:
    """Bytes of the weights that FSDP gathers together at most: of a block, or of all that is in none."""
    sizes = [sum(p.numel() for p in block.parameters()) for block in blocks_of(model)]
    outside = sum(p.numel() for p in model.parameters()) - sum(sizes)
    return FLOAT * max([outside, *sizes])


def peak_bytes(run: Callable[[], Any]) -> int:
    """Most bytes of the tensors that `run` makes and that live at once, be they with numbers or without."""
    live = _Live()
    with live:
        run()
    return live.peak


def moment_bytes(model: nn.Module, optimizer: OptimizerConfig) -> int:
    """What the optimizer keeps, from the shapes of the weights that learn."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    in_blocks = block_matrices(model, trained) if optimizer.optimizer == "muon" else {}

    def of(name: str, parameter: Tensor) -> int:
        count, rows = parameter.numel(), len(parameter) if parameter.ndim else 1
        match optimizer.optimizer:
            case "came" if parameter.ndim > 1 and min(rows, count // rows) > 1:
                return FLOAT * (count + 2 * (rows + count // rows))
            case "adamw8bit" if count >= 4096:
                return 2 * count + 2 * FLOAT * -(-count // 256)  # a scale for each 256 numbers
            case "muon" if name in in_blocks:
                return FLOAT * count
        return 2 * FLOAT * count

    return sum(of(name, parameter) for name, parameter in trained.items())


def _memory(model: nn.Module, optimizer: OptimizerConfig, activations: int, device: str) -> TrainingMemory:
    weights = FLOAT * sum(parameter.numel() for parameter in model.parameters())
    gradients = FLOAT * sum(p.numel() for p in model.parameters() if p.requires_grad)
    # While weights are updated, the activations are gone. On a GPU the roots of all second moments are there.
    updating = gradients if optimizer.optimizer in ("adamw", "muon") and device != "cpu" else 0
    if optimizer.optimizer == "came":
        updating = IN_HAND * FLOAT * max(p.numel() for p in model.parameters() if p.requires_grad)
    return TrainingMemory(
        weights, gradients, moment_bytes(model, optimizer), weights, max(activations, updating)
    )


def _activations(
    step: Callable[[], tuple[nn.Module, Callable[[nn.Module], Tensor]]],
    dtype: str,
    checkpointed: bool,
    device: str,
) -> int:
    """Peak of a forward and backward pass beyond the gradients that are left."""
    # Fused attention is what a GPU runs; the training loop asks for plain products on a CPU.
    attention = sdpa_kernel(SDPBackend.MATH) if device == "cpu" else nullcontext()
    cast = torch.autocast("cpu", DTYPES[dtype]) if dtype != "fp32" else nullcontext()
    with FakeTensorMode(allow_non_fake_inputs=True):
        model, loss = step()
        if checkpointed:
            checkpoint_blocks(model)

        def run() -> None:
            with attention:
                with cast:
                    value = loss(model)
                torch.autograd.backward(value)

        peak = peak_bytes(run)
        gradients = FLOAT * sum(p.numel() for p in model.parameters() if p.requires_grad)
    return max(0, peak - gradients)


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of storages from the operation that makes them until they are freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._seen: Any = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        known = {id(each.untyped_storage()) for each in tree_leaves((args, kwargs)) if _has_storage(each)}
        out = func(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if _has_storage(each) and id(each.untyped_storage()) not in known:
                self._note(each.untyped_storage())
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        size = storage.nbytes()
        self._seen[storage] = _Counted(self, size)
        self.now += size
        self.peak = max(self.peak, self.now)


class _Counted:
    """Dies with the storage it was noted for, and takes its bytes off the count."""

    def __init__(self, live: _Live, size: int) -> None:
        self._live, self._size = live, size

    def __del__(self) -> None:
        self._live.now -= self._size


def _has_storage(each: Any) -> bool:
    return isinstance(each, Tensor) and each.layout == torch.strided
