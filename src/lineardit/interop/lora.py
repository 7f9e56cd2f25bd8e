"""LoRA (arXiv:2106.09685) and DoRA (arXiv:2402.09353): low-rank additions, from files of peft and diffusers.

Several can be loaded into one transformer, each with a weight; they are added beside the layers, so that
unloading gives the layers back as they were, to the bit. Merging adds them to the layers' own weights.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lineardit.errors import CheckpointError, InputError
from lineardit.interop.diffusers import transformer_renaming
from lineardit.interop.hub import resolve
from lineardit.interop.json_files import read_json
from lineardit.interop.stored import LazyTensors, open_tensors, read_header, read_metadata
from lineardit.nn.wide import linear
from lineardit.transformer.model import Transformer

PEFT_WEIGHTS, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
DIFFUSERS_WEIGHTS = "pytorch_lora_weights.safetensors"

_PREFIXES = ("base_model.model.", "transformer.", "diffusion_model.")
_FACTOR = re.compile(r"(?P<module>.+)\.(?:lora_(?P<ab>[AB])(?:\.\w+)?|lora[._](?P<way>down|up))\.weight")
_MAGNITUDE = re.compile(r"(?P<module>.+)\.lora_magnitude_vector(?:\.\w+)?(?:\.weight)?")
_ALPHA = re.compile(r"(?P<module>.+)\.alpha")
DIFFUSERS_METADATA = "lora_adapter_metadata"
# Of peft's options, those that would make it something else than up @ down * scale.
_REFUSED = {"bias": ("none",), "fan_in_fan_out": (False, None)}


class Factors(NamedTuple):
    """What is added to the weights W of one layer: scale * up @ down.

    With a magnitude m the rows of V = W + scale * up @ down are brought to that length, m V / |V| (DoRA).
    """

    down: Tensor
    """(rank, in)."""
    up: Tensor
    """(out, rank)."""
    scale: float
    magnitude: Tensor | None = None
    """(out)."""


class Lora(NamedTuple):
    """A LoRA as its file has it."""

    source: str
    factors: dict[str, Factors]
    """By the layer, as the file calls it: names of diffusers, or ours."""


class Addition(nn.Module):
    """What one LoRA adds to some rows of a layer."""

    def __init__(self, factors: Factors, first_row: int, weight: float, like: Tensor) -> None:
        super().__init__()
        self.down = nn.Parameter(factors.down.to(like), requires_grad=False)
        self.up = nn.Parameter(factors.up.to(like), requires_grad=False)
        magnitude = factors.magnitude
        self.magnitude = None if magnitude is None else nn.Parameter(magnitude.to(like), requires_grad=False)
        self.first_row, self.scale, self.weight = first_row, factors.scale, weight

    def forward(self, x: Tensor, base: nn.Linear) -> Tensor:
        """What is added to the layer's output."""
        product = linear if self.up.dtype == torch.float16 else nn.functional.linear
        if self.magnitude is None:
            added = product(product(x, self.down), self.up) * (self.scale * self.weight)
        else:
            added = product(x, self._turned(base).to(self.up)) * self.weight
        after = base.out_features - self.first_row - len(self.up)
        return nn.functional.pad(added, (self.first_row, after))

    def matrix(self, base: nn.Linear) -> Tensor:
        """The same as a matrix (outputs, in), in float32."""
        if self.magnitude is None:
            product = self.up.float() @ self.down.float() * (self.scale * self.weight)
        else:
            product = self._turned(base) * self.weight
        return nn.functional.pad(
            product, (0, 0, self.first_row, base.out_features - self.first_row - len(self.up))
        )

    def _turned(self, base: nn.Linear) -> Tensor:
        """m V / |V| - W over the rows that are added to; no gradient passes the length, as published."""
        assert self.magnitude is not None
        own = base.weight[self.first_row : self.first_row + len(self.up)].float()
        moved = own + self.scale * (self.up.float() @ self.down.float())
        length = moved.detach().norm(dim=1)
        return (self.magnitude.float() / length)[:, None] * moved - own


class LoraLinear(nn.Module):
    """A linear layer and what LoRAs add to it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.additions = nn.ModuleDict()

    @property
    def weight(self) -> Tensor:
        """The layer's own, which tells its dtype and its device."""
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        """base(x) and every addition."""
        out: Tensor = self.base(x)
        for parts in self._parts():
            for addition in parts:
                out = out + addition(x, self.base)
        return out

    def merged(self) -> nn.Linear:
        """The layer with every addition in its weight."""
        with torch.no_grad():
            # Every addition is to the layer as it was, not to what others made of it.
            total = self.base.weight.float()
            for parts in self._parts():
                for addition in parts:
                    total = total + addition.matrix(self.base)
            self.base.weight.copy_(total)
        return self.base

    def _parts(self) -> Iterator[list[Any]]:
        for parts in self.additions.values():
            assert isinstance(parts, nn.ModuleList)
            yield list(parts)


def read_lora(place: str | Path) -> Lora:
    """Read a folder of peft, or a file or folder of diffusers, or the hub id of one, to the CPU.

    Raises:
        CheckpointError: there is no LoRA, it is damaged, or of a kind that is not up @ down.
        MissingExtraError: it is a hub id, and huggingface_hub is not installed.
    """
    path = resolve(place)
    options: Mapping[str, Any] = {}
    if path.is_dir():
        folder = path
        names = [name for name in (PEFT_WEIGHTS, DIFFUSERS_WEIGHTS) if (folder / name).is_file()]
        if len(names) != 1:
            what = "two LoRAs" if names else "no LoRA"
            raise CheckpointError(
                f"{folder} holds {what}: there must be one of {PEFT_WEIGHTS} and {DIFFUSERS_WEIGHTS}."
            )
        path = folder / names[0]
        if names[0] == PEFT_WEIGHTS:
            options = read_json(folder / PEFT_CONFIG)
    tensors = open_tensors(path)
    options = options or _diffusers_options(path)
    _check_options(options, path)
    return Lora(str(path), _factors(tensors, options, path))


def is_lora(path: Path) -> bool:
    """Whether a folder or file looks like a LoRA and not like a model; only names are looked at.

    Raises:
        CheckpointError: the file is damaged.
    """
    if path.is_dir():
        return any((path / name).is_file() for name in (PEFT_WEIGHTS, DIFFUSERS_WEIGHTS))
    names = read_header(path) if path.suffix == ".safetensors" else {}
    return bool(names) and all("lora" in name or name.endswith(".alpha") for name in names)


def add_lora(transformer: nn.Module, lora: Lora, name: str, weight: float = 1.0) -> dict[str, Addition]:
    """Add a LoRA beside the layers of a transformer, called `name`; what is added, by the file's layers.

    Raises:
        CheckpointError: it is for another model; nothing is added then.
        InputError: the name is taken or has a dot, the weight is no number, or the network is not SANA's.
    """
    if not isinstance(transformer, Transformer):
        raise InputError(f"LoRAs are for SANA's Transformer, and this is {type(transformer).__name__}.")
    if not name or "." in name:
        raise InputError(f"{name!r} cannot name a LoRA. Use letters without a dot.")
    if name in loras(transformer):
        raise InputError(f"a LoRA called {name} is loaded already. Unload it, or use another name.")
    _check_weight(name, weight)
    places = _layers(transformer, lora)
    added: dict[str, Addition] = {}
    for module, (layer, first_row) in places.items():
        current = transformer.get_submodule(layer)
        if isinstance(current, nn.Linear):
            current = LoraLinear(current)
            transformer.set_submodule(layer, current)
        assert isinstance(current, LoraLinear)
        if name not in current.additions:
            current.additions[name] = nn.ModuleList()
        parts = current.additions[name]
        assert isinstance(parts, nn.ModuleList)
        added[module] = Addition(lora.factors[module], first_row, weight, current.base.weight)
        parts.append(added[module])
    return added


def loras(transformer: nn.Module) -> dict[str, float]:
    """The LoRAs of a transformer with their weights."""
    return {name: addition.weight for _, name, addition in _additions(transformer)}


def weigh_loras(transformer: nn.Module, weights: Mapping[str, float]) -> None:
    """Give LoRAs new weights; those that are not named keep theirs.

    Raises:
        InputError: one is not loaded, or a weight is no number.
    """
    _check_names(transformer, weights)
    for name, weight in weights.items():
        _check_weight(name, weight)
    for _, name, addition in _additions(transformer):
        addition.weight = weights.get(name, addition.weight)


def merge_loras(transformer: nn.Module) -> None:
    """Add all LoRAs with their weights to the layers for good."""
    for layer in _wrapped(transformer):
        wrapped = transformer.get_submodule(layer)
        assert isinstance(wrapped, LoraLinear)
        transformer.set_submodule(layer, wrapped.merged())


def unload_loras(transformer: nn.Module, *names: str) -> None:
    """Take LoRAs away, all of them if none is named: the layers are what they were before, to the bit.

    Raises:
        InputError: one is not loaded.
    """
    _check_names(transformer, names)
    for layer in _wrapped(transformer):
        wrapped = transformer.get_submodule(layer)
        assert isinstance(wrapped, LoraLinear)
        for name in names or tuple(wrapped.additions):
            if name in wrapped.additions:
                del wrapped.additions[name]
        if not wrapped.additions:
            transformer.set_submodule(layer, wrapped.base)


def _additions(transformer: nn.Module) -> Iterator[tuple[str, str, Addition]]:
    for layer in _wrapped(transformer):
        wrapped = transformer.get_submodule(layer)
        assert isinstance(wrapped, LoraLinear)
        for name, parts in wrapped.additions.items():
            assert isinstance(parts, nn.ModuleList)
            for addition in parts:
                assert isinstance(addition, Addition)
                yield layer, name, addition


def _wrapped(transformer: nn.Module) -> list[str]:
    return [name for name, module in transformer.named_modules() if isinstance(module, LoraLinear)]


def _check_names(transformer: nn.Module, names: Any) -> None:
    known = loras(transformer)
    for name in names:
        if name not in known:
            held = f"Loaded are {', '.join(known)}" if known else "None is loaded"
            raise InputError(f"no LoRA called {name} is loaded. {held}.")


def _check_weight(name: str, weight: float) -> None:
    if not math.isfinite(weight):
        raise InputError(f"the weight {weight} of the LoRA {name} is no finite number. Use 1.0.")


class Rows(NamedTuple):
    """The rows of a linear layer here that are one layer of diffusers' network."""

    layer: str
    first: int
    outputs: int
    pointwise: bool = False
    """There it is a 1x1 convolution."""


def linear_rows(transformer: Transformer) -> dict[str, Rows]:
    """Every linear layer here by its own name, and every layer of diffusers' network that lies in one."""
    rows: dict[str, Rows] = {}
    for own, rule in transformer_renaming(transformer.config).pairs.items():
        layer, kind = own.rpartition(".")[::2]
        module = transformer.get_submodule(layer) if kind == "weight" else None
        base = module.base if isinstance(module, LoraLinear) else module
        if not isinstance(base, nn.Linear):
            continue
        count = base.out_features // len(rule.foreign)
        rows[layer] = Rows(layer, 0, base.out_features)
        for number, foreign in enumerate(rule.foreign):
            rows[foreign.removesuffix(".weight")] = Rows(layer, number * count, count, rule.pointwise)
    return rows


def _layers(transformer: Transformer, lora: Lora) -> dict[str, tuple[str, int]]:
    """For each module of the file, the layer here and the first of its rows that is added to."""
    rows = linear_rows(transformer)
    problems = [
        problem
        for module, factors in lora.factors.items()
        if (problem := _problem(transformer, module, factors, rows))
    ]
    if problems:
        more = f", and {len(problems) - 1} more like it" if len(problems) > 1 else ""
        raise CheckpointError(f"{lora.source} is a LoRA for another model: {problems[0]}{more}.")
    return {module: rows[module][:2] for module in lora.factors}


def _problem(transformer: Transformer, module: str, factors: Factors, rows: Mapping[str, Rows]) -> str | None:
    if module not in rows:
        return f"this one has no linear layer {module}"
    layer, count = rows[module].layer, rows[module].outputs
    found = transformer.get_submodule(layer)
    base = found.base if isinstance(found, LoraLinear) else found
    assert isinstance(base, nn.Linear)
    given, wanted = (factors.down.shape[1], factors.up.shape[0]), (base.in_features, count)
    if given == wanted:
        return None
    return f"{module} goes from {given[0]} to {given[1]}, here from {wanted[0]} to {wanted[1]}"


def _diffusers_options(path: Path) -> Mapping[str, Any]:
    """What newer files of diffusers say in their header: peft's options, each below `transformer.`."""
    try:
        options = json.loads(read_metadata(path).get(DIFFUSERS_METADATA, "{}"))
    except (ValueError, RecursionError):
        options = None
    if not isinstance(options, dict):
        raise CheckpointError(f"{path} has a header that is damaged: {DIFFUSERS_METADATA} holds no options.")
    return {
        key.removeprefix("transformer."): value
        for key, value in options.items()
        if key.startswith("transformer.")
    }


def _check_options(options: Mapping[str, Any], path: Path) -> None:
    for key, plain in _REFUSED.items():
        if key in options and options[key] not in plain:
            raise CheckpointError(
                f"{path} is a LoRA with {key}={options[key]!r}, which is not read: use {key}={plain[0]!r}."
            )


def _factors(tensors: LazyTensors, options: Mapping[str, Any], path: Path) -> dict[str, Factors]:
    found: dict[str, dict[str, Tensor]] = {}
    for name in tensors:
        plain = _stripped(name)
        factor, alpha = _FACTOR.fullmatch(plain), _ALPHA.fullmatch(plain)
        magnitude = _MAGNITUDE.fullmatch(plain)
        if factor:
            side = {"A": "down", "B": "up"}.get(factor["ab"] or "", factor["way"])
            found.setdefault(factor["module"], {})[str(side)] = tensors[name]
        elif alpha:
            found.setdefault(alpha["module"], {})["alpha"] = tensors[name]
        elif magnitude:
            found.setdefault(magnitude["module"], {})["magnitude"] = tensors[name].flatten()
        else:
            raise CheckpointError(f"{path} is no LoRA of a transformer: it holds {name}.")
    if not found:
        raise CheckpointError(f"{path} is empty: it holds no LoRA.")
    factors = {}
    for module, parts in found.items():
        if "down" not in parts or "up" not in parts:
            raise CheckpointError(f"{path} is damaged: {module} lacks one of its two factors.")
        down, up = _matrix(parts["down"], module, path), _matrix(parts["up"], module, path)
        if down.shape[0] != up.shape[1]:
            raise CheckpointError(f"{path} is damaged: the factors of {module} are of different ranks.")
        if not len(down):
            raise CheckpointError(f"{path} is damaged: the factors of {module} have rank 0.")
        given = _number(_plain(parts["alpha"]), f"{module}.alpha", path) if "alpha" in parts else None
        lengths = parts.get("magnitude")
        if (lengths is None and options.get("use_dora")) or (lengths is not None and len(lengths) != len(up)):
            raise CheckpointError(f"{path} is damaged: {module} lacks the {len(up)} magnitudes of a DoRA.")
        factors[module] = Factors(down, up, _scale(module, len(down), given, options, path), lengths)
    return factors


def _stripped(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _matrix(factor: Tensor, module: str, path: Path) -> Tensor:
    if factor.dim() == 4 and factor.shape[2:] == (1, 1):
        return factor.flatten(1)
    if factor.dim() != 2:
        raise CheckpointError(f"{path} adds to {module}, a convolution over neighbours, which is not read.")
    return factor


def _scale(module: str, rank: int, alpha: float | None, options: Mapping[str, Any], path: Path) -> float:
    """alpha / rank, or alpha / sqrt(rank) where the options say so; alpha is the rank if nothing says it."""
    if alpha is None:
        alpha = _pattern_alpha(module, options, path)
    if alpha is None:
        alpha = _number(options.get("lora_alpha", rank), "lora_alpha", path)
    return alpha / (math.sqrt(rank) if options.get("use_rslora") else rank)


def _pattern_alpha(module: str, options: Mapping[str, Any], path: Path) -> float | None:
    """That of the first pattern that ends the module's name, as peft takes it."""
    patterns = options.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise CheckpointError(f"{path} is a LoRA with alpha_pattern={patterns!r:.80}: it must be an object.")
    for key, value in patterns.items():
        try:
            matching = re.fullmatch(rf"(.*\.)?({key})", module)
        except (re.error, RecursionError, OverflowError):
            raise CheckpointError(
                f"{path} is a LoRA with {key!r:.80} in alpha_pattern, which is no regular expression: "
                "write a layer's name, such as 'to_q'."
            ) from None
        if matching:
            return _number(value, f"alpha_pattern[{key!r:.60}]", path)
    return None


def _plain(tensor: Tensor) -> object:
    return tensor.item() if tensor.numel() == 1 else tensor.tolist()


def _number(value: object, name: str, path: Path) -> float:
    """What `path` says as a finite number.

    Raises:
        CheckpointError: it says something else.
    """
    try:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:
        pass
    raise CheckpointError(f"{path} is a LoRA with {name}={value!r:.80}: it must be a finite number.")
