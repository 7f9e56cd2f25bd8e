"""Latents and text embeddings computed once, kept in shards with checksums, and read by memory map."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lineardit.data.shards import Shards, shard_name, write_json, write_shard
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
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
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
        for name, index in ((shard_name(index), index) for index in range(count)):
            if name not in self._sums or not (self.folder / name).exists():
                self._sums[name] = write_shard(self.folder / name, make(index))
                write_json(self.folder / INDEX, {"key": self.key, "shards": self._sums})

    def load(self, count: int) -> dict[str, Tensor]:
        """All rows of the first `count` shards, one tensor per name.

        Raises:
            CheckpointError: a shard is missing or damaged; names it.
        """
        parts: dict[str, list[Tensor]] = {}
        shards = Shards("Remove it; it is made again.")
        for path in (self.folder / shard_name(index) for index in range(count)):
            if not path.exists():
                raise CheckpointError(f"{path} is missing: {count} shards were asked for. Fill them first.")
            for key in shards.names(path, self._sums.get(path.name, "")):
                parts.setdefault(key, []).append(shards.tensor(path, self._sums[path.name], key))
        return {key: torch.cat(tensors) for key, tensors in parts.items()}
