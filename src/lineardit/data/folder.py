"""A folder of pictures, with captions in files of the same name or in a table beside them."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from lineardit.data.captions import MOST_CAPTION_BYTES, captions_of_row, description_in
from lineardit.data.captions import SUFFIXES as CAPTION_SUFFIXES
from lineardit.data.labels import BadLabel, ClassRule, label_of_row
from lineardit.data.records import (
    MOST_BYTES,
    OTHER_SUFFIXES,
    SUFFIXES,
    BadCaption,
    CaptionColumns,
    Description,
    Record,
)
from lineardit.data.tables import FILE_NAME, NAMES, Row, rows
from lineardit.errors import InputError


class PathPicture(NamedTuple):
    """A picture in a file of its own."""

    path: Path

    @property
    def fingerprint(self) -> str:
        """Size and time of the last change."""
        found = self.path.stat()
        return f"{found.st_size}:{found.st_mtime_ns}"

    def read(self) -> bytes:
        """The whole file."""
        size = self.path.stat().st_size
        if size > MOST_BYTES:
            raise OSError(f"{size} bytes are more than {MOST_BYTES}")
        return self.path.read_bytes()


class FolderSource:
    """Every picture below a folder, in the order of their paths. Hidden files and folders are passed over.

    Captions come from the rows of metadata.jsonl, .csv or .parquet in the same folder or one above, or else
    from cat.txt, cat.caption or cat.json beside cat.jpg. A row without its picture is a record too. Classes,
    where a rule asks for them, come from the row or from cat.json, or are the name of the picture's folder.

    Raises:
        InputError: there is no picture in it, or a table cannot be read.
        MissingExtraError: a table is parquet, and pyarrow is not installed.
    """

    def __init__(
        self, folder: Path, columns: CaptionColumns | None = None, classes: ClassRule | None = None
    ) -> None:
        self.folder, self._columns = folder, columns
        self._class_keys = classes.keys if classes else ()
        self._folders_are_classes = classes is not None and classes.folders
        pictures, tables = _files(folder)
        self._keys = sorted(pictures)
        if not self._keys:
            kinds = ", ".join(SUFFIXES)
            raise InputError(f"{folder} holds no pictures ({kinds}). Give the folder that they are in.")
        self._rows: dict[str, Description | str] = {}
        """By path: what a row says, or what is wrong with it."""
        self._strays: list[Record] = []
        there = set(self._keys)
        for table in tables:
            for row in rows(folder / table):
                self._enter(row, PurePosixPath(table).parent, there)

    def __len__(self) -> int:
        return len(self._keys) + len(self._strays)

    def __getitem__(self, number: int) -> Record:
        """The picture of that number with its captions; rows without a picture come last."""
        if number >= len(self._keys):
            return self._strays[number - len(self._keys)]
        path = self.folder / self._keys[number]
        key = shown(self._keys[number])
        if path.suffix.lower() not in SUFFIXES:
            return Record(key, None, problem=f"unread format: {path.suffix.lower()} is not PNG, JPEG or WebP")
        found = self._rows.get(self._keys[number])
        if found is None:
            try:
                found = description_beside(path, self._columns, self._class_keys)
            except BadCaption as error:
                found = f"bad caption: {error}"
            except BadLabel as error:
                found = f"bad class: {error}"
        if isinstance(found, str):
            return Record(key, PathPicture(path), problem=found)
        label = found.label
        if label is None and self._folders_are_classes:
            label = PurePosixPath(key).parent.name or None
        return Record(key, PathPicture(path), found.captions, label=label)

    def _enter(self, row: Row, folder: PurePosixPath, there: set[str]) -> None:
        """Take over what a row says."""
        name = row.values.get(FILE_NAME)
        if row.problem is not None or not isinstance(name, str) or not name:
            reason = row.problem or f"bad row: there is no {FILE_NAME} in it"
            self._strays.append(Record(row.place, None, problem=reason))
            return
        key = _inside(name, folder)
        if key is None:
            reason = f"unsafe name: {ascii(name)[:100]} leads out of the folder"
        elif key not in there:
            reason = f"missing: there is no {shown(key)[:200]}"
        elif key in self._rows:
            reason = f"second row: {shown(key)[:200]} has one already"
        else:
            try:
                captions = captions_of_row(row.values, self._columns)
                self._rows[key] = Description(captions, label_of_row(row.values, self._class_keys))
            except (BadCaption, RecursionError) as error:
                self._rows[key] = f"bad caption: {row.place}: {error}"
            except BadLabel as error:
                self._rows[key] = f"bad class: {row.place}: {error}"
            return
        self._strays.append(Record(row.place, None, problem=reason))


def description_beside(
    path: Path, columns: CaptionColumns | None = None, class_keys: Sequence[str] = ()
) -> Description:
    """What the first file of captions beside a picture says; nothing where there is no such file.

    Raises:
        BadCaption: the file cannot be read, or holds something else.
        BadLabel: what it says as the class is none.
    """
    for suffix in CAPTION_SUFFIXES:
        beside = path.with_suffix(suffix)
        try:
            with beside.open("rb") as file:
                content = file.read(MOST_CAPTION_BYTES + 1)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise BadCaption(f"{shown(beside.name)} cannot be read ({error.strerror})") from None
        return description_in(content, suffix, shown(beside.name), columns, class_keys)
    return Description()


def shown(name: str) -> str:
    """A file name as text that can be written anywhere: bytes that are no UTF-8 become question marks."""
    return name.encode("utf-8", "replace").decode("utf-8")


def first_picture(folder: Path) -> str | None:
    """The path of a picture below the folder, with slashes; None where there is none."""
    found = (place / name for place, names in _walk(folder) for name in names if _is_picture(name))
    first = next(found, None)
    return None if first is None else first.as_posix()


def _inside(name: str, folder: PurePosixPath) -> str | None:
    """A name of a table as a path below the source; None where it leads out of it."""
    path = PurePosixPath(name.replace("\\", "/"))
    drive = len(name) > 1 and name[1] == ":"
    if path.is_absolute() or drive or ".." in path.parts or "\0" in name:
        return None
    return (folder / path).as_posix()


def _files(folder: Path) -> tuple[list[str], list[str]]:
    """Paths of the pictures and of the tables below the folder, with slashes."""
    pictures, tables = [], []
    for place, names in _walk(folder):
        pictures += [(place / name).as_posix() for name in names if _is_picture(name)]
        tables += [(place / name).as_posix() for name in NAMES if name in names][:1]
    return pictures, tables


def _is_picture(name: str) -> bool:
    return name.lower().endswith(SUFFIXES + OTHER_SUFFIXES)


def _walk(folder: Path) -> Iterator[tuple[PurePosixPath, list[str]]]:
    """Each folder, in order, with the names of its files; what is hidden is left out."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        visible = sorted(name for name in names if not name.startswith("."))
        yield PurePosixPath(Path(place).relative_to(folder).as_posix()), visible
