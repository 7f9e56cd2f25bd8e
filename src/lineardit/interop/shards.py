"""Weights of one network in a folder: one safetensors file or several with an index, in a variant or not."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from lineardit.errors import CheckpointError, OutputError
from lineardit.interop.stored import LazyTensors, open_tensors, stored_of

LARGEST_SHARD = 5_000_000_000
"""Bytes of a file, unless one tensor alone is larger."""

_SUFFIX = ".safetensors"


def choose_variant(folder: Path, stem: str, variant: str | None) -> str | None:
    """Which variant of the weights called `stem` is read where `variant` is wanted.

    Where there is no such, the weights without a variant are; where None is wanted and there are none
    without, the only variant is.

    Raises:
        CheckpointError: there are no such weights, or several variants to choose from.
    """
    found = _variants(folder, stem)
    for each in (variant, None):
        if each in found:
            return each
    if variant is None and len(found) == 1:
        return next(iter(found))
    raise CheckpointError(_why_not_found(folder, stem, variant, found))


def find_weights(folder: Path, stem: str, variant: str | None = None) -> list[Path]:
    """The files that hold the weights called `stem` in `folder`, of the variant that is chosen.

    Raises:
        CheckpointError: there are none, several variants, or an index names a file that is missing.
    """
    file = _variants(folder, stem)[choose_variant(folder, stem, variant)]
    return _shards(file) if file.suffix == ".json" else [file]


def open_weights(folder: Path, stem: str, variant: str | None = None) -> LazyTensors:
    """The weights called `stem` in `folder`, read when they are asked for. Raises as `find_weights`."""
    return open_tensors(*find_weights(folder, stem, variant))


def write_weights(
    folder: Path,
    stem: str,
    tensors: Mapping[str, Tensor],
    *,
    largest: int = LARGEST_SHARD,
    on_tensor: Callable[[str], None] | None = None,
) -> list[Path]:
    """Write weights as one file, or as several with an index where they are larger than `largest` bytes.

    Only one file's tensors are in memory at a time. `on_tensor` hears the name of each that was read.

    Raises:
        OutputError: a file cannot be written.
    """
    parts = _parts(tensors, largest)
    files: list[Path] = []
    weight_map: dict[str, str] = {}
    for number, names in enumerate(parts, start=1):
        name = f"{stem}{_SUFFIX}" if len(parts) == 1 else f"{stem}-{number:05}-of-{len(parts):05}{_SUFFIX}"
        write_file(folder / name, {each: tensors[each] for each in names}, on_tensor)
        files.append(folder / name)
        weight_map |= dict.fromkeys(names, name)
    if len(parts) > 1:
        total = sum(each.size_bytes for each in stored_of(tensors).values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / f"{stem}{_SUFFIX}.index.json").write_text(json.dumps(index, indent=1) + "\n", "utf-8")
    return files


def write_file(
    path: Path, tensors: Mapping[str, Tensor], on_tensor: Callable[[str], None] | None = None
) -> None:
    """Write one safetensors file as other libraries expect it.

    Raises:
        OutputError: the file cannot be written.
    """
    whole = {}
    for name in tensors:
        # A copy where it is a view: safetensors would refuse memory that two tensors share.
        tensor = tensors[name].detach().cpu()
        own = tensor.untyped_storage().nbytes() == tensor.nbytes and tensor.is_contiguous()
        whole[name] = tensor if own else tensor.contiguous().clone()
        if on_tensor is not None:
            on_tensor(name)
    try:
        save_file(whole, path, metadata={"format": "pt"})
    except (SafetensorError, OSError) as error:
        raise OutputError(f"{path} cannot be written: {error}.") from None


def _variants(folder: Path, stem: str) -> dict[str | None, Path]:
    """A file or an index for each variant; both spellings of an index's variant are in use."""
    found: dict[str | None, Path] = {}
    for path in sorted(folder.glob(f"{stem}.*")):
        words = path.name.removeprefix(f"{stem}.").split(".")
        match words:
            case ["safetensors"] | ["safetensors", "index", "json"]:
                found.setdefault(None, path)
            case [variant, "safetensors"] if "-of-" not in variant:
                found.setdefault(variant, path)
            case ["safetensors", "index", variant, "json"] | [variant, "safetensors", "index", "json"]:
                found.setdefault(variant, path)
    return found


def _why_not_found(folder: Path, stem: str, variant: str | None, found: Mapping[str | None, Path]) -> str:
    wanted = f"{stem}{_SUFFIX}" if variant is None else f"{stem}.{variant}{_SUFFIX}"
    others = sorted(each or "without one" for each in found)
    if others:
        return f"{folder} holds no {wanted}. There are the variants {', '.join(others)}: choose one."
    pickles = sorted(
        path.name for path in folder.glob("*") if path.suffix in {".bin", ".pth", ".pt", ".ckpt"}
    )
    if pickles:
        return (
            f"{folder} holds no {wanted}, only {pickles[0]}, a pickle, which could run code. "
            "Save it as safetensors first."
        )
    return f"{folder} holds no weights: there is no {wanted} and no index of several."


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        plain = all(Path(name).name == name for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        names, plain = [], False
    if not plain:
        raise CheckpointError(f"{index} is damaged, or is no index of weights.")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{index.parent} lacks {len(missing)} of {len(names)} files of its weights: {', '.join(missing)}."
        )
    return [index.parent / name for name in names]


def _parts(tensors: Mapping[str, Tensor], largest: int) -> Sequence[list[str]]:
    parts: list[list[str]] = [[]]
    size = 0
    for name, stored in stored_of(tensors).items():
        if parts[-1] and size + stored.size_bytes > largest:
            parts.append([])
            size = 0
        parts[-1].append(name)
        size += stored.size_bytes
    return parts
