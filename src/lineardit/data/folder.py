"""A folder of pictures with their captions in files of the same name: cat.jpg, and cat.txt or cat.json."""

import json
import os
from pathlib import Path

from lineardit.data.records import (
    MOST_BYTES,
    OTHER_SUFFIXES,
    SUFFIXES,
    BadCaption,
    Caption,
    Record,
    captions_from,
)
from lineardit.errors import InputError

CAPTION_SUFFIXES = (".txt", ".caption", ".json")
"""Endings of files of captions, in the order in which they are looked for."""
MOST_CAPTION_BYTES = 2**20
"""A file of captions that is larger is none."""


class PathPicture:
    """A picture in a file of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path

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

    Each line of a .txt (or .caption) file that is not blank is a caption; a .json file holds a text, a list
    of texts, or an object with `caption`, `text`, `captions` or `prompt`, and weights where it wants to.

    Raises:
        InputError: there is no picture in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._paths = sorted(_pictures(folder))
        if not self._paths:
            kinds = ", ".join(SUFFIXES)
            raise InputError(f"{folder} holds no pictures ({kinds}). Give the folder that they are in.")

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> Record:
        """The picture of that number, with its captions."""
        key = self._paths[number]
        path = self.folder / key
        if path.suffix.lower() not in SUFFIXES:
            return Record(key, None, problem=f"unread format: {path.suffix.lower()} is not PNG, JPEG or WebP")
        try:
            return Record(key, PathPicture(path), caption_beside(path))
        except BadCaption as error:
            return Record(key, PathPicture(path), problem=f"bad caption: {error}")


def caption_beside(path: Path) -> tuple[Caption, ...]:
    """The captions in the first file of captions beside a picture; none where there is no such file.

    Raises:
        BadCaption: the file cannot be read, or holds something else.
    """
    for suffix in CAPTION_SUFFIXES:
        beside = path.with_suffix(suffix)
        try:
            with beside.open("rb") as file:
                content = file.read(MOST_CAPTION_BYTES + 1)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise BadCaption(f"{beside.name} cannot be read ({error.strerror})") from None
        return captions_in(content, suffix, beside.name)
    return ()


def captions_in(content: bytes, suffix: str, name: str) -> tuple[Caption, ...]:
    """The captions in a file of captions; `name` is what errors call it.

    Raises:
        BadCaption: it is too large, no UTF-8, no JSON, or holds no captions.
    """
    if len(content) > MOST_CAPTION_BYTES:
        raise BadCaption(f"{name} has more than {MOST_CAPTION_BYTES} bytes")
    try:
        text = content.decode("utf-8-sig")
        if suffix != ".json":
            return captions_from(text.splitlines())
        return captions_from(json.loads(text))
    except UnicodeDecodeError:
        raise BadCaption(f"{name} is no UTF-8 text") from None
    except BadCaption as error:
        raise BadCaption(f"{name}: {error}") from None
    except (ValueError, RecursionError):
        raise BadCaption(f"{name} is no JSON") from None


def _pictures(folder: Path) -> list[str]:
    """Paths below the folder, with slashes."""
    found = []
    for place, folders, names in os.walk(folder, followlinks=False):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and name.lower().endswith(SUFFIXES + OTHER_SUFFIXES):
                found.append(Path(place, name).relative_to(folder).as_posix())
    return found
