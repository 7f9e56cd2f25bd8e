"""`lineardit info`: what would be used here and why, and what a picture or a model says of itself."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lineardit.errors import CheckpointError, InputError

if TYPE_CHECKING:
    from lineardit.interop.place import Network, Place
    from lineardit.interop.stored import LazyTensors


BANDS = 16
"""In how many bands drawing is counted beside drawing at once; `--memory` takes as many as it needs."""


def info(
    target: Annotated[
        str | None,
        typer.Argument(
            help="A PNG picture, a model (folder, file or hub id) or a preset such as sana-0.6b. Without it: "
            "this machine."
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="Tell what this device would use: auto, cpu, cuda, cuda:1 ...")
    ] = ("auto"),
    dtype: Annotated[str, typer.Option(help="auto, bf16, fp32 or fp16.")] = "auto",
    height: Annotated[
        int | None,
        typer.Option(help="Of the pictures that a model's memory is told for.", show_default=False),
    ] = None,
    width: Annotated[int | None, typer.Option(help="As height.", show_default=False)] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON for programs instead of a table.")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Read every weight of a model and compare it to what was written."),
    ] = False,
    train: Annotated[
        bool,
        typer.Option(
            "--train", help="Tell what training takes; the target is a model or a preset such as sana-0.6b."
        ),
    ] = False,
    batch: Annotated[
        int | None, typer.Option(help="Pictures per GPU, with --train.", show_default=False)
    ] = None,
) -> None:
    """Tell which device, dtype and kernels would be used here, or describe a picture or a model."""
    if train:
        from lineardit.cli.training_memory import print_training_memory

        if verify or device != "auto":
            given = "--verify" if verify else "--device"
            raise InputError(f"{given} says nothing of training. Leave it out with --train.")
        print_training_memory(target or "sana-0.6b", batch, height, width, dtype, as_json=as_json)
        return
    if batch is not None:
        raise InputError("--batch goes with --train. Add it, or leave --batch out.")
    if verify and (target is None or _is_picture(Path(target)) or _is_preset(target)):
        raise InputError("--verify reads the weights of a model. Name its folder or file.")
    if target is None:
        facts = machine_facts(device, dtype)
    elif _is_picture(Path(target)):
        facts = picture_facts(Path(target))
    elif _is_preset(target):
        facts = preset_facts(target)
    else:
        facts = model_facts(target, verify, height, width, dtype)
    if as_json:
        typer.echo(json.dumps(facts, indent=1, ensure_ascii=False))
    else:
        _print_tables(facts)


def _is_picture(path: Path) -> bool:
    """Anything that is a file, but for files of weights."""
    if path.suffix.lower() == ".png":
        return not path.is_dir()
    return path.is_file() and path.suffix not in {".safetensors", ".pth", ".pt", ".bin", ".ckpt"}


def _is_preset(target: str) -> bool:
    from lineardit.config.presets import PRESETS

    return target in PRESETS and not Path(target).exists()


def machine_facts(device: str, dtype: str) -> dict[str, Any]:
    """What would run here, and the facts that decided it."""
    from lineardit.kernels.native import outlook
    from lineardit.kernels.select import inspect_machine, select

    machine = inspect_machine()
    selection = select(machine, device, dtype)
    return {
        "used here": {
            name: {"choice": choice.name, "reason": choice.reason}
            for name, choice in (
                ("device", selection.device),
                ("dtype", selection.dtype),
                ("linear attention", selection.attention),
                ("passes on a CPU", outlook()),
                ("passes on a GPU", selection.passes),
            )
        },
        "machine": {
            "system": machine.system,
            "processor": machine.processor,
            "features": sorted(machine.features),
            "cores": machine.cores,
            "threads": machine.threads,
            "memory_bytes": machine.memory,
            "gpus": [f"{gpu.name}, {_bytes(gpu.memory)}" for gpu in machine.gpus],
            "torch": machine.torch,
            "triton": machine.triton,
        },
    }


def picture_facts(path: Path) -> dict[str, Any]:
    """How a picture was made, as far as its file says it."""
    from lineardit.interop.png_text import parse_parameters, read_png_text

    text = read_png_text(path)
    facts: dict[str, Any] = {}
    if text.settings is not None:
        facts["lineardit"] = text.settings
    if text.parameters is not None:
        facts["parameters"] = parse_parameters(text.parameters)
    return facts


def model_facts(
    target: str, verify: bool, height: int | None, width: int | None, dtype: str = "auto"
) -> dict[str, Any]:
    """What a model is, from its description and the headers of its weights."""
    from lineardit.interop.hub import resolve
    from lineardit.interop.lora import is_lora
    from lineardit.interop.native import check_files
    from lineardit.interop.places import open_place

    if is_lora(resolve(target)):
        return lora_facts(target)
    place = open_place(target)
    if verify:
        if place.format != "native":
            raise InputError(f"{target} has no checksums to verify: it is a {place.format} checkpoint.")
        check_files(place.path)
    facts: dict[str, Any] = {
        "model": {"format": place.format, "path": str(place.path), "made_for": _made_for(place)}
    }
    for name, network in place.networks.items():
        facts[name] = _network_facts(network)
        if place.format == "native":
            facts[name]["sha256"] = place.checksums[name] + (" (verified)" if verify else "")
        if network.spare:
            facts[name]["kept_for_training"] = list(network.spare)
        facts[name] |= network.config.model_dump(mode="json")
    if place.text is not None:
        facts["text_encoder"] = {"class": place.text.class_name, "width": place.text.width}
    if place.sampling:
        facts["sampling"] = dict(place.sampling)
    memory = _memory_facts(place, height, width, dtype)
    if memory:
        facts["memory"] = memory
    if about := {key: value for key, value in place.about.items() if key != "sampling"}:
        facts["about"] = about
    card = place.path / "README.md"
    if card.is_file():
        facts["card"] = {"text": card.read_text("utf-8", errors="replace")}
    return facts


def preset_facts(name: str) -> dict[str, Any]:
    """The network that a preset describes, without weights."""
    import torch

    from lineardit.autoencoder.model import Autoencoder
    from lineardit.config.article import ArticleConfig
    from lineardit.config.models import TransformerConfig
    from lineardit.config.presets import PRESETS
    from lineardit.interop.native import autoencoder_component
    from lineardit.transformer.denoiser import denoiser_of

    config = PRESETS[name]
    with torch.device("meta"):
        if isinstance(config, TransformerConfig | ArticleConfig):
            network: torch.nn.Module = denoiser_of(config)
            class_name = type(network).__name__
        else:
            network = Autoencoder(config)
            class_name = autoencoder_component(network).class_name
    parameters = sum(each.numel() for each in network.parameters())
    return {"preset": {"name": name, "class": class_name, "parameters": parameters, **config.model_dump()}}


def lora_facts(target: str) -> dict[str, Any]:
    """What a LoRA adds, and to what."""
    from lineardit.interop.lora import read_lora

    lora = read_lora(target)
    factors = lora.factors.values()
    return {
        "lora": {
            "path": lora.source,
            "layers": len(lora.factors),
            "ranks": sorted({each.down.shape[0] for each in factors}),
            "scales": sorted({round(each.scale, 6) for each in factors}),
            "parameters": sum(each.down.numel() + each.up.numel() for each in factors),
            "dtype": ", ".join(sorted({str(each.up.dtype).removeprefix("torch.") for each in factors})),
            "first_layer": next(iter(lora.factors)),
            "for_width": max(min(each.down.shape[1], each.up.shape[0]) for each in factors),
        }
    }


def _made_for(place: "Place") -> str | None:
    """The size of pictures, or of latents where the autoencoder is not there, as far as it is known."""
    from lineardit.config.article import ArticleConfig
    from lineardit.config.models import TransformerConfig

    if "size" in place.sampling:
        return "{0} x {0} pixels".format(place.sampling["size"])
    config = place.networks["transformer"].config if "transformer" in place.networks else None
    if not isinstance(config, TransformerConfig | ArticleConfig):
        return None
    return "{0} x {0} latents".format(config.position_base * config.patch_size)


def _network_facts(network: "Network") -> dict[str, Any]:
    from math import prod

    from lineardit.config.presets import PRESETS

    stored = network.tensors.stored.values()
    known = [name for name, preset in PRESETS.items() if preset == network.config]
    return {
        "class": network.class_name,
        "preset": " or ".join(known) or None,
        "parameters": sum(prod(each.shape) for each in stored),
        "tensors": len(network.tensors),
        "dtype": ", ".join(sorted({each.dtype for each in stored})),
        "size_bytes": sum(each.size_bytes for each in stored),
    }


def _memory_facts(place: "Place", height: int | None, width: int | None, dtype: str) -> dict[str, Any]:
    """What drawing one picture takes at most, where the size that the model was made for is known."""
    from lineardit.config.article import ArticleAutoencoderConfig, ArticleConfig
    from lineardit.config.models import AutoencoderConfig, TransformerConfig
    from lineardit.interop.assembly import gemma_tensors
    from lineardit.interop.bound import UNTOLD
    from lineardit.interop.memory import decoder_bytes, transformer_bytes
    from lineardit.kernels import native
    from lineardit.kernels.allocator import resident_bytes
    from lineardit.kernels.select import inspect_machine, select

    configs = {name: network.config for name, network in place.networks.items()}
    transformer, autoencoder = configs.get("transformer"), configs.get("autoencoder")
    if not isinstance(transformer, TransformerConfig | ArticleConfig) or not isinstance(
        autoencoder, AutoencoderConfig | ArticleAutoencoderConfig
    ):
        return {}
    unit = autoencoder.stride * transformer.patch_size
    size = int(place.sampling.get("size", transformer.position_base * unit))
    height, width = height or size, width or size
    for name, side in (("height", height), ("width", width)):
        if side < unit or side % unit:
            raise InputError(f"{name}={side} is not a multiple of {unit}, the pixels per token.")
    floats = select(inspect_machine(), "auto", dtype).torch_dtype
    stored = {name: network.tensors.to(_short_name(floats)) for name, network in place.networks.items()}
    weights = sum(sum(_sizes(tensors, ".*").values()) for tensors in stored.values())
    stride = autoencoder.stride
    # With guidance every step sees two pictures.
    embedded = isinstance(transformer, TransformerConfig) and transformer.guidance_embedding
    twice = 1 if embedded else 2
    native.use("auto" if native.outlook().name == "native" else "torch")
    # What Python and its libraries hold: what this process does before it counts.
    program = resident_bytes() or 0
    denoising = transformer_bytes(transformer, height // stride, width // stride, floats, twice)
    decoding = decoder_bytes(autoencoder, height, width, floats)
    latent_rows, token_rows = (-(-height // pixels // BANDS) for pixels in (stride, unit))
    banded = decoder_bytes(autoencoder, height, width, floats, latent_rows)
    sides = height // stride, width // stride
    steps_banded = transformer_bytes(transformer, *sides, floats, twice, rows=token_rows, folds=False)
    text = getattr(place.text, "size_bytes", 0)
    blocks = (
        _sizes(stored["transformer"], r"blocks\.\d+") if isinstance(transformer, TransformerConfig) else {}
    )
    halves = _sizes(stored["autoencoder"], "encoder|decoder")
    try:
        gemma = gemma_tensors(place)
    except CheckpointError:  # its file is not there, or not whole: the rest can still be told
        gemma = None
    layers = {} if gemma is None else _sizes(gemma, r"layers\.\d+|\w+")
    stays = weights - sum(blocks.values()) - sum(halves.values()) + (0 if layers else text)
    at_work = max(
        max(layers.values(), default=0),
        max(blocks.values(), default=0) + steps_banded,
        halves["decoder"] + banded,
    )
    return {
        "picture": f"{height} x {width}, {_short_name(floats)}",
        "between_layers": "float32" if _short_name(floats) == "fp16" else _short_name(floats),
        "program_bytes": program,
        "weights_bytes": weights,
        "text_encoder_bytes": text,
        "denoising_bytes": denoising,
        "denoising_in_bands_bytes": steps_banded,
        "decoding_bytes": decoding,
        "decoding_in_bands_bytes": banded,
        "together_bytes": program + weights + text + max(denoising, decoding),
        "together_in_bands_bytes": program + weights + text + max(steps_banded, banded),
        "offloaded_in_bands_bytes": math.ceil((program + stays + at_work) / (1 - UNTOLD)),
    }


def _sizes(tensors: "LazyTensors", unit: str) -> dict[str, int]:
    """Bytes of tensors whose names begin with `unit`, by what that matches."""
    found: dict[str, int] = {}
    for name, each in tensors.stored.items():
        if start := re.match(unit, name):
            found[start[0]] = found.get(start[0], 0) + each.size_bytes
    return found


def _short_name(floats: Any) -> str:
    from lineardit.kernels.select import DTYPES

    return next(name for name, dtype in DTYPES.items() if dtype == floats)


def _print_tables(facts: Mapping[str, Mapping[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    for title, entries in facts.items():
        table = Table(title=title, title_justify="left", show_header=False, box=None, title_style="bold")
        for key, value in entries.items():
            match value:
                case {"choice": choice, "reason": reason}:
                    table.add_row(key, Text(str(choice)), Text(f"because {reason}"))
                case int() if key.endswith("_bytes"):
                    table.add_row(key.removesuffix("_bytes"), Text(_bytes(value)))
                case _:
                    table.add_row(key, Text(_readable(value)))
        console.print(table)
        console.print()


def _readable(value: object) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case list() if all(isinstance(item, str | int | float) for item in value):
            return ", ".join(str(item) for item in value) or "none"
        case list():
            return "\n".join(json.dumps(item) for item in value)
        case dict():
            return json.dumps(value, ensure_ascii=False)
        case _:
            return str(value)


def _bytes(count: int) -> str:
    """Bytes in the largest unit that leaves a number of at least 1."""
    for exponent, unit in ((3, "GB"), (2, "MB"), (1, "kB")):
        if count >= 1000**exponent:
            return f"{count / 1000**exponent:.1f} {unit}"
    return f"{count} B"
