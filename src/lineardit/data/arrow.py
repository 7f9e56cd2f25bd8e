"""Rows of Arrow files, as `Dataset.save_to_disk` of Hugging Face's datasets writes them."""

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import Any

from lineardit.data.tables import declared_features, stamps
from lineardit.errors import InputError, MissingExtraError

STATE = "state.json"
"""Beside the files of a dataset: their names, in their order."""
SPLITS = "dataset_dict.json"
"""In a folder of several datasets, one folder for each split."""
_FILE_MAGIC = b"ARROW1"


class ArrowRows:
    """The rows of Arrow files, one file after the other, read by memory map.

    Raises:
        InputError: a file is damaged or no Arrow.
        MissingExtraError: pyarrow is not installed.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = list(paths)
        lengths = []
        for path in self._paths:
            try:
                lengths.append(_table(path).num_rows)
            except OSError as error:
                raise InputError(f"{path} is damaged, or no Arrow file ({error}).") from None
        self._ends = list(accumulate(lengths))
        self._fingerprint = stamps(self._paths)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, number: int) -> Mapping[str, Any]:
        if not 0 <= number < len(self):
            raise IndexError(number)
        which = bisect_right(self._ends, number)
        table = _table(self._paths[which])
        row: dict[str, Any] = table.slice(number - self._ends[which] + table.num_rows, 1).to_pylist()[0]
        return row

    @property
    def features(self) -> Mapping[str, Any]:
        """What datasets noted of each column."""
        return declared_features(_table(self._paths[0]).schema) if self._paths else {}


def saved_files(folder: Path) -> list[Path] | None:
    """The Arrow files of a folder that `save_to_disk` wrote, in their order; None where it is another folder.

    Raises:
        InputError: it holds several splits, or is damaged.
    """
    if (folder / SPLITS).is_file():
        splits = [name for name in _json(folder / SPLITS).get("splits", []) if isinstance(name, str)]
        if len(splits) != 1:
            raise InputError(
                f"{folder} holds {len(splits)} splits: {', '.join(splits)}. "
                f"Give one, as {folder / splits[0] if splits else folder}."
            )
        folder = folder / Path(splits[0]).name
    if not (folder / STATE).is_file():
        return None
    try:
        names = [Path(each["filename"]).name for each in _json(folder / STATE)["_data_files"]]
    except (KeyError, TypeError):
        raise InputError(f"{folder / STATE} is damaged: it names no files of data.") from None
    return [folder / name for name in names]


@lru_cache(8)
def _table(path: Path) -> Any:
    """The table of a file; its numbers stay on the disk until they are asked for."""
    if find_spec("pyarrow") is None:
        raise MissingExtraError("pyarrow", "data", f"reading {path.name}")
    pyarrow = import_module("pyarrow")
    try:
        with path.open("rb") as file:
            magic = file.read(len(_FILE_MAGIC))
        mapped, ipc = pyarrow.memory_map(str(path)), import_module("pyarrow.ipc")
        opened = ipc.open_file(mapped) if magic == _FILE_MAGIC else ipc.open_stream(mapped)
        return opened.read_all()
    except OSError as error:
        raise OSError(error.strerror or type(error).__name__) from None
    except Exception as error:  # what pyarrow raises for damage is of many kinds
        raise OSError(type(error).__name__) from None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InputError(f"{path} is damaged.")
    return found
