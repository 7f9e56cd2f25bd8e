"""Finds out what a place holds that pictures are prepared from."""

import re
from collections.abc import Sequence
from pathlib import Path

from lineardit.data.arrow import ArrowRows, saved_files
from lineardit.data.dataset import PICTURE_COLUMNS, DatasetSource, ParquetRows, picture_column
from lineardit.data.folder import FolderSource, first_picture, shown
from lineardit.data.labels import ClassRule
from lineardit.data.records import CaptionColumns, Declaring, Record, Source
from lineardit.data.tables import NAMES, parquet_columns
from lineardit.data.webdataset import WebDatasetSource
from lineardit.errors import InputError, MissingExtraError

SCENES = re.compile(r"emoji:(\d+)")
"""Names that many drawn scenes instead of a place."""


class JoinedSource:
    """Several sources one after the other; keys say which one. The classes that they declare are joined."""

    def __init__(self, parts: Sequence[tuple[str, Source]]) -> None:
        self._parts = list(parts)

    @property
    def class_names(self) -> Sequence[str]:
        """The classes that the sources declare, each once, by number."""
        declared = [source.class_names for _, source in self._parts if isinstance(source, Declaring)]
        return tuple(dict.fromkeys(name for names in declared for name in names))

    def __len__(self) -> int:
        return sum(len(source) for _, source in self._parts)

    def __getitem__(self, number: int) -> Record:
        for name, source in self._parts:
            if number < len(source):
                record = source[number]
                return record._replace(key=f"{name}/{record.key}")
            number -= len(source)
        raise IndexError(number)


def open_source(
    places: Sequence[str], columns: CaptionColumns | None = None, classes: ClassRule | None = None
) -> Source:
    """The records of folders of pictures, tars (or folders of them), parquet or Arrow files with pictures in
    them (or folders of them, such as `Dataset.save_to_disk` writes), or `emoji:COUNT` drawn scenes; of
    several, one after the other. `columns` are those of captions; `classes` says where classes are, if they
    are asked for.

    Raises:
        InputError: there is nothing to read, which says what was looked for; or a folder holds several of
            these, of which one would hide the others.
        MissingExtraError: it is parquet or Arrow, and pyarrow is not installed.
    """
    if not places:
        raise InputError("no source was given. Give a folder of pictures, or tars.")
    tars = [Path(place) for place in places if place.lower().endswith(".tar")]
    if len(tars) == len(places):
        return WebDatasetSource(tars, columns, classes)
    if len(places) == 1:
        return _one(places[0], columns, classes)
    return JoinedSource([(Path(place).name or place, _one(place, columns, classes)) for place in places])


def _one(place: str, columns: CaptionColumns | None, classes: ClassRule | None) -> Source:
    if drawn := SCENES.fullmatch(place):
        from lineardit.data.emoji_source import EmojiSource

        return EmojiSource(int(drawn[1]))
    path = Path(place)
    if not path.exists():
        raise InputError(f"{place} does not exist. Give a folder of pictures, a .tar or a .parquet file.")
    if path.is_file():
        if path.suffix.lower() == ".tar":
            return WebDatasetSource([path], columns, classes)
        if path.suffix.lower() == ".parquet":
            return DatasetSource(ParquetRows([path]), columns, classes=classes, name=path.name)
        if path.suffix.lower() == ".arrow":
            return DatasetSource(ArrowRows([path]), columns, classes=classes, name=path.name)
        if path.name.lower().endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip")):
            raise InputError(
                f"{place} is compressed. Unpack it to a folder, or decompress it to a .tar: pictures are "
                "compressed already."
            )
        raise InputError(f"{place} is no folder, .tar, .parquet or .arrow file. Give one of these.")
    saved = saved_files(path)
    if saved is not None:
        return DatasetSource(ArrowRows(saved), columns, classes=classes, name=path.name)
    return _folder(path, columns, classes)


def _folder(path: Path, columns: CaptionColumns | None, classes: ClassRule | None) -> Source:
    """A folder of tars, of parquet files with pictures in them, or of pictures: of one kind alone."""
    tars = _visible(path, "*.tar")
    tables = [each for each in _visible(path, "**/*.parquet") if each.name not in NAMES]
    picture = first_picture(path) if tars or tables else None
    known: dict[Path, dict[str, bool]] = {}
    for table in tables:
        try:
            known[table] = parquet_columns(table)
        except (InputError, MissingExtraError):
            if not tars and picture is None:
                raise
    pictured = [
        table
        for table, names in known.items()
        if picture_column([name for name, holds_bytes in names.items() if holds_bytes])
    ]
    kinds = [*([] if picture is None else [path / picture]), *tars[:1], *pictured[:1]]
    if len(kinds) > 1:
        one, other = kinds[:2]
        more = len(tars if other in tars else pictured) - 1
        those = f"and the {more} like it themselves, or move them" if more else "itself, or move it"
        raise InputError(
            f"{path} holds {one.relative_to(path)} beside {other.relative_to(path)}, and a folder is read as "
            "pictures, as tars or as parquet files with pictures in them, never as two of these. "
            f"Give {other} {those} to another folder."
        )
    if tars:
        return WebDatasetSource(tars, columns, classes)
    if picture is not None or not tables:
        return FolderSource(path, columns, classes)
    read = pictured or tables
    rows = DatasetSource(ParquetRows(read), columns, classes=classes, name=path.name)
    strays = [_without_pictures(path, table, [*known[table]]) for table in tables if table not in read]
    return JoinedSource([(path.name, rows), (path.name, strays)]) if strays else rows


def _visible(folder: Path, pattern: str) -> list[Path]:
    """The files of a pattern, in order; what is hidden is left out."""
    found = (each for each in folder.glob(pattern) if each.is_file())
    return sorted(
        each for each in found if not any(part.startswith(".") for part in each.relative_to(folder).parts)
    )


def _without_pictures(folder: Path, table: Path, names: Sequence[str]) -> Record:
    wanted, there = " or ".join(PICTURE_COLUMNS), ", ".join(names)[:200] or "none"
    reason = f"no pictures: there is no column {wanted}, only {there}"
    return Record(shown(table.relative_to(folder).as_posix()), None, problem=reason)
