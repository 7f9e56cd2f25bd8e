"""Latents and text embeddings computed once, kept in shards with checksums, and read by memory map."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lineardit.errors import CheckpointError, OutputError

INDEX = "index.json"


class ShardCache:
    """A folder of shards, each a dictionary of tensors with one row per sample, made in order and reused.

    `key` says what the shards were computed from; a folder made from something else is refused, not mixed.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        self.folder, self.key = folder, json.loads(json.dumps(key))
        self._sums: dict[str, str] = {}
        index = folder / INDEX
        if not index.exists():
            return
        try:
            found = json.loads(index.read_text("utf-8"))
            there, self._sums = dict(found["key"]), dict(found["shards"])
        except (OSError, ValueError, KeyError, TypeError):
            raise CheckpointError(f"{index} is damaged. Remove {folder}; it is made again.") from None
        if there != self.key:
            names = dict.fromkeys([*self.key, *there])
            changed = [name for name in names if there.get(name) != self.key.get(name)]
            raise OutputError(
                f"{folder} was computed from other settings ({', '.join(changed)}). "
                "Remove it, or name another output folder."
            )

    def fill(self, count: int, make: Callable[[int], Mapping[str, Tensor]]) -> None:
        """Make the shards 0 to count - 1 that are not there yet."""
        for index in range(count):
            name = _name(index)
            if name not in self._sums or not (self.folder / name).exists():
                self._write(name, {key: value.contiguous() for key, value in make(index).items()})

    def load(self, count: int) -> dict[str, Tensor]:
        """All rows of the first `count` shards, one tensor per name.

        Raises:
            CheckpointError: a shard is missing or damaged; names it.
        """
        parts: dict[str, list[Tensor]] = {}
        for path in (self.folder / _name(index) for index in range(count)):
            if not path.exists():
                raise CheckpointError(f"{path} is missing: {count} shards were asked for. Fill them first.")
            if _sha256(path) != self._sums.get(path.name):
                raise CheckpointError(
                    f"{path} is damaged: its checksum differs. Remove it; it is made again."
                )
            try:
                with safe_open(path, "pt") as shard:
                    for key in shard.keys():  # noqa: SIM118  (a safe_open handle is no mapping)
                        parts.setdefault(key, []).append(shard.get_tensor(key))
            except SafetensorError as error:
                raise CheckpointError(f"{path} is no safetensors file: {error}") from None
        return {key: torch.cat(tensors) for key, tensors in parts.items()}

    def _write(self, name: str, tensors: dict[str, Tensor]) -> None:
        temporary, fresh = (self.folder / f".{each}.{os.getpid()}" for each in (name, INDEX))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file(tensors, temporary)
            self._sums[name] = _sha256(temporary)
            temporary.replace(self.folder / name)
            fresh.write_text(json.dumps({"key": self.key, "shards": self._sums}, indent=1), "utf-8")
            fresh.replace(self.folder / INDEX)
        except (OSError, SafetensorError) as error:
            raise OutputError(f"{self.folder} cannot be written: {error}.") from None
        finally:
            if self.folder.is_dir():
                temporary.unlink(missing_ok=True)
                fresh.unlink(missing_ok=True)


def _name(index: int) -> str:
    return f"shard-{index:05d}.safetensors"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
