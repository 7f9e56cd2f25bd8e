"""WebDataset tars: files that share a name up to its first dot belong together, as 0001.jpg and 0001.txt do.

Only pictures and captions are ever read. The package that gave the format its name runs pickles and shell
commands that it finds in tars and in their names; here those are bytes that nobody looks at.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lineardit.data.captions import MOST_CAPTION_BYTES, description_in
from lineardit.data.captions import SUFFIXES as CAPTION_SUFFIXES
from lineardit.data.labels import SUFFIX as CLASS_SUFFIX
from lineardit.data.labels import BadLabel, ClassRule, label_from
from lineardit.data.records import (
    MOST_BYTES,
    OTHER_SUFFIXES,
    SUFFIXES,
    BadCaption,
    CaptionColumns,
    Description,
    Record,
)
from lineardit.data.tar import Damage, Member, members
from lineardit.errors import InputError


class TarPicture(NamedTuple):
    """A picture within a tar."""

    path: Path
    """Of the tar."""
    offset: int
    size: int

    @property
    def fingerprint(self) -> str:
        """Place in the tar, and the tar's size and time of the last change."""
        found = self.path.stat()
        return f"{self.offset}:{self.size}:{found.st_size}:{found.st_mtime_ns}"

    def read(self) -> bytes:
        """Its bytes alone."""
        if self.size > MOST_BYTES:
            raise OSError(f"{self.size} bytes are more than {MOST_BYTES}")
        return _bytes(self.path, self.offset, self.size)


class _Group(NamedTuple):
    """The files of a sample."""

    tar: int
    key: str
    picture: Member
    caption: Member | None
    label: Member | None


class WebDatasetSource:
    """The samples of some tars, tar by tar in their order.

    Captions are read from `.txt`, `.caption` or `.json` as from files of a folder, classes, where a rule asks
    for them, from `.json` or `.cls`. What a sample holds besides is not looked at.

    Raises:
        InputError: a tar cannot be opened or is compressed, or there is no picture in any of them.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        columns: CaptionColumns | None = None,
        classes: ClassRule | None = None,
    ) -> None:
        self.paths, self._columns = list(paths), columns
        self._class_keys = classes.keys if classes else ()
        self._entries: list[_Group | Record] = []
        for number, path in enumerate(self.paths):
            self._entries += _groups(number, path)
        if not any(isinstance(entry, _Group) for entry in self._entries):
            reasons = {
                entry.problem for entry in self._entries if isinstance(entry, Record) and entry.problem
            }
            why = f": {sorted(reasons)[0]}" if reasons else ""
            where = self.paths[0] if len(self.paths) == 1 else f"{len(self.paths)} tars"
            raise InputError(f"{where} has no pictures ({', '.join(SUFFIXES)}) to read{why}.")

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, number: int) -> Record:
        """The sample of that number."""
        entry = self._entries[number]
        if isinstance(entry, Record):
            return entry
        path = self.paths[entry.tar]
        picture = TarPicture(path, entry.picture.offset, entry.picture.size)
        try:
            captions, label = self._description(path, entry.caption)
            if label is None and entry.label is not None and CLASS_SUFFIX[1:] in self._class_keys:
                label = label_from(_content(path, entry.label).decode("utf-8", "replace"))
        except BadLabel as error:
            return Record(entry.key, picture, problem=f"bad class: {error}")
        except (BadCaption, OSError) as error:
            return Record(entry.key, picture, problem=f"bad caption: {error}")
        return Record(entry.key, picture, captions, label=label)

    def _description(self, path: Path, member: Member | None) -> Description:
        if member is None:
            return Description()
        suffix = f".{member.name.lower().rpartition('.')[2]}"
        return description_in(_content(path, member), suffix, member.name, self._columns, self._class_keys)


def _groups(number: int, path: Path) -> list[_Group | Record]:
    """The samples of a tar, and what is wrong with the rest of it."""
    pictures: dict[str, Member] = {}
    beside: dict[str, dict[str, Member]] = {}
    wrong = []
    for member in members(path):
        if isinstance(member, Damage):
            wrong.append(Record(f"{path.name}:{member.place}", None, problem=member.reason))
            continue
        folder, _, file = member.name.rpartition("/")
        stem, _, ending = file.partition(".")
        key, suffix = f"{folder}/{stem}" if folder else stem, f".{ending.lower()}"
        if not stem:
            continue  # hidden files, such as those that macOS adds
        if suffix in SUFFIXES:
            if key in pictures:
                place = f"{path.name}:{member.name}"
                wrong.append(Record(place, None, problem="second picture: a sample has one"))
            pictures.setdefault(key, member)
        elif suffix in OTHER_SUFFIXES:
            reason = f"unread format: {suffix} is not PNG, JPEG or WebP"
            wrong.append(Record(f"{path.name}:{member.name}", None, problem=reason))
        elif suffix in (*CAPTION_SUFFIXES, CLASS_SUFFIX):
            beside.setdefault(key, {}).setdefault(suffix, member)
    groups = []
    for key, picture in pictures.items():
        files = beside.get(key, {})
        caption = next((files[suffix] for suffix in CAPTION_SUFFIXES if suffix in files), None)
        place = f"{path.name}:{picture.name}"
        groups.append(_Group(number, place, picture, caption, files.get(CLASS_SUFFIX)))
    return [*groups, *wrong]


def _content(path: Path, member: Member) -> bytes:
    """The beginning of a file of words."""
    return _bytes(path, member.offset, min(member.size, MOST_CAPTION_BYTES + 1))


def _bytes(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        content = file.read(size)
    if len(content) < size:
        raise OSError("the tar has become shorter")
    return content
