"""What a run would need in many processes, from its recipe alone: nothing is loaded and nothing starts."""

from typing import NamedTuple

import torch
from torch import nn

from lineardit.autoencoder.model import AnyAutoencoderConfig, Autoencoder
from lineardit.config.models import Config
from lineardit.config.runs import LoopConfig, PoolRun, ReconstructionRun
from lineardit.errors import ConfigError, InputError
from lineardit.training.distributed import check_divisible
from lineardit.training.memory import (
    TrainingMemory,
    autoencoder_memory,
    largest_block,
    transformer_memory,
)
from lineardit.transformer.denoiser import denoiser_of


class Plan(NamedTuple):
    """How a run would lie on its machines."""

    nodes: int
    processes: int
    within: int
    """Processes that hold one copy of the state together; 1 where each holds the whole."""
    rows: int
    """Samples of a batch that a process computes at once."""
    accumulate: int
    parameters: int
    memory: TrainingMemory
    """Of one process."""


def plan(run: Config, nodes: int, gpus: int, autoencoder: AnyAutoencoderConfig | None = None) -> Plan:
    """The plan of a recipe on `nodes` machines with `gpus` GPUs each, one process per GPU.

    `autoencoder` is the one that the recipe names, where it names one.

    Raises:
        InputError: a number is not positive, or the recipe is of a kind that is not foreseen.
        ConfigError: the batch or the processes do not divide as the recipe asks.
    """
    for name, number in (("nodes", nodes), ("gpus", gpus)):
        if number < 1:
            raise InputError(f"{name}={number} is not a positive whole number. Use 1 or more.")
    if not isinstance(run, ReconstructionRun | PoolRun):
        raise InputError(
            f"a plan is made for recipes of autoencoders and transformers, not for {type(run).__name__}. "
            "lineardit info PRESET --train tells the memory of the published transformers."
        )
    loop, processes = run.train, nodes * gpus
    check_divisible(loop.batch_size, loop.accumulate, processes)
    within = (loop.shard_within or processes) if loop.parallel == "fsdp" and processes > 1 else 1
    if processes % within:
        raise ConfigError(
            f"train.shard_within={within} does not divide {processes} processes. "
            f"Use a divisor, such as {gpus}."
        )
    rows = loop.batch_size // processes // loop.accumulate
    if isinstance(run, ReconstructionRun):
        shape = run.model or autoencoder
        assert shape is not None, "a recipe has a model or names one"
        memory, model = _of_autoencoder(run, shape, rows)
    else:
        assert autoencoder is not None, "a recipe of a transformer names an autoencoder"
        memory, model = _of_transformer(run, autoencoder.stride, rows)
    if within > 1:
        memory = memory.sharded(within, largest_block(model))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Plan(nodes, processes, within, rows, loop.accumulate, parameters, memory)


def _of_autoencoder(
    run: ReconstructionRun, config: AnyAutoencoderConfig, rows: int
) -> tuple[TrainingMemory, nn.Module]:
    side = run.crop or (run.pictures.size if run.pictures else run.scenes.size)
    memory = autoencoder_memory(
        config,
        run.train,
        rows,
        side,
        side,
        dtype=_floats(run.train),
        checkpointed=run.train.checkpoint_activations,
    )
    with torch.device("meta"):
        return memory, Autoencoder(config)


def _of_transformer(run: PoolRun, stride: int, rows: int) -> tuple[TrainingMemory, nn.Module]:
    side = run.scenes.size // stride
    memory = transformer_memory(
        run.model,
        run.train,
        rows,
        side,
        side,
        dtype=_floats(run.train),
        checkpointed=run.train.checkpoint_activations,
    )
    with torch.device("meta"):
        return memory, denoiser_of(run.model)


def _floats(loop: LoopConfig) -> str:
    return "bf16" if loop.dtype == "auto" else loop.dtype
