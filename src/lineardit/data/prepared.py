"""A folder that `lineardit prepare` wrote: latents and captions' embeddings by bucket, read row by row.

FOLDER/prepared.json   what was prepared, from what, for which model; written last
FOLDER/latents/        one shard for some pictures of one bucket: latents (n c h w), and which pictures
FOLDER/text/           the shard of the same name: every caption's vectors one after the other
FOLDER/probe.safetensors   what the model makes of a known picture and of no words
FOLDER/report.json     every file that was found, and what became of it
"""

import bisect
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lineardit.data.buckets import Bucket
from lineardit.data.records import Caption
from lineardit.data.shards import Shards
from lineardit.errors import CheckpointError, InputError

FORMAT = 1
INDEX = "prepared.json"
LATENTS, TEXT, PROBE = "latents", "text", "probe.safetensors"
REMEDY = "Remove it and run lineardit prepare again: what is whole is kept, the rest is made again."


class Shard(NamedTuple):
    """Some pictures of one bucket."""

    name: str
    bucket: Bucket
    pictures: int
    latents: str
    """Checksum of the file of latents."""
    text: str
    """Checksum of the file of captions."""


class Sample(NamedTuple):
    """What is known of one picture besides its latents."""

    key: str
    """Its name where it came from."""
    captions: tuple[Caption, ...]
    label: str | None = None
    """The class that it is of, where it was prepared with classes."""


class _Text(NamedTuple):
    """Where the captions of a shard's pictures lie in its file."""

    samples: list[Sample]
    starts: list[list[tuple[int, int]]]
    """For each picture and caption, the first row of its vectors and the row after the last."""
    kept: list[int]
    """Number in the shard's plan of each picture that is there."""


class PreparedData:
    """Pictures of several buckets, numbered bucket by bucket.

    Raises (from every method):
        CheckpointError: the folder was not finished, or a file of it is damaged or missing; names it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = _read_index(folder)
        try:
            self.classes = tuple(str(name) for name in index.get("classes", ()))
            """The classes of the pictures by number; none where it was prepared without."""
            facts = [index["shards"], *([self.classes] if self.classes else [])]
            self.digest = hashlib.sha256("".join(map(json.dumps, facts)).encode()).hexdigest()
            """Tells other pictures, captions and classes, and another order of them, apart."""
            self.about: dict[str, Any] = dict(index["about"])
            self.shards = [
                Shard(
                    name=str(each["name"]),
                    bucket=Bucket(*map(int, each["bucket"])),
                    pictures=int(each["pictures"]),
                    latents=str(each["latents"]),
                    text=str(each["text"]),
                )
                for each in index["shards"]
            ]
            self.latent_channels = int(index["model"]["latent_channels"])
            self.stride = int(index["model"]["stride"])
            self.text_width = int(index["model"]["text_width"])
            self._probe = str(index["probe"])
        except (KeyError, TypeError, ValueError):
            raise CheckpointError(f"{folder / INDEX} is damaged. {REMEDY}") from None
        self.buckets = tuple(dict.fromkeys(shard.bucket for shard in self.shards))
        self.shards.sort(key=lambda shard: self.buckets.index(shard.bucket))
        self.counts = tuple(
            sum(shard.pictures for shard in self.shards if shard.bucket == bucket) for bucket in self.buckets
        )
        self._ends: list[int] = torch.tensor([shard.pictures for shard in self.shards]).cumsum(0).tolist()
        self._numbers = {name: number for number, name in enumerate(self.classes)}
        self._files = Shards(REMEDY)
        self._texts: dict[int, _Text] = {}

    def __len__(self) -> int:
        return sum(self.counts)

    def latents(self, number: int) -> Float[Tensor, "c h w"]:
        """The latents of a picture, bfloat16."""
        which, row = self._place(number)
        shard = self.shards[which]
        path = self.folder / LATENTS / shard.name
        return self._files.rows(path, shard.latents, "latents", row, row + 1)[0]

    def sample(self, number: int) -> Sample:
        """The name and the captions of a picture."""
        which, row = self._place(number)
        text = self._text(which)
        return text.samples[text.kept[row]]

    def label(self, number: int) -> int:
        """The number of the class of a picture.

        Raises:
            InputError: the pictures were prepared without classes.
        """
        name = self.sample(number).label
        if name is None or not self.classes:
            raise InputError(f"{self.folder} has no classes. Prepare the pictures with --classes.")
        return self._numbers[name]

    def vectors(self, number: int, caption: int) -> Float[Tensor, "m c"]:
        """The text encoder's vectors of one caption of a picture, bfloat16."""
        which, row = self._place(number)
        shard, text = self.shards[which], self._text(which)
        start, stop = text.starts[text.kept[row]][caption]
        return self._files.rows(self.folder / TEXT / shard.name, shard.text, "vectors", start, stop)

    def probe(self) -> dict[str, Tensor]:
        """What the model that prepared the data makes of a known picture and sentence (`training.probe`)."""
        path = self.folder / PROBE
        return {
            name: self._files.tensor(path, self._probe, name) for name in self._files.names(path, self._probe)
        }

    def check(self) -> None:
        """Compare every shard with its checksum."""
        for which in range(len(self.shards)):
            self._text(which)

    def _place(self, number: int) -> tuple[int, int]:
        """Number of the shard that holds a picture, and its row there."""
        if not 0 <= number < len(self):
            raise IndexError(f"there is no picture {number}: {self.folder} holds {len(self)}.")
        which = bisect.bisect_right(self._ends, number)
        return which, number - (self._ends[which] - self.shards[which].pictures)

    def _text(self, which: int) -> _Text:
        if which not in self._texts:
            self._texts[which] = self._read_text(self.shards[which])
        return self._texts[which]

    def _read_text(self, shard: Shard) -> _Text:
        path = self.folder / TEXT / shard.name
        kept = self._files.tensor(self.folder / LATENTS / shard.name, shard.latents, "kept").tolist()
        lengths = self._files.tensor(path, shard.text, "lengths").long()
        ends = lengths.cumsum(0).tolist()
        try:
            samples = [
                Sample(key, tuple(Caption(text, weight) for text, weight in captions), *label)
                for key, captions, *label in json.loads(self._files.facts(path, shard.text)["samples"])
            ]
        except (KeyError, TypeError, ValueError, RecursionError):
            raise CheckpointError(f"{path} is damaged. {REMEDY}") from None
        starts, at = [], 0
        for sample in samples:
            spans = range(at, at + len(sample.captions))
            starts.append([(ends[caption] - int(lengths[caption]), ends[caption]) for caption in spans])
            at += len(sample.captions)
        return _Text(samples, starts, kept)


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    try:
        index = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        state = "was not finished" if (folder / LATENTS).is_dir() else "holds no prepared data"
        raise CheckpointError(
            f"{folder} {state}: there is no {INDEX} in it. Run lineardit prepare PICTURES -o {folder}"
        ) from None
    except (OSError, ValueError, RecursionError):
        raise CheckpointError(f"{path} is damaged. {REMEDY}") from None
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise CheckpointError(f"{path} has another format than this version of lineardit reads ({FORMAT}).")
    return index
