"""Pictures in rows: a datasets.Dataset, anything else that is indexed like one, and parquet files of rows."""

import hashlib
import io
from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from PIL import Image

from lineardit.data.captions import captions_of_row
from lineardit.data.labels import BadLabel, ClassRule, label_of_row
from lineardit.data.picture_files import in_eight_bits
from lineardit.data.records import MOST_BYTES, BadCaption, CaptionColumns, Record
from lineardit.data.tables import declared_features, pyarrow_parquet, stamps
from lineardit.errors import InputError

PICTURE_COLUMNS = ("image", "jpg", "png", "webp", "picture")
"""What the column of pictures is called, in the order in which it is looked for."""


@runtime_checkable
class Rows(Protocol):
    """What a datasets.Dataset is to us: rows by number, each a mapping."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Mapping[str, Any]: ...


class RowPicture(NamedTuple):
    """The picture of a row: bytes, a mapping with `bytes` or `path`, a path, or a picture of Pillow's."""

    rows: Rows
    number: int
    column: str

    @property
    def fingerprint(self) -> str:
        """That of the dataset where it has one, as datasets.Dataset does, else that of the bytes."""
        known = getattr(self.rows, "_fingerprint", None)
        if isinstance(known, str):
            return f"{known}:{self.number}"
        return hashlib.sha256(self.read()).hexdigest()

    def read(self) -> bytes:
        """The encoded bytes; a picture of Pillow's is encoded as PNG, which loses nothing."""
        row = _row(self.rows, self.number)
        if self.column not in row:
            raise OSError(f"there is no {self.column}, only {_listed(row)}")
        return _encoded(row[self.column])


def picture_column(columns: Collection[str]) -> str | None:
    """The one of some columns that holds pictures, by its name; None where there is none."""
    return next((column for column in PICTURE_COLUMNS if column in columns), None)


class DatasetSource:
    """The rows of a dataset with their pictures and captions, and their classes where a rule asks for them.

    Raises:
        InputError: it has no rows, its first one cannot be read, or it has no column of pictures.
    """

    def __init__(
        self,
        rows: Rows,
        columns: CaptionColumns | None = None,
        *,
        classes: ClassRule | None = None,
        picture: str | None = None,
        name: str = "row",
    ) -> None:
        """`columns` are those of captions, `picture` is that of pictures, `name` what records are called."""
        self._rows, self._columns, self._name = rows, columns, name
        if not len(rows):
            raise InputError("the dataset has no rows.")
        try:
            there = [str(column) for column in _row(rows, 0)]
        except OSError as error:
            raise InputError(
                "the first row of the dataset, which says what the columns are, cannot be read: "
                f"{error.strerror or error}. Restore its file, or leave it out."
            ) from None
        found = picture_column(there) if picture is None else picture
        if found is None or found not in there:
            wanted = picture or " or ".join(PICTURE_COLUMNS)
            raise InputError(f"the dataset has no column {wanted}; it has {_listed(there)}.")
        self._picture = found
        self._class_keys = classes.keys if classes else ()
        self._class_names = {key: names for key in self._class_keys if (names := _class_names(rows, key))}

    @property
    def class_names(self) -> Sequence[str]:
        """The classes that the dataset declares, by number."""
        return next(iter(self._class_names.values()), ())

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> Record:
        """The row of that number."""
        key = f"{self._name}:{number}"
        picture = RowPicture(self._rows, number, self._picture)
        try:
            row = _row(self._rows, number)
            label = label_of_row(row, self._class_keys, self._class_names)
            return Record(key, picture, captions_of_row(row, self._columns), label=label)
        except BadCaption as error:
            return Record(key, picture, problem=f"bad caption: {error}")
        except BadLabel as error:
            return Record(key, picture, problem=f"bad class: {error}")
        except OSError as error:
            return Record(key, None, problem=f"unreadable: {error}")


class ParquetRows:
    """The rows of parquet files, one file after the other; the group of rows last read stays in memory.

    Raises:
        InputError: a file is damaged or no parquet.
        MissingExtraError: pyarrow is not installed.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._groups: list[tuple[int, Path, int]] = []
        """For each group of rows the number of its first row, its file, and its number there."""
        self._count = 0
        self.features: Mapping[str, Any] = {}
        """What datasets noted of each column."""
        for path in paths:
            parquet = pyarrow_parquet(path)
            try:
                file = parquet.ParquetFile(path)
                metadata = file.metadata
                lengths = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
                self.features = self.features or declared_features(file.schema_arrow)
            except Exception as error:  # what pyarrow raises for damage is of many kinds
                raise InputError(f"{path} is damaged, or no parquet ({type(error).__name__}).") from None
            for group, length in enumerate(lengths):
                self._groups.append((self._count, path, group))
                self._count += length
        self._fingerprint = stamps(paths)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Mapping[str, Any]:
        if not 0 <= number < self._count:
            raise IndexError(number)
        first, path, group = self._groups[bisect_right(self._groups, number, key=lambda each: each[0]) - 1]
        return _group_rows(path, group)[number - first]


@lru_cache(2)
def _group_rows(path: Path, group: int) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = pyarrow_parquet(path).ParquetFile(path).read_row_group(group).to_pylist()
    except Exception as error:
        raise OSError(f"{path.name} is damaged ({type(error).__name__})") from None
    return rows


def _row(rows: Rows, number: int) -> Mapping[str, Any]:
    """A row. Whatever a foreign dataset raises for a broken one becomes an OSError."""
    try:
        row = rows[number]
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"the dataset gives no row {number} ({type(error).__name__})") from None
    if not isinstance(row, Mapping):
        raise OSError(f"row {number} is no mapping")
    return row


def _listed(columns: Iterable[object]) -> str:
    return ", ".join(str(column) for column in columns)[:200] or "none"


def _class_names(rows: Rows, column: str) -> tuple[str, ...]:
    """The names behind the numbers of a column that is a ClassLabel, as datasets calls it."""
    features = getattr(rows, "features", None)
    feature = features.get(column) if isinstance(features, Mapping) else None
    names = feature.get("names") if isinstance(feature, Mapping) else getattr(feature, "names", None)
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        return ()
    return tuple(names)


def _encoded(value: object) -> bytes:
    match value:
        case bytes():
            content = value
        case Image.Image():
            kept = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
            plain = value if value.mode in kept else in_eight_bits(value).convert("RGB")
            stream = io.BytesIO()
            try:
                plain.save(stream, "PNG", exif=value.getexif())
            except Exception as error:  # Pillow decodes here, and raises anything
                raise OSError(f"it cannot be decoded ({type(error).__name__})") from None
            content = stream.getvalue()
        case {"bytes": bytes() as inner}:
            content = inner
        case str() | Path() | {"path": str()}:
            raise OSError(
                "it is only a path, which is not followed; write the dataset with save_to_disk, which puts "
                "the pictures in, or give their folder"
            )
        case _:
            raise OSError(f"a {type(value).__name__} is no picture")
    if len(content) > MOST_BYTES:
        raise OSError(f"{len(content)} bytes are more than {MOST_BYTES}")
    return content
