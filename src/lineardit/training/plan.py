"""What a run would need in many processes, from its recipe and the headers of what it names: no weights are
read, and nothing starts."""

from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lineardit.autoencoder.model import AnyAutoencoderConfig, Autoencoder
from lineardit.config.classes import ClassRun
from lineardit.config.finetune import FinetuneRun
from lineardit.config.models import Config, LatentsConfig, TransformerConfig
from lineardit.config.runs import LoopConfig, PoolRun, ReconstructionRun
from lineardit.data.prepared import INDEX, PreparedData
from lineardit.errors import ConfigError, InputError
from lineardit.interop.bundled import bundled_folder, folder_named
from lineardit.interop.place import Place
from lineardit.interop.places import open_place
from lineardit.training.adapter import fresh_adapter
from lineardit.training.adversarial import PatchDiscriminator, fooling_loss
from lineardit.training.distributed import check_divisible
from lineardit.training.memory import (
    FLOAT,
    PROMPT_TOKENS,
    TrainingMemory,
    autoencoder_memory,
    dit_memory,
    largest_block,
    transformer_memory,
)
from lineardit.training.perceptual import perceptual_distance
from lineardit.transformer.denoiser import denoiser_of
from lineardit.transformer.dit import dit_of
from lineardit.transformer.model import Transformer


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

    `autoencoder` stands for the one that the recipe names, which need not be there then.

    Raises:
        InputError: a number is not positive, or the recipe trains what fits anywhere.
        ConfigError: the batch or the processes do not divide as the recipe asks.
        CheckpointError: a model or prepared data that the recipe names is not there.
    """
    for name, number in (("nodes", nodes), ("gpus", gpus)):
        if number < 1:
            raise InputError(f"{name}={number} is not a positive whole number. Use 1 or more.")
    if not isinstance(run, ReconstructionRun | PoolRun | ClassRun | FinetuneRun):
        raise InputError(
            f'a recipe of kind="{getattr(run, "kind", type(run).__name__)}" trains a small network that fits '
            "any machine: there is nothing to plan. Leave --plan out and start it."
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
        memory, model = _of_autoencoder(run, autoencoder or run.model or _autoencoder_in(run.start), rows)
    elif isinstance(run, FinetuneRun):
        memory, model = _of_finetune(run, rows)
    elif isinstance(run, ClassRun):
        memory, model = _of_classes(run, autoencoder or _autoencoder_in(run.autoencoder), rows)
    else:
        memory, model = _of_transformer(run, autoencoder or _autoencoder_in(run.autoencoder), rows)
    if within > 1:
        memory = memory.sharded(within, largest_block(model))
    parameters = sum(each.numel() for each in model.parameters() if each.requires_grad)
    return Plan(nodes, processes, within, rows, loop.accumulate, parameters, memory)


def _of_autoencoder(
    run: ReconstructionRun, config: AnyAutoencoderConfig, rows: int
) -> tuple[TrainingMemory, nn.Module]:
    """With its perceptual loss and its second player, where the recipe has them."""
    side = run.crop or (run.pictures.size if run.pictures else run.scenes.size)
    distance = perceptual_distance(run.loss.lpips) if run.loss.perceptual else None
    adversarial = run.loss.adversarial
    judge = PatchDiscriminator(adversarial.width, adversarial.depth) if adversarial.weight else None

    def further(made: Tensor, images: Tensor) -> Tensor:
        value = made.new_zeros(())
        if distance is not None:
            value = value + distance(made, images).mean()
        if judge is not None:
            value = value + fooling_loss(judge, made)
        return value

    beside = sum(_bytes(each) for each in (distance, judge) if each is not None)
    if judge is not None:
        beside += 3 * _bytes(judge)  # its gradients and the moments of AdamW
        judge.requires_grad_(False)
    memory = autoencoder_memory(
        config, run.train, rows, side, side, **_precision(run.train), further=further, learns=run.learns
    )
    with torch.device("meta"):
        return replace(memory, beside=beside), Autoencoder(config)


def _of_transformer(
    run: PoolRun, autoencoder: AnyAutoencoderConfig, rows: int
) -> tuple[TrainingMemory, nn.Module]:
    side = run.scenes.size // autoencoder.stride
    memory = transformer_memory(run.model, run.train, rows, side, side, **_precision(run.train))
    with torch.device("meta"):
        return memory, denoiser_of(run.model)


def _of_classes(
    run: ClassRun, autoencoder: AnyAutoencoderConfig, rows: int
) -> tuple[TrainingMemory, nn.Module]:
    sides, classes = (run.scenes.size,) * 2, run.scenes.objects
    if run.data is not None:
        data = PreparedData(run.data)
        sides, classes = _largest(data), max(1, len(data.classes))
    config = run.model.shape(autoencoder.latent_channels, classes)
    latents = (side // autoencoder.stride for side in sides)
    memory = dit_memory(config, run.train, rows, *latents, **_precision(run.train))
    with torch.device("meta"):
        return memory, dit_of(config)


def _of_finetune(run: FinetuneRun, rows: int) -> tuple[TrainingMemory, nn.Module]:
    """In the size of the largest pictures, or in the model's own where none are prepared yet."""
    place = open_place(bundled_folder() if run.base is None else run.base)
    if place.missing:
        raise ConfigError(
            f"base={run.base}: it holds no {', no '.join(place.missing)}. Give the folder of a whole model."
        )
    config, autoencoder = (place.networks[name].config for name in ("transformer", "autoencoder"))
    if not isinstance(config, TransformerConfig) or not isinstance(autoencoder, LatentsConfig):
        raise ConfigError(f"base={run.base} is no SANA, which is what is fine-tuned here.")
    size = int(place.sampling.get("size", config.position_base * config.patch_size * autoencoder.stride))
    sides = _largest(PreparedData(run.data)) if (run.data / INDEX).is_file() else (size, size)

    def learner(model: nn.Module) -> nn.Module:
        assert isinstance(model, Transformer)
        return model if run.method == "full" else fresh_adapter(run, model)

    memory = transformer_memory(
        config,
        run.train,
        2 * rows if run.prior is not None else rows,  # as many pictures again, which the model drew before
        *(side // autoencoder.stride for side in sides),
        **_precision(run.train),
        prompt_tokens=_prompt_tokens(place),
        learner=learner,
    )
    beside = sum(
        FLOAT * prod(each.shape)
        for name, network in place.networks.items()
        if name in ("autoencoder", "text_encoder")
        for each in network.tensors.stored.values()
    )
    beside += int(getattr(place.text, "size_bytes", 0))
    if run.prior is not None and run.prior.target == "velocity" and run.method == "full":
        beside += memory.weights
    transformer = Transformer(config)
    return replace(memory, beside=memory.beside + beside), learner(transformer)


def _autoencoder_in(place: Path | None) -> AnyAutoencoderConfig:
    """The shape of the autoencoder in a place that a recipe names."""
    assert place is not None, "a recipe has a model or names one"
    network = open_place(folder_named(place)).networks.get("autoencoder")
    if network is None or not isinstance(network.config, AnyAutoencoderConfig):
        raise InputError(f"{place} holds no autoencoder, of which the plan needs the shape.")
    return network.config


def _largest(data: PreparedData) -> tuple[int, int]:
    """Height and width of the largest pictures."""
    bucket = max(data.buckets, key=lambda each: each.height * each.width)
    return bucket.height, bucket.width


def _prompt_tokens(place: Place) -> int:
    """The most that the text encoder gives."""
    text = place.networks["text_encoder"].config if "text_encoder" in place.networks else None
    return int(getattr(text, "max_tokens", PROMPT_TOKENS))


def _bytes(model: nn.Module) -> int:
    return FLOAT * sum(each.numel() for each in (*model.parameters(), *model.buffers()))


def _precision(loop: LoopConfig) -> dict[str, Any]:
    floats = "bf16" if loop.dtype == "auto" else loop.dtype
    return {"dtype": floats, "checkpointed": loop.checkpoint_activations}
