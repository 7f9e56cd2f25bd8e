"""The books of a folder that is being prepared: which shards it is to have, which are there, made of what."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lineardit.data.prepared import FORMAT, INDEX, LATENTS, PROBE, TEXT
from lineardit.data.shards import sha256_of, shard_name, write_json, write_shard
from lineardit.data.survey import Entry, Problem, Survey
from lineardit.errors import CheckpointError, OutputError

LEDGER = "shards.json"
CHECKS = "checks.jsonl"
"""What is known of every picture of the source."""
REPORT = "report.json"
"""What was found, and which files are left out."""
PICTURES_PER_SHARD = 256
"""Most pictures of one shard: at 300 tokens of width 2304 their captions take 350 MB."""


class Made(NamedTuple):
    """What became of one shard."""

    sums: dict[str, str]
    """Checksum of each part that was made."""
    kept: int | None
    """Pictures in it, where its latents were made."""
    lost: list[Problem]
    """Pictures that could be read when they were checked, and no longer."""
    cut: int | None
    """Captions that are longer than the text encoder reads, where its captions were read."""


class Ledger:
    """Shards by name, each with digests of what it was made from and checksums of what was written.

    Raises:
        OutputError: the folder was prepared with other settings, or holds something else.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder, self.settings = folder, json.loads(json.dumps(settings))
        self.shards: dict[str, list[Entry]] = {}
        """The plan: the pictures of each shard, all of one bucket."""
        self._books: dict[str, dict[str, Any]] = {}
        self._report: dict[str, Any] = {}
        self._classes: list[str] = []
        self._probe = ""
        path = folder / LEDGER
        if not path.exists():
            others = (
                [each.name for each in folder.iterdir() if each.name not in (CHECKS, REPORT)]
                if folder.is_dir()
                else []
            )
            if others or (folder.exists() and not folder.is_dir()):
                raise OutputError(
                    f"{folder} holds something else, such as {min(others, default='a file')}. "
                    "Name another output folder."
                )
            return
        try:
            found = json.loads(path.read_text("utf-8"))
            before, self._books = dict(found["settings"]), dict(found["shards"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            raise CheckpointError(f"{path} is damaged. Remove {folder}; it is made again.") from None
        if before != self.settings:
            names = dict.fromkeys([*self.settings, *before])
            changed = [name for name in names if before.get(name) != self.settings.get(name)]
            raise OutputError(
                f"{folder} was prepared with other settings ({', '.join(changed)}). "
                "Remove it, or name another output folder."
            )

    def probe(self) -> dict[str, Tensor] | None:
        """What the model made of the known picture that this folder was begun with."""
        path = self.folder / PROBE
        try:
            return load_file(path) if path.exists() else None
        except (SafetensorError, OSError):
            return None

    def plan(self, found: Survey, probe: Mapping[str, Tensor]) -> None:
        """Lay the pictures into shards, and forget shards that are no longer among them.

        Where the probe that is there has other parts than `probe`, the folder was begun with a model that has
        a text encoder by one that has none, or the other way round: captions are then forgotten, too.
        """
        self.shards, self._report, self._classes = {}, found.report(), list(found.classes())
        for entries in found.buckets().values():
            for start in range(0, len(entries), PICTURES_PER_SHARD):
                self.shards[shard_name(len(self.shards))] = entries[start : start + PICTURES_PER_SHARD]
        self._books = {name: self._books.get(name, {}) for name in self.shards}
        path, before = self.folder / PROBE, self.probe()
        if before is not None and before.keys() == probe.keys():
            self._probe = sha256_of(path)
            return
        for book in self._books.values():
            book.pop(TEXT, None)
        # Before the probe, so that no run that is stopped in between leaves old captions beside a new one.
        (self.folder / INDEX).unlink(missing_ok=True)
        self._write()
        self._probe = write_shard(path, probe)

    def left(self) -> dict[str, tuple[list[Entry], tuple[str, ...]]]:
        """The shards of which a part is missing, damaged or made from something else, with these parts.

        From here on the folder counts as unfinished, if there are any.
        """
        left = {}
        for name, entries in self.shards.items():
            parts = tuple(part for part, of in _digests(entries).items() if not self._there(name, part, of))
            if parts:
                left[name] = entries, parts
        if left:
            (self.folder / INDEX).unlink(missing_ok=True)
            self._write()
        return left

    def done(self, name: str, made: Made) -> None:
        """Enter a shard that was written."""
        book = self._books[name]
        digests = _digests(self.shards[name])
        for part, sha256 in made.sums.items():
            book[part] = {"of": digests[part], "sha256": sha256}
        if made.kept is not None:
            book["pictures"], book["lost"] = made.kept, [list(problem) for problem in made.lost]
        if made.cut is not None:
            book["cut"] = made.cut
        self._write()

    def finish(self, model: Mapping[str, Any]) -> None:
        """Write the index that makes the folder readable, and remove shards that belong to nothing."""
        for part in (LATENTS, TEXT):
            for path in (self.folder / part).glob("*"):
                if path.name not in self.shards:
                    path.unlink()
        index = {
            "format": FORMAT,
            "about": {"settings": self.settings, "report": self._report},
            "model": dict(model),
            "probe": self._probe,
            **({"classes": self._classes} if self._classes else {}),
            "shards": [
                {
                    "name": name,
                    "bucket": list(entries[0].fit.bucket),
                    "pictures": self._books[name]["pictures"],
                    "latents": self._books[name][LATENTS]["sha256"],
                    "text": self._books[name][TEXT]["sha256"],
                }
                for name, entries in self.shards.items()
                if self._books[name]["pictures"]
            ],
        }
        write_json(self.folder / INDEX, index)

    @property
    def pictures(self) -> int:
        """Pictures in all shards."""
        return sum(book["pictures"] for book in self._books.values())

    @property
    def lost(self) -> list[Problem]:
        """Pictures that could be read when they were checked, and not when they were encoded."""
        return [Problem(*each) for book in self._books.values() for each in book["lost"]]

    @property
    def cut(self) -> int:
        """Captions that are longer than the text encoder reads."""
        return sum(book["cut"] for book in self._books.values())

    def _there(self, name: str, part: str, of: str) -> bool:
        book, path = self._books[name].get(part), self.folder / part / name
        if not isinstance(book, dict) or book.get("of") != of or not path.is_file():
            return False
        return sha256_of(path) == book.get("sha256")

    def _write(self) -> None:
        write_json(self.folder / LEDGER, {"settings": self.settings, "shards": self._books})


def _digests(entries: list[Entry]) -> dict[str, str]:
    """What the parts of a shard are made from."""
    pictures = [[*entries[0].fit.bucket], [[entry.key, entry.sha256] for entry in entries]]
    captions = [described(entry) for entry in entries]
    return {
        part: hashlib.sha256(json.dumps(content).encode()).hexdigest()
        for part, content in ((LATENTS, pictures), (TEXT, captions))
    }


def described(entry: Entry) -> list[Any]:
    """What is kept of a picture beside its latents, as JSON: its name, its captions, and its class if any."""
    captions = [list(caption) for caption in entry.captions]
    return [entry.key, captions, *([] if entry.label is None else [entry.label])]
