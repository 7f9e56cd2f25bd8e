"""Tensors that stay in their files until they are asked for, one at a time: a model loads in its own size."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lineardit.errors import CheckpointError, InputError
from lineardit.kernels.select import DTYPES

# As safetensors names them.
STORED_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in STORED_DTYPES.items()}
_LENGTH_BYTES = 8


class Stored(NamedTuple):
    """One tensor as the header of its file describes it."""

    dtype: str
    """As safetensors names it: F32, BF16, F16, I64 ..."""
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """What it takes in memory."""
        known = STORED_DTYPES.get(self.dtype, torch.uint8)
        return torch.Size(self.shape).numel() * known.itemsize


class LazyTensors(Mapping[str, Tensor]):
    """Tensors by name, each read or put together when it is asked for; dtypes and shapes are known before."""

    def __init__(self, stored: Mapping[str, Stored], read: Callable[[str], Tensor]) -> None:
        self.stored = dict(stored)
        self._read = read

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.stored:
            raise KeyError(name)
        return self._read(name)

    def __contains__(self, name: object) -> bool:
        return name in self.stored

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def only(self, names: Iterable[str]) -> "LazyTensors":
        """Those of these names, in this order."""
        return LazyTensors({name: self.stored[name] for name in names}, self._read)

    def renamed(self, names: Mapping[str, str]) -> "LazyTensors":
        """The tensors called by the keys of `names`, whose values are what they are called here."""
        return LazyTensors(
            {new: self.stored[old] for new, old in names.items()}, lambda name: self._read(names[name])
        )

    def to(self, dtype: str, device: torch.device | None = None) -> "LazyTensors":
        """The same with floating-point tensors as `dtype` (fp32, bf16 or fp16), and all on `device`.

        Reading one raises `InputError` where fp16 cannot hold a number.
        """

        def read(name: str) -> Tensor:
            tensor = self._read(name)
            tensor = converted(name, tensor, dtype) if tensor.is_floating_point() else tensor
            return tensor if device is None else tensor.to(device)

        target = _NAMES[DTYPES[dtype]]
        stored = {
            name: Stored(target if each.dtype.startswith(("F", "BF")) else each.dtype, each.shape)
            for name, each in self.stored.items()
        }
        return LazyTensors(stored, read)


def joined(*parts: Mapping[str, Tensor]) -> LazyTensors:
    """The tensors of several mappings without a name in common."""
    places = {name: part for part in parts for name in part}
    stored: dict[str, Stored] = {}
    for part in parts:
        stored |= stored_of(part)
    return LazyTensors(stored, lambda name: places[name][name])


def stored_of(tensors: Mapping[str, Tensor]) -> dict[str, Stored]:
    """Dtypes and shapes, without reading what is not read yet."""
    if isinstance(tensors, LazyTensors):
        return tensors.stored
    return {
        name: Stored(_NAMES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape))
        for name, tensor in tensors.items()
    }


def converted(name: str, tensor: Tensor, dtype: str) -> Tensor:
    """A floating-point tensor as `dtype`: fp32, bf16 or fp16.

    Raises:
        InputError: fp16 cannot hold a number of it.
    """
    out = tensor.to(DTYPES[dtype])
    # The extremes first: they need no memory of their own, and tell of any number that is not finite.
    if out is not tensor and out.numel() and not torch.stack(out.aminmax()).isfinite().all():
        finite = tensor.isfinite()
        if not torch.equal(out.isfinite(), finite):
            largest = tensor[finite].abs().max().item()
            raise InputError(
                f"{name} has a number of size {largest:.3g}, too large for {dtype}. Use bf16 or fp32."
            )
    return out


def open_tensors(*paths: Path) -> LazyTensors:
    """The tensors of one or several safetensors files. Only their headers are read now.

    Raises:
        CheckpointError: a file is missing, truncated or something else, or two hold the same tensor.
    """
    stored: dict[str, Stored] = {}
    places: dict[str, tuple[Path, int, int]] = {}
    for path in paths:
        header = read_header(path)
        twice = [name for name in header if name in stored]
        if twice:
            raise CheckpointError(f"{path} holds {twice[0]}, which another file of the same model holds too.")
        stored |= header
        places |= _offsets(path)

    def read(name: str) -> Tensor:
        dtype = STORED_DTYPES.get(stored[name].dtype)
        path, begin, end = places[name]
        if dtype is None:
            raise CheckpointError(
                f"{path} stores {name} as {stored[name].dtype}. Read are {', '.join(STORED_DTYPES)}."
            )
        return read_bytes(path, begin, end).view(dtype).reshape(stored[name].shape)

    return LazyTensors(stored, read)


def read_header(path: Path) -> dict[str, Stored]:
    """Names, dtypes and shapes in a safetensors file, without reading a weight.

    Raises:
        CheckpointError: there is no such file, or it is truncated or something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: Stored(part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(why_unreadable(path, error)) from None


def read_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself beside its tensors. Raises as `read_header`."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(why_unreadable(path, error)) from None


def why_unreadable(path: Path, error: Exception) -> str:
    """What kind of file stands where a safetensors file should."""
    if not path.is_file():
        return f"{path} does not exist." if not path.exists() else f"{path} is no file."
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as refused:
        return f"{path} cannot be read ({refused.strerror})."
    if start.startswith(b"version https://git-lfs"):
        return f"{path} is a pointer of Git LFS, not the weights. Run git lfs pull."
    if start.startswith((b"PK\x03\x04", b"\x80\x02")):
        return f"{path} is a pickle, which could run code and is never loaded. Convert it to safetensors."
    if not start:
        return f"{path} is empty."
    header = int.from_bytes(start[:_LENGTH_BYTES], "little")
    if len(start) > _LENGTH_BYTES and start[8:9] == b"{" and header < 100_000_000:
        return f"{path} is cut off or damaged ({error})."
    return f"{path} is no safetensors file."


def _offsets(path: Path) -> dict[str, tuple[Path, int, int]]:
    """Where each tensor lies in a file whose header is known to hold: its path, first byte and end."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        header: dict[str, Any] = json.loads(file.read(length))
    start = _LENGTH_BYTES + length
    return {
        name: (path, start + entry["data_offsets"][0], start + entry["data_offsets"][1])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def read_bytes(path: Path, begin: int, end: int) -> Tensor:
    """The bytes of a file from `begin` to before `end`.

    Raises:
        CheckpointError: there are not so many, or the file cannot be read.
    """
    # Into memory of our own: a memory map would keep every page that was touched for as long as one
    # tensor of the file lives.
    buffer = torch.empty(end - begin, dtype=torch.uint8)
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(begin)
            view, done = buffer.numpy().data, 0
            while done < len(view) and (count := file.readinto(view[done:])):
                done += count
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}).") from None
    if done < len(view):
        raise CheckpointError(f"{path} is cut off.")
    return buffer
