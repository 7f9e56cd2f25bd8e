"""Checkpoints in pickles of torch: read without running anything in them, or refused with the reason."""

import pickle
import re
import struct
import sys
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
_GLOBAL = re.compile(r"GLOBAL ['`]?([\w.]+)")

_ZIP_START = b"PK\x03\x04"
# The fixed part of what stands before each member of a zip; it ends in the lengths of a name and of more.
_LOCAL_HEADER_BYTES = 30
_ENCRYPTED = 1


def open_pickle(path: Path) -> LazyTensors:
    """The tensors of a checkpoint, with whatever wraps them taken off, each read when it is asked for.

    Only tensors, numbers, strings, lists and dictionaries are understood: anything else could be code.

    Raises:
        CheckpointError: the file is missing, damaged, was packed by another program than torch, or wants to
            build what is none of these.
    """
    content, members = _load(path)
    while isinstance(content, Mapping) and not _holds_tensors(content):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    tensors = content if isinstance(content, Mapping) and _holds_tensors(content) else {}
    strange = [str(name) for name, value in tensors.items() if not _is_plain(value)]
    if not tensors or strange:
        what = f"{strange[0]} in it is no tensor" if strange else "there are no tensors by name in it"
        raise CheckpointError(f"{path} is no checkpoint of a network: {what}.")
    named = {str(name): tensor for name, tensor in tensors.items()}
    if members is not None:
        _check_places(path, named, members)
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


def _load(path: Path) -> tuple[Any, dict[int, int] | None]:
    """What a pickle holds. Of a zip tensors have no numbers, and `_members` goes along."""
    if not path.is_file():
        raise CheckpointError(f"{path} {'is no file' if path.exists() else 'does not exist'}.")
    try:
        with path.open("rb") as file:
            is_zip = file.read(len(_ZIP_START)) == _ZIP_START
        if not is_zip:  # torch before 1.6: nothing tells where a tensor lies
            return torch.load(path, map_location="cpu", weights_only=True), None
        members = _members(path)
        # Without their numbers, each storage with the place of its bytes: a memory map would keep every page
        # that was touched for as long as one tensor of the file lives.
        with FakeTensorMode():
            return torch.load(path, map_location="cpu", weights_only=True), members
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        named = _GLOBAL.search(str(error))
        if named is None:
            raise CheckpointError(f"{path} is cut off or damaged, or is no checkpoint of torch.") from None
        raise CheckpointError(
            f"{path} wants to call {named[1]} while it is read, which could run code: it is refused. "
            "Ask for the weights as safetensors."
        ) from None
    except Exception:  # whatever the unpickler comes upon in a stranger's file: IndexError, struct.error ...
        raise CheckpointError(f"{path} is cut off or damaged, or is no checkpoint of torch.") from None


def _members(path: Path) -> dict[int, int]:
    """Where the bytes of each file in a zip begin, and how many they are.

    Raises:
        CheckpointError: some are not there as they were, or not where torch, which reckons, looks for them.
    """
    found: dict[int, int] = {}
    keys: list[str] = []
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        records = {member.filename.partition("/")[2] for member in archive.infolist()}
        if "constants.pkl" in records:
            raise CheckpointError(
                f"{path} is a program of TorchScript, which is not read. Save its state_dict with torch.save."
            )
        for member in sorted(archive.infolist(), key=lambda member: member.header_offset):
            if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & _ENCRYPTED:
                raise _packed_again(path)
            file.seek(member.header_offset)
            name, more = struct.unpack_from("<HH", file.read(_LOCAL_HEADER_BYTES), _LOCAL_HEADER_BYTES - 4)
            begin = member.header_offset + _LOCAL_HEADER_BYTES + name + more
            found[begin] = member.file_size
            folder, _, key = member.filename.partition("/")[2].rpartition("/")
            keys += [key] if folder == "data" else []
            if folder or key != "byteorder":
                continue
            file.seek(begin)  # read past the archive, which would ask for checksums that torch may leave out
            if file.read(member.file_size) != sys.byteorder.encode():
                raise CheckpointError(
                    f"{path} was written on a machine with another order of bytes. "
                    f"Save it again with torch.save on one that is {sys.byteorder}-endian."
                )
    # Files with this mark have their storages in the order of their numbers, and torch relies on it.
    if ".format_version" in records and keys != [str(number) for number in range(len(keys))]:
        raise _packed_again(path)
    return found


def _check_places(path: Path, tensors: Mapping[str, Tensor], members: Mapping[int, int]) -> None:
    """Find out whether the bytes of each tensor are where torch says.

    Raises:
        CheckpointError: they are not.
    """
    for tensor in tensors.values():
        storage = tensor.untyped_storage()
        size = members.get(getattr(storage, "_checkpoint_offset", -1), -1)
        if not 0 <= size - storage.nbytes() < tensor.itemsize:
            raise _packed_again(path)


def _packed_again(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} was compressed or packed again by another program, so that its weights are not found in it. "
        "Read it with torch.load and save it again with torch.save."
    )


def _holds_tensors(content: Mapping[Any, Any]) -> bool:
    return any(isinstance(value, Tensor) for value in content.values())


def _is_plain(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized


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
