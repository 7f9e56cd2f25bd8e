"""Tables of what training needs: `lineardit train --plan` and `lineardit info PRESET --train`."""

from typing import Any

from lineardit.config.article import ARTICLES, ArticleAutoencoderConfig, ArticleConfig
from lineardit.config.files import Recipe
from lineardit.config.models import AutoencoderConfig, TransformerConfig
from lineardit.config.runs import OptimizerConfig, PoolRun, ReconstructionRun
from lineardit.errors import InputError

GPUS = (12, 16, 24, 40, 48, 80, 96, 141, 192)
"""Gigabytes of memory that GPUs come with."""
CONTEXT = 500_000_000
"""Bytes of a GPU that CUDA itself takes."""
BATCHES = (1, 4, 16)
"""Pictures per GPU that `info --train` tells about unless one number is asked for."""


def print_plan(run: Recipe, nodes: int, gpus: int) -> None:
    """What each process of a run would hold, and how the batch would be divided."""
    from rich.console import Console

    from lineardit.training.plan import plan

    made = plan(run, nodes, gpus, _autoencoder(run))
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
    fits = f"fits a GPU of {smallest} GB" if smallest else "fits no GPU: shard, or compute activations again"
    console.print(f"{fits}, CUDA's own {CONTEXT / 1e9} GB included", highlight=False)


def print_training_memory(
    preset: str, batch: int | None, height: int | None, width: int | None, dtype: str
) -> None:
    """What a training step of a published transformer takes on one GPU."""
    from rich.console import Console

    from lineardit.config.presets import TRANSFORMERS, named
    from lineardit.errors import check_multiple
    from lineardit.training.memory import transformer_memory

    presets: dict[str, TransformerConfig | ArticleConfig] = {**TRANSFORMERS, **ARTICLES}
    config = named(preset, presets, "transformer")
    stride = 32  # of the autoencoder that all of them were published with
    unit = stride * config.patch_size
    size = config.position_base * unit
    height, width = height or size, width or size
    for name, side in (("height", height), ("width", width)):
        check_multiple(name, side, unit, f"{unit}, the pixels per token")
    if batch is not None and batch < 1:
        raise InputError(f"batch={batch} is not a positive whole number. Use 1 or more.")
    floats = "bf16" if dtype == "auto" else dtype
    rows = []
    for count in (batch,) if batch else BATCHES:
        for optimizer, again in (("adamw", False), ("adamw", True), ("came", True)):
            settings = OptimizerConfig.model_validate({"optimizer": optimizer})
            sides = (height // stride, width // stride)
            memory = transformer_memory(config, settings, count, *sides, dtype=floats, checkpointed=again)
            rows.append((f"{count}, {optimizer}{', again' if again else ''}", memory))
    console = Console()
    console.print(
        f"{preset}, one training step at {height} x {width} pixels in {floats} on one GPU, beside the text "
        f"encoder, the autoencoder and CUDA's own {CONTEXT / 1e9} GB",
        highlight=False,
        soft_wrap=True,
    )
    console.print(_table("batch", rows))
    console.print("again: checkpoint_activations, blocks are computed again on the way back", highlight=False)


def _autoencoder(run: Recipe) -> AutoencoderConfig | ArticleAutoencoderConfig | None:
    """The configuration of the autoencoder that a recipe names, if it names one."""
    place = run.autoencoder if isinstance(run, PoolRun) else getattr(run, "start", None)
    if place is None or (isinstance(run, ReconstructionRun) and run.model is not None):
        return None
    from lineardit.interop.bundled import folder_named
    from lineardit.interop.places import open_place

    network = open_place(str(folder_named(place))).networks.get("autoencoder")
    if network is None or not isinstance(network.config, AutoencoderConfig | ArticleAutoencoderConfig):
        raise InputError(f"{place} holds no autoencoder, of which the plan needs the shape.")
    return network.config


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
