"""Tensors in safetensors files that several processes wrote: the rows of each lie one after the other."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lineardit.training.shares import Share


class Pieces(Mapping[str, Tensor]):
    """Named tensors, read from their files when they are asked for, whole or some of their rows."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Open the files, given in the order in which rows lie. Raises: SafetensorError or OSError."""
        self._files: dict[str, list[Any]] = defaultdict(list)
        for path in paths:
            file: Any = safe_open(path, framework="pt")
            for name in file.keys():  # noqa: SIM118, it is no mapping
                self._files[name].append(file)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._files:
            raise KeyError(name)
        parts = [file.get_tensor(name) for file in self._files[name]]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def shape(self, name: str) -> torch.Size:
        """Of the whole tensor, without reading it."""
        shapes = [file.get_slice(name).get_shape() for file in self._files[name]]
        return torch.Size((sum(shape[0] for shape in shapes), *shapes[0][1:])) if shapes[0] else torch.Size()

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of a tensor; only these are read."""
        parts: list[Tensor] = []
        before = 0
        for file in self._files[name]:
            piece = file.get_slice(name)
            length = piece.get_shape()[0]
            first, last = max(start - before, 0), min(stop - before, length)
            if first < last or (not parts and before + length >= stop):
                parts.append(piece[first : max(first, last)])
            before += length
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def own_pieces(tensors: Mapping[str, Tensor], part: Share) -> dict[str, Tensor]:
    """What this process writes: its rows of what is spread, and the first one also all that is not."""
    pieces = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            local = tensor.to_local()
            if local.numel():
                pieces[name] = local
        elif part.index == 0:
            pieces[name] = tensor
    return pieces


def like(tensors: Mapping[str, Tensor], name: str, pattern: Tensor) -> Tensor:
    """Tensor `name`, spread as `pattern` is where both have as many rows.

    Raises: LookupError where there is none.
    """
    if not isinstance(pattern, DTensor):
        return tensors[name]
    shape = tensors.shape(name) if isinstance(tensors, Pieces) else tensors[name].shape
    if not shape or shape[0] != len(pattern):
        return tensors[name]
    mesh = pattern.device_mesh
    each = -(-shape[0] // mesh.size(mesh.ndim - 1))
    start = min(shape[0], each * mesh.get_local_rank(mesh.ndim - 1))
    stop = min(shape[0], start + each)
    local = tensors.rows(name, start, stop) if isinstance(tensors, Pieces) else tensors[name][start:stop]
    return DTensor.from_local(
        local.to(pattern.device),
        mesh,
        pattern.placements,
        run_check=False,
        shape=shape,
        stride=torch.empty(shape, device="meta").stride(),
    )


def load_module(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a module, spread over processes or not, the weights that `tensors` hold.

    Raises: RuntimeError where they do not fit.
    """
    own = module.state_dict()
    if any(isinstance(tensor, DTensor) for tensor in own.values()):
        missing = sorted(own.keys() ^ tensors.keys())
        if missing:
            raise RuntimeError(f"one of them has no {missing[0]}.")
        module.load_state_dict({name: like(tensors, name, tensor) for name, tensor in own.items()})
    else:
        module.load_state_dict(tensors)
