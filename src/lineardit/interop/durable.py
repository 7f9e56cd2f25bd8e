"""Folders that are complete or absent whatever happens to the process, and what their files held."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from lineardit.errors import OutputError

UNFINISHED = ".unfinished-"
"""What the names of folders begin with that are being written or removed."""
REPLACED = ".replaced-"
"""What the name of a folder begins with while another takes its place."""


class Fingerprint(NamedTuple):
    """What a file held when it was written."""

    size: int
    """Bytes."""
    sha256: str
    """Hexadecimal digest."""


def fingerprint(path: Path) -> Fingerprint:
    """Size and digest of a file, read once."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Fingerprint(file.tell(), digest)


def sync(path: Path) -> None:
    """Make sure that a file, or the names in a folder, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """A hidden folder to write into, which is synced and becomes `final` at once if nothing is raised.

    What is called `final` is complete at any time. Where one is replaced, two renames follow each other:
    a process killed between them leaves the old one aside, and the next call puts it back. Where `final` is
    a link, the folder that it leads to is replaced, and it stays a link.

    Raises:
        OutputError: `final` is the root of all folders.
    """
    # Unlike Path.resolve it says nothing of links in a circle, over which the second rename fails.
    final = Path(os.path.realpath(final))
    if not final.name:
        raise OutputError(f"{final} is the root of all folders and cannot be replaced. Choose another place.")
    unfinished, replaced = (final.with_name(f"{mark}{final.name}") for mark in (UNFINISHED, REPLACED))
    _remove(unfinished)
    if os.path.lexists(replaced) and not final.exists():
        os.rename(replaced, final)
    _remove(replaced)
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        for path in unfinished.rglob("*"):
            sync(path)
        sync(unfinished)
        if final.exists():
            os.rename(final, replaced)
        os.rename(unfinished, final)
    except BaseException:
        _remove(unfinished)
        raise
    sync(final.parent)
    _remove(replaced)


def remove_folder(path: Path) -> None:
    """Remove a folder so that, even when killed halfway, nothing incomplete stays under its name."""
    doomed = path.with_name(f"{UNFINISHED}{path.name}")
    _remove(doomed)
    os.rename(path, doomed)
    shutil.rmtree(doomed)


def _remove(leftover: Path) -> None:
    """Remove a folder, a file or a link as far as possible; it may be none."""
    if leftover.is_dir() and not leftover.is_symlink():
        shutil.rmtree(leftover, ignore_errors=True)
    else:
        with suppress(OSError):
            leftover.unlink()
