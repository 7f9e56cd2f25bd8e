"""Tables of what training needs: `lineardit train --plan` and `lineardit info TARGET --train`."""

import json
import sys
from dataclasses import asdict
from typing import Any

from lineardit.config.article import ArticleAutoencoderConfig, ArticleConfig
from lineardit.config.dit import DITS, DiTConfig, LinearDiTConfig, SoftmaxDiTConfig
from lineardit.config.files import Recipe
from lineardit.config.models import AutoencoderConfig, Config, LatentsConfig, TransformerConfig
from lineardit.config.runs import OptimizerConfig
from lineardit.errors import InputError

GPUS = (12, 16, 24, 40, 48, 80, 96, 141, 192)
"""Gigabytes of memory that GPUs come with."""
CONTEXT = 500_000_000
"""Bytes of a GPU that CUDA itself takes."""
BATCHES = (1, 4, 16)
"""Pictures per GPU that `info --train` tells about unless one number is asked for."""
STRIDE = 32
"""Pixels per latent of the autoencoders that SANA was published with."""
STRIDES = {LinearDiTConfig: 8, SoftmaxDiTConfig: 8}
"""The same of others: DiT was published with the autoencoder of Stable Diffusion."""


def print_plan(run: Recipe, nodes: int, gpus: int) -> None:
    """What each process of a run would hold, and how the batch would be divided."""
    from rich.console import Console

    from lineardit.training.plan import plan

    made = plan(run, nodes, gpus)
    loop = run.train
    copies = made.processes // made.within
    holds = "the whole state" if made.within == 1 else f"1/{made.within} of every tensor"
    lines = [
        f"{made.processes} processes on {made.nodes} machines with {gpus} GPUs each: "
        f"{loop.parallel if made.processes > 1 else 'no sharding'}, each holds {holds}"
        + (f", {copies} copies in all" if copies > 1 else ""),
        f"batch of {loop.batch_size} = {made.processes} processes x {made.accumulate} parts one after the "
        f"other x {made.rows} samples at once",
        f"{made.parameters:,} weights, {loop.optimizer}, {loop.dtype}, activations "
        + ("computed again" if loop.checkpoint_activations else "kept"),
    ]
    console = Console()
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
    console.print(_table("", [("per GPU", made.memory)]))
    smallest = next((size for size in GPUS if made.memory.total + CONTEXT < size * 1e9), None)
    if not made.memory.beside:
        console.print("the networks that encode what is learned from are not counted", highlight=False)
    fits = f"fits a GPU of {smallest} GB" if smallest else "fits no GPU: shard, or compute activations again"
    console.print(f"{fits}, CUDA's own {CONTEXT / 1e9} GB included", highlight=False)


def print_training_memory(
    target: str, batch: int | None, height: int | None, width: int | None, dtype: str, *, as_json: bool
) -> None:
    """What a training step of a preset, or of the network in a place, takes on one GPU."""
    from rich.console import Console

    from lineardit.errors import check_multiple
    from lineardit.kernels.select import DTYPES

    if dtype not in ("auto", *DTYPES):
        raise InputError(f"dtype={dtype!r} is unknown. Use auto, {', '.join(DTYPES)}.")

    config, stride, size = _trained(target)
    unit = stride * int(getattr(config, "patch_size", 1))
    height, width = height or size, width or size
    for name, side in (("height", height), ("width", width)):
        check_multiple(name, side, unit, f"{unit}, the pixels per token")
    if batch is not None and batch < 1:
        raise InputError(f"batch={batch} is not a positive whole number. Use 1 or more.")
    floats = "bf16" if dtype == "auto" else dtype
    rows, counted = [], []
    for count in (batch,) if batch else BATCHES:
        for optimizer, again in (("adamw", False), ("adamw", True), ("came", True)):
            settings = OptimizerConfig.model_validate({"optimizer": optimizer})
            memory = _memory(config, settings, count, height, width, stride, floats, again)
            rows.append((f"{count}, {optimizer}{', again' if again else ''}", memory))
            way = {"batch": count, "optimizer": optimizer, "checkpoint_activations": again}
            counted.append({**way, **asdict(memory), "total": memory.total})
    if as_json:
        facts = {"target": target, "height": height, "width": width, "dtype": floats, "batches": counted}
        sys.stdout.write(json.dumps(facts, indent=1) + "\n")
        return
    encodes = isinstance(config, LatentsConfig)
    beside = "" if encodes else "the text encoder, the autoencoder and "
    console = Console()
    console.print(
        f"{target}, one training step at {height} x {width} pixels in {floats} on one GPU, beside {beside}"
        f"CUDA's own {CONTEXT / 1e9} GB",
        highlight=False,
        soft_wrap=True,
    )
    console.print(_table("batch", rows))
    console.print("again: checkpoint_activations, blocks are computed again on the way back", highlight=False)


def _trained(target: str) -> tuple[Config, int, int]:
    """The shape of a preset, or of what trains in a place; its pixels per latent, and pixels per side."""
    from pathlib import Path

    from lineardit.config.presets import PRESETS, named

    known: dict[str, Config] = {**PRESETS, **DITS}
    if target in known or not (Path(target).exists() or "/" in target):
        config = named(target, known, "network")
        stride = config.stride if isinstance(config, LatentsConfig) else STRIDES.get(type(config), STRIDE)
        return config, stride, _size(config, stride)
    from lineardit.interop.places import open_place

    place = open_place(target)
    configs = {name: network.config for name, network in place.networks.items()}
    autoencoder = configs.get("autoencoder")
    stride = autoencoder.stride if isinstance(autoencoder, LatentsConfig) else STRIDE
    found = configs.get("transformer", autoencoder)
    if found is None:
        raise InputError(f"{target} holds no transformer and no autoencoder, which are what is trained here.")
    return found, stride, int(place.sampling.get("size", _size(found, stride)))


def _size(config: Config, stride: int) -> int:
    """Pixels per side that a network was made for; 256 where it does not say."""
    if isinstance(config, TransformerConfig | ArticleConfig):
        return config.position_base * config.patch_size * stride
    return 256


def _memory(
    config: Config,
    settings: OptimizerConfig,
    count: int,
    height: int,
    width: int,
    stride: int,
    floats: str,
    again: bool,
) -> Any:
    from lineardit.training.memory import autoencoder_memory, dit_memory, transformer_memory

    latents = height // stride, width // stride
    match config:
        case TransformerConfig() | ArticleConfig():
            return transformer_memory(config, settings, count, *latents, dtype=floats, checkpointed=again)
        case DiTConfig():
            return dit_memory(config, settings, count, *latents, dtype=floats, checkpointed=again)
        case AutoencoderConfig() | ArticleAutoencoderConfig():
            return autoencoder_memory(
                config, settings, count, height, width, dtype=floats, checkpointed=again
            )
    raise InputError(f"what training a {type(config).__name__} takes is not counted.")


def _table(label: str, rows: list[tuple[str, Any]]) -> Any:
    from dataclasses import fields

    from rich.table import Table

    most = max(memory.total for _, memory in rows)
    unit, size, digits = ("GB", 1e9, 2) if most >= 1e9 else ("MB", 1e6, 1)
    table = Table(box=None, pad_edge=False, caption=f"in {unit}", caption_justify="left")
    names = [field.name for field in fields(rows[0][1])]
    names = [name for name in names if any(getattr(memory, name) for _, memory in rows)]
    table.add_column(label, no_wrap=True)
    for name in (*names, "total"):
        table.add_column(name, justify="right", no_wrap=True)
    for text, memory in rows:
        table.add_row(text, *(f"{getattr(memory, name) / size:.{digits}f}" for name in (*names, "total")))
    return table
