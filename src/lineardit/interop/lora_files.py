"""LoRAs that begin here: fresh factors for a transformer, and their files as peft and diffusers read them."""

import json
import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from lineardit.errors import ConfigError, OutputError
from lineardit.interop.durable import new_folder
from lineardit.interop.lora import (
    DIFFUSERS_METADATA,
    DIFFUSERS_WEIGHTS,
    PEFT_CONFIG,
    PEFT_WEIGHTS,
    Factors,
    Lora,
    Rows,
    linear_rows,
)
from lineardit.transformer.model import Transformer

DIFFUSERS_FOLDER = "diffusers"
"""Inside the folder of peft: the same for diffusers' `load_lora_weights`."""
LORA_ABOUT = "lineardit_lora.json"
"""How a LoRA was trained; neither peft nor diffusers reads it."""


def fresh_lora(
    transformer: Transformer,
    targets: Sequence[str],
    rank: int,
    alpha: float,
    generator: torch.Generator,
    *,
    dora: bool = False,
) -> Lora:
    """Factors that add nothing yet, for every layer whose name in diffusers is, or ends with, a target.

    As peft begins: `down` uniform in +-1 / sqrt(in), `up` zero, magnitudes the lengths of the weights' rows.

    Raises:
        ConfigError: a target names no layer; says which there are.
    """
    rows = linear_rows(transformer)
    foreign = {name: each for name, each in rows.items() if name != each.layer}
    factors: dict[str, Factors] = {}
    for target in targets:
        chosen = [name for name in foreign if name == target or name.endswith(f".{target}")]
        if not chosen:
            ends = sorted({_last(name) for name in foreign})
            raise ConfigError(
                f"adapter.targets: no linear layer is called {target}. Use some of {', '.join(ends)}."
            )
        for name in chosen:
            weight = _weight(transformer, foreign[name])
            limit = 1 / math.sqrt(weight.shape[1])
            down = (2 * torch.rand(rank, weight.shape[1], generator=generator) - 1) * limit
            up = torch.zeros(len(weight), rank)
            lengths = weight.float().norm(dim=1) if dora else None
            factors[name] = Factors(down, up, alpha / rank, lengths)
    return Lora("fresh", factors)


def write_lora(
    folder: Path,
    transformer: Transformer,
    factors: Mapping[str, Factors],
    *,
    alpha: float,
    targets: Sequence[str],
    base: str,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Write factors of one rank as a folder of peft, with the same for diffusers in a folder inside.

    Raises:
        OutputError: the folder cannot be written; what was there before stays.
    """
    rows = linear_rows(transformer)
    first = next(iter(factors.values()))
    tensors: dict[str, Tensor] = {}
    for name, each in factors.items():
        for key, tensor in _named(each, rows[name].pointwise).items():
            tensors[f"{name}.{key}"] = tensor.detach().float().cpu().contiguous()
    options = {
        "peft_type": "LORA",
        "r": len(first.down),
        "lora_alpha": alpha,
        "target_modules": sorted(targets),
        "use_dora": first.magnitude is not None,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "init_lora_weights": True,
    }
    config = {**options, "base_model_name_or_path": base, "task_type": None, "inference_mode": True}
    facts = {**(about or {}), "base": base, "version": version("lineardit")}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(folder) as place:
            _save(place / PEFT_WEIGHTS, "base_model.model", tensors, {})
            (place / PEFT_CONFIG).write_text(json.dumps(config, indent=1), "utf-8")
            (place / LORA_ABOUT).write_text(json.dumps(facts, indent=1), "utf-8")
            inner = place / DIFFUSERS_FOLDER
            inner.mkdir()
            prefixed = json.dumps({f"transformer.{key}": each for key, each in options.items()})
            _save(inner / DIFFUSERS_WEIGHTS, "transformer", tensors, {DIFFUSERS_METADATA: prefixed})
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{folder} cannot be written: {error}.") from error
    return folder


def _save(path: Path, prefix: str, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    named = {f"{prefix}.{key}": each for key, each in tensors.items()}
    save_file(named, path, {"format": "pt", **header})


def _named(factors: Factors, pointwise: bool) -> dict[str, Tensor]:
    """As peft names them; for a 1x1 convolution they are such themselves."""
    down, up, magnitude = factors.down, factors.up, factors.magnitude
    if pointwise:
        down, up = down[..., None, None], up[..., None, None]
        magnitude = None if magnitude is None else magnitude.view(1, -1, 1, 1)
    named = {"lora_A.weight": down, "lora_B.weight": up}
    return named if magnitude is None else {**named, "lora_magnitude_vector": magnitude}


def _weight(transformer: Transformer, rows: Rows) -> Tensor:
    weight = transformer.get_parameter(f"{rows.layer}.weight").detach().cpu()
    return weight[rows.first : rows.first + rows.outputs]


def _last(name: str) -> str:
    """The part of a layer's name that tells its kind: `to_q`, and `to_out.0` of `to_out.0`."""
    parts = name.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdigit() else parts[-1]
