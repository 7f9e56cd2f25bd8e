"""Rows of metadata.jsonl, metadata.csv and metadata.parquet, as Hugging Face's imagefolder has them."""

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from lineardit.errors import InputError, MissingExtraError

FILE_NAME = "file_name"
"""The column that says which picture a row is about, relative to the folder of the table."""
NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
"""What a table is called, in the order in which they are looked for."""
_BYTES = ("binary", "large_binary", "fixed_size_binary", "struct")
"""What the types of columns begin with that hold them, as Arrow writes types."""
WEIGHT, WEIGHTS = "weight", "weights"
"""The columns of the weights of captions, which are numbers in CSV too."""
LONGEST_ROW = 2**22
"""Bytes of a line; a longer one is no row."""
_ROWS_AT_ONCE = 1024


class Row(NamedTuple):
    """One row, or why it is none."""

    place: str
    """The name of the table and the number of the row, counted from 1."""
    values: Mapping[str, object]
    problem: str | None = None


def rows(path: Path) -> Iterator[Row]:
    """The rows of a table. One that cannot be read has a `problem`, as has the place where one breaks off.

    Raises:
        InputError: it cannot be opened, or has no column `file_name`.
        MissingExtraError: it is parquet, and pyarrow is not installed.
    """
    readers = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
    try:
        yield from readers[path.suffix.lower()](path)
    except OSError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read ({error.strerror or error}).") from None


def pyarrow_parquet(path: Path) -> Any:
    """The module that reads parquet.

    Raises:
        MissingExtraError: it is not installed; names the extra to install.
    """
    if find_spec("pyarrow") is None:
        raise MissingExtraError("pyarrow", "data", f"reading {path.name}")
    return import_module("pyarrow.parquet")


def parquet_columns(path: Path) -> dict[str, bool]:
    """What the columns of a parquet file are called, and whether they hold bytes; no row is read.

    Pictures are bytes, alone or in a structure; texts only name them.

    Raises:
        InputError: it is damaged or no parquet.
        MissingExtraError: pyarrow is not installed.
    """
    parquet = pyarrow_parquet(path)
    try:
        return {str(field.name): str(field.type).startswith(_BYTES) for field in parquet.read_schema(path)}
    except Exception as error:  # what pyarrow raises for damage is of many kinds
        raise InputError(f"{path} is damaged, or no parquet ({type(error).__name__}).") from None


def declared_features(schema: Any) -> Mapping[str, Any]:
    """What Hugging Face's datasets noted of each column in an Arrow schema; nothing where it was not used."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def stamps(paths: Iterable[Path]) -> str:
    """Something that is another one when the files are others: of their names, sizes and times of change."""
    facts = [f"{path.name}:{(found := path.stat()).st_size}:{found.st_mtime_ns}" for path in paths]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(LONGEST_ROW + 1):
            number += 1
            place = f"{path.name}:{number}"
            if len(line) > LONGEST_ROW:
                yield Row(
                    place, {}, f"bad row: it is longer than {LONGEST_ROW} bytes; what follows is not read"
                )
                return
            if line.strip():
                yield _json_row(place, line)


def _json_row(place: str, line: bytes) -> Row:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return Row(place, {}, "bad row: it is no JSON")
    if not isinstance(values, dict):
        return Row(place, {}, "bad row: it is no JSON object")
    return Row(place, values)


def _csv(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", errors="strict", newline="") as file:
        reader = csv.DictReader(file)
        number = 0
        try:
            _check_columns(path, reader.fieldnames or ())
            for values in reader:
                number += 1
                # Cells beyond the header come under the name None, as a list.
                cells = {name: _cell(name, cell) for name, cell in values.items() if isinstance(name, str)}
                yield Row(f"{path.name}:{number}", cells)
        except (csv.Error, UnicodeDecodeError) as error:
            reason = "it is no UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)
            place = f"{path.name}:{number + 1}"
            yield Row(place, {}, f"bad row: {reason}; what follows is not read")


def _cell(name: str, text: str | None) -> object:
    """A cell of CSV, where all is text: weights as numbers, or nothing where there is none. What should be a
    number and is not stays, for the captions to be refused."""
    if text is None or name not in (WEIGHT, WEIGHTS):
        return text
    if not text.strip():
        return None
    try:
        number = float(text)
    except ValueError:
        return text
    return [number] if name == WEIGHTS else number  # a cell holds one caption


def _parquet(path: Path) -> Iterator[Row]:
    parquet = pyarrow_parquet(path)
    number = 0
    try:
        file = parquet.ParquetFile(path)
        names = [str(name) for name in file.schema_arrow.names]
    except Exception as error:  # what pyarrow raises for damage is of many kinds
        raise InputError(f"{path} is damaged, or no parquet ({type(error).__name__}).") from None
    _check_columns(path, names)
    try:
        for batch in file.iter_batches(_ROWS_AT_ONCE):
            for values in batch.to_pylist():
                number += 1
                yield Row(f"{path.name}:{number}", values)
    except Exception as error:
        place = f"{path.name}:{number + 1}"
        yield Row(place, {}, f"bad row: damaged ({type(error).__name__}); what follows is not read")


def _check_columns(path: Path, names: Iterable[str]) -> None:
    if FILE_NAME not in names:
        there = ", ".join(str(name) for name in names)[:200] or "none"
        raise InputError(
            f"{path} has no column {FILE_NAME}, the picture that a row is about; it has {there}."
        )
