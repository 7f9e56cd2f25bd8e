"""Checkpoints in pickles of torch: read without running anything in them, or refused with the reason."""

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from lineardit.errors import CheckpointError, OutputError
from lineardit.interop.stored import LazyTensors, read_bytes, stored_of

SUFFIXES = frozenset({".pth", ".pt", ".bin", ".ckpt"})

_WRAPPERS = ("state_dict", "model", "module")
_GLOBAL = re.compile(r"(?:GLOBAL|global:?) ['`]?([\w.]+)")


def open_pickle(path: Path) -> LazyTensors:
    """The tensors of a checkpoint, with whatever wraps them taken off, each read when it is asked for.

    Only tensors, numbers, strings, lists and dictionaries are understood: anything else could be code.

    Raises:
        CheckpointError: the file is missing, damaged, or wants to build what is none of these.
    """
    content = _load(path)
    while isinstance(content, Mapping) and not _holds_tensors(content):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    tensors = content if isinstance(content, Mapping) and _holds_tensors(content) else {}
    strange = [str(name) for name, value in tensors.items() if not isinstance(value, Tensor)]
    if not tensors or strange:
        what = f"{strange[0]} in it is no tensor" if strange else "there are no tensors by name in it"
        raise CheckpointError(f"{path} is no checkpoint of a network: {what}.")
    named = {str(name): tensor for name, tensor in tensors.items()}
    return LazyTensors(stored_of(named), lambda name: _read(path, named[name]))


def write_pickle(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as {"state_dict": ...}, which is how official checkpoints come.

    Raises:
        OutputError: the file cannot be written.
    """
    whole = {name: tensors[name].detach().cpu().contiguous().clone() for name in tensors}
    try:
        torch.save({"state_dict": whole}, path)
    except (OSError, RuntimeError) as error:
        raise OutputError(f"{path} cannot be written: {error}.") from None


def _load(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path} {'is no file' if path.exists() else 'does not exist'}.")
    try:
        if not zipfile.is_zipfile(path):  # torch before 1.6: nothing tells where a tensor lies
            return torch.load(path, map_location="cpu", weights_only=True)
        # Without their numbers, each storage with the place of its bytes: a memory map would keep every page
        # that was touched for as long as one tensor of the file lives.
        with FakeTensorMode():
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = _GLOBAL.search(str(error))
        if named is None:
            raise CheckpointError(f"{path} is cut off or damaged, or is no checkpoint of torch.") from None
        raise CheckpointError(
            f"{path} wants to call {named[1]} while it is read, which could run code: it is refused. "
            "Ask for the weights as safetensors."
        ) from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError, TypeError):
        raise CheckpointError(f"{path} is cut off or damaged, or is no checkpoint of torch.") from None


def _holds_tensors(content: Mapping[Any, Any]) -> bool:
    return any(isinstance(value, Tensor) for value in content.values())


def _read(path: Path, tensor: Tensor) -> Tensor:
    storage = tensor.untyped_storage()
    begin: int | None = getattr(storage, "_checkpoint_offset", None)
    if begin is None:
        return tensor.clone()
    if not tensor.is_contiguous():
        whole = read_bytes(path, begin, begin + storage.nbytes()).view(tensor.dtype)
        return whole.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).contiguous()
    begin += int(tensor.storage_offset()) * tensor.itemsize
    return read_bytes(path, begin, begin + tensor.nbytes).view(tensor.dtype).reshape(tensor.shape)
