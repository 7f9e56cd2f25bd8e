"""Finds out what a place holds that pictures are prepared from."""

import re
from collections.abc import Sequence
from pathlib import Path

from lineardit.data.arrow import ArrowRows, saved_files
from lineardit.data.dataset import DatasetSource, ParquetRows
from lineardit.data.folder import FolderSource
from lineardit.data.labels import ClassRule
from lineardit.data.records import CaptionColumns, Declaring, Record, Source
from lineardit.data.webdataset import WebDatasetSource
from lineardit.errors import InputError

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
        InputError: there is nothing to read; says what was looked for.
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
    tars = sorted(path.glob("*.tar"))
    if tars:
        return WebDatasetSource(tars, columns, classes)
    tables = sorted(each for each in path.rglob("*.parquet") if each.name != "metadata.parquet")
    if tables:
        return DatasetSource(ParquetRows(tables), columns, classes=classes, name=path.name)
    return FolderSource(path, columns, classes)
