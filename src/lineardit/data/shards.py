"""Shards: safetensors files with a checksum, written whole or not at all, read row by row by memory map."""

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lineardit.errors import CheckpointError, OutputError

OPEN_FILES = 64
"""Shards that are open at a time."""


def shard_name(index: int) -> str:
    """What shard `index` is called."""
    return f"shard-{index:05d}.safetensors"


def sha256_of(path: Path) -> str:
    """Hexadecimal digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_shard(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str] | None = None) -> str:
    """Write a shard, with `facts` in its header, and return its checksum.

    Raises:
        OutputError: the folder cannot be written, or the disk is full; what was there before stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(whole, temporary, dict(facts) if facts else None)
        digest = sha256_of(temporary)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{path.parent} cannot be written: {error}.") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return digest


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file at once.

    Raises:
        OutputError: it cannot be written; what was there before stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"{path.parent} cannot be written: {error}.") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


class Shards:
    """Shards that are open for reading. Each is compared with its checksum when it is first opened.

    Raises (from every method):
        CheckpointError: a shard is missing, damaged or not what its checksum says; names it.
    """

    def __init__(self, remedy: str) -> None:
        """`remedy` is what an error tells to do with a shard that is damaged or missing."""
        self._remedy = remedy
        self._checked: set[Path] = set()
        self._open: OrderedDict[Path, Any] = OrderedDict()

    def tensor(self, path: Path, sha256: str, name: str) -> Tensor:
        """A whole tensor."""
        try:
            found: Tensor = self._file(path, sha256).get_tensor(name)
        except SafetensorError as error:
            raise CheckpointError(f"{path} is damaged: {error}. {self._remedy}") from None
        return found

    def rows(self, path: Path, sha256: str, name: str, start: int, stop: int) -> Tensor:
        """Some rows of a tensor; nothing else is read."""
        try:
            found: Tensor = self._file(path, sha256).get_slice(name)[start:stop]
        except (SafetensorError, IndexError) as error:
            raise CheckpointError(f"{path} is damaged: {error}. {self._remedy}") from None
        return found

    def facts(self, path: Path, sha256: str) -> dict[str, str]:
        """What was written beside the tensors."""
        return dict(self._file(path, sha256).metadata() or {})

    def names(self, path: Path, sha256: str) -> list[str]:
        """What the tensors are called."""
        return list(self._file(path, sha256).keys())

    def _file(self, path: Path, sha256: str) -> Any:
        if path in self._open:
            self._open.move_to_end(path)
            return self._open[path]
        try:
            if path not in self._checked and sha256_of(path) != sha256:
                raise CheckpointError(f"{path} is damaged: its checksum differs. {self._remedy}")
            file: Any = safe_open(path, "pt")
            file.__enter__()
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read ({error.strerror}). {self._remedy}") from None
        except SafetensorError as error:
            raise CheckpointError(f"{path} is no safetensors file: {error}. {self._remedy}") from None
        self._checked.add(path)
        self._open[path] = file
        if len(self._open) > OPEN_FILES:
            self._open.popitem(last=False)[1].__exit__(None, None, None)
        return file
