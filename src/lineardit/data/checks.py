"""Every picture of a source looked at before anything is made of it, in parallel, and once only."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from lineardit.data.images import BadPicture, decode, quiet_pillow, read_header
from lineardit.data.processes import in_order, worker_processes
from lineardit.data.records import PictureFile, Record, Source
from lineardit.errors import OutputError

AT_ONCE = 16
"""Pictures that a process is given together."""
WORTH_PROCESSES = 64
"""Fewer pictures are looked at sooner than other processes would have started."""


class Finding(NamedTuple):
    """What a picture is, or why it cannot be used."""

    key: str
    fingerprint: str
    """Of its file, and of the limit that it was checked against; another one is looked at again."""
    height: int = 0
    """Pixels, upright."""
    width: int = 0
    sha256: str = ""
    """Of the encoded bytes: two pictures with the same one are the same."""
    notes: tuple[str, ...] = ()
    """What is done to it on the way to RGB."""
    problem: str | None = None
    """Why it cannot be used: a few words that are the same for all of a kind, a colon, and details."""


class Checked(NamedTuple):
    """A record of a source, and what was found out about its picture."""

    record: Record
    finding: Finding


class _Task(NamedTuple):
    key: str
    fingerprint: str
    picture: PictureFile


def examine(key: str, fingerprint: str, picture: PictureFile, max_pixels: int) -> Finding:
    """Read a picture, check its header, then decode it to its end. Never raises for what is wrong with it."""
    try:
        content = picture.read()
        header = read_header(content, max_pixels)
        decode(content, max_pixels)
    except BadPicture as error:
        return Finding(key, fingerprint, problem=str(error))
    except OSError as error:
        return Finding(key, fingerprint, problem=f"unreadable: {error.strerror or error}")
    except MemoryError:
        return Finding(key, fingerprint, problem="too many pixels: there is no memory to decode it")
    digest = hashlib.sha256(content).hexdigest()
    return Finding(key, fingerprint, header.height, header.width, digest, header.notes)


def check_source(
    source: Source, max_pixels: int, *, processes: int = 1, known: Mapping[str, Finding] | None = None
) -> Iterator[Checked]:
    """Each record of a source in its order, with what was found; what `known` has is not looked at again.

    Raises:
        LineardiTError: a worker process was killed.
    """
    count = len(source)
    together = processes if count >= WORTH_PROCESSES else 1

    with worker_processes(together) as pool:
        jobs = (
            _chunk(
                [source[number] for number in range(start, min(start + AT_ONCE, count))],
                max_pixels,
                known or {},
            )
            for start in range(0, count, AT_ONCE)
        )
        for (records, found), fresh in in_order(pool, _examine_all, jobs, ahead=4 * together):
            rest = iter(fresh)
            for record, finding in zip(records, found, strict=True):
                yield Checked(record, next(rest) if finding is None else finding)


def _chunk(
    records: list[Record], max_pixels: int, known: Mapping[str, Finding]
) -> tuple[tuple[list[Record], list[Finding | None]], tuple[list[_Task], int]]:
    """Records with what is known of them, and what is left to do for those of which nothing is."""
    found: list[Finding | None] = []
    tasks = []
    for record in records:
        try:
            fingerprint = f"{record.picture.fingerprint}:{max_pixels}" if record.picture else ""
        except OSError as error:
            found.append(Finding(record.key, "", problem=f"unreadable: {error.strerror or error}"))
            continue
        before = known.get(record.key)
        if record.picture is None:
            found.append(Finding(record.key, "", problem=record.problem or "unreadable: there is no picture"))
        elif before is not None and before.fingerprint == fingerprint:
            found.append(before)
        else:
            found.append(None)
            tasks.append(_Task(record.key, fingerprint, record.picture))
    return (records, found), (tasks, max_pixels)


def _examine_all(job: tuple[list[_Task], int]) -> list[Finding]:
    tasks, max_pixels = job
    with quiet_pillow():
        return [examine(*task, max_pixels) for task in tasks]


class CheckLog:
    """Findings in a file of JSON lines, so that what was looked at once need not be again."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Finding]:
        """By key, the last finding of each; a line that was cut off is passed over."""
        found = {}
        try:
            lines = self.path.read_text("utf-8", "replace").splitlines()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise OutputError(f"{self.path} cannot be read ({error.strerror}).") from None
        for line in lines:
            try:
                finding = Finding(**json.loads(line))
                found[finding.key] = finding._replace(notes=tuple(finding.notes))
            except (ValueError, TypeError, RecursionError):
                continue
        return found

    @contextmanager
    def writing(self) -> Iterator[Callable[[Finding], None]]:
        """A function that adds findings, in lines that are on their way to the disk at once.

        Raises:
            OutputError: the file cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8", buffering=1) as file:
                yield lambda finding: _write_line(file, finding)
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {error}.") from None


def _write_line(file: IO[str], finding: Finding) -> None:
    file.write(json.dumps(finding._asdict()) + "\n")
