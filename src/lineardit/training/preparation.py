"""From checked pictures to shards of latents and text embeddings, in parallel, and never twice."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lineardit.autoencoder.model import Autoencoder
from lineardit.config.models import AutoencoderConfig
from lineardit.data.images import BadPicture, cover, decode, quiet_pillow
from lineardit.data.ledger import Ledger, Made, described
from lineardit.data.pictures import to_pixels
from lineardit.data.prepared import LATENTS, TEXT
from lineardit.data.processes import in_order, worker_processes
from lineardit.data.shards import write_shard
from lineardit.data.survey import Entry, Problem, Survey
from lineardit.errors import CheckpointError, InputError, OutputError
from lineardit.interop.assembly import assemble_autoencoder, assemble_text_encoder
from lineardit.interop.place import Place
from lineardit.interop.places import open_place
from lineardit.kernels.select import autocast
from lineardit.text.embedding import TextEncoder
from lineardit.training.probe import check_same, probe

ENCODED_AT_ONCE = 8
"""Pictures, or captions, that go through a network together."""


class Job(NamedTuple):
    """One shard that is to be made."""

    folder: Path
    name: str
    entries: list[Entry]
    parts: tuple[str, ...]
    """`latents`, `text` or both."""
    model: str
    device: str
    max_pixels: int
    threads: int
    """Threads of torch, and of reading pictures, in the process that makes it."""


class Outcome(NamedTuple):
    """What was written."""

    shards: int
    made: int
    """Shards that were not there yet."""
    pictures: int
    lost: list[Problem]
    """Pictures that could be read when they were checked, and no longer."""
    cut: int
    """Captions that are longer than the text encoder reads."""


def encode(
    found: Survey,
    ledger: Ledger,
    model: str | Path,
    *,
    max_pixels: int,
    processes: int = 1,
    threads: int = 1,
    device: str = "cpu",
    on_pictures: Callable[[int, int], None] = lambda done, total: None,
) -> Outcome:
    """Write the pictures and captions of a survey as a folder that `PreparedData` reads.

    Shards that are there and whole are kept, unless their pictures or captions have changed. `on_pictures`
    hears how many pictures are done, of how many. Pictures with classes need nothing of the model but an
    autoencoder; captions are kept as vectors where there is a text encoder.

    Raises:
        InputError: no picture can be used.
        CheckpointError: the model is damaged or not whole.
        ConfigError: the folder was prepared with another model.
        OutputError: the folder cannot be written.
        LineardiTError: a worker process was killed.
    """
    if not found.entries:
        kinds = ", ".join(f"{len(problems)} {kind}" for kind, problems in found.kinds().items())
        raise InputError(f"none of the {found.found} pictures can be used: {kinds}.")
    _check_whole(open_place(model), model, classes=bool(found.classes()))
    autoencoder, text_encoder = _networks(str(model), device)
    made_here = probe(autoencoder, text_encoder)
    before = ledger.probe()
    if before is not None:
        check_same(made_here, before, str(model), str(ledger.folder))
    ledger.plan(found, made_here)
    config = autoencoder.config
    facts = {
        "latent_channels": config.latent_channels,
        "stride": config.stride,
        "text_width": 0 if text_encoder is None else text_encoder.width,
    }
    left = ledger.left()
    done = len(found.entries) - sum(len(entries) for entries, _ in left.values())
    on_pictures(done, len(found.entries))
    jobs = (
        (entries, Job(ledger.folder, name, entries, parts, str(model), device, max_pixels, threads))
        for name, (entries, parts) in left.items()
    )
    with worker_processes(min(processes, len(left))) as pool:
        work = ((job, job) for _, job in jobs)
        for job, made in in_order(pool, make_shard, work, ahead=2 * processes):
            ledger.done(job.name, made)
            done += len(job.entries)
            on_pictures(done, len(found.entries))
    ledger.finish({**facts, "place": str(model)})
    return Outcome(len(ledger.shards), len(left), ledger.pictures, ledger.lost, ledger.cut)


def open_ledger(folder: Path, settings: Mapping[str, Any]) -> Ledger:
    """The books of a folder that pictures are prepared in, before any of them is looked at.

    Raises:
        OutputError: the folder was prepared with other settings, holds something else, or cannot be written.
        CheckpointError: its books are damaged.
    """
    ledger = Ledger(folder, settings)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror or error}.") from None
    return ledger


def token_pixels(model: str | Path, *, classes: bool = False) -> tuple[int, int]:
    """Pixels per token and side of a model, and the size that it draws; no weights are read.

    With `classes` an autoencoder is enough, whose latents count as tokens.

    Raises:
        CheckpointError: it holds no transformer or no autoencoder, or is damaged.
    """
    place = open_place(model)
    _check_whole(place, model, classes=classes)
    autoencoder = place.networks["autoencoder"].config
    assert isinstance(autoencoder, AutoencoderConfig)
    transformer = place.networks["transformer"].config if "transformer" in place.networks else None
    pixels = autoencoder.stride * int(getattr(transformer, "patch_size", 1))
    size = int(place.sampling.get("size", 1024))
    return pixels, max(pixels, size - size % pixels)


def make_shard(job: Job) -> Made:
    """Encode and write one shard. A picture that cannot be read any more is left out and named."""
    torch.set_num_threads(job.threads)
    autoencoder, text_encoder = _networks(job.model, job.device)
    sums: dict[str, str] = {}
    lost: list[Problem] = []
    kept, cut = None, None
    if LATENTS in job.parts:
        tensors, lost = _latents(autoencoder, job)
        kept = len(tensors["kept"])
        sums[LATENTS] = write_shard(job.folder / LATENTS / job.name, tensors)
    if TEXT in job.parts:
        tensors, facts, cut = _captions(text_encoder, job.entries)
        sums[TEXT] = write_shard(job.folder / TEXT / job.name, tensors, facts)
    return Made(sums, kept, lost, cut)


@torch.no_grad()
def _latents(autoencoder: Autoencoder, job: Job) -> tuple[dict[str, Tensor], list[Problem]]:
    device = next(autoencoder.parameters()).device
    bucket, config = job.entries[0].fit.bucket, autoencoder.config
    latents, kept, lost = [], [], []
    with quiet_pillow(), ThreadPoolExecutor(job.threads) as readers:
        for start in range(0, len(job.entries), ENCODED_AT_ONCE):
            part = job.entries[start : start + ENCODED_AT_ONCE]
            pixels = []
            for place, read in enumerate(readers.map(lambda entry: _pixels(entry, job.max_pixels), part)):
                if isinstance(read, Problem):
                    lost.append(read)
                else:
                    pixels.append(read)
                    kept.append(start + place)
            if pixels:
                images = torch.stack(pixels).to(device).contiguous(memory_format=torch.channels_last)
                with autocast(device):
                    latents.append(autoencoder.encode(images).bfloat16().cpu())
    sides = bucket.height // config.stride, bucket.width // config.stride
    empty = torch.empty(0, config.latent_channels, *sides, dtype=torch.bfloat16)
    return {"latents": torch.cat([empty, *latents]), "kept": torch.tensor(kept, dtype=torch.int32)}, lost


def _pixels(entry: Entry, max_pixels: int) -> Tensor | Problem:
    try:
        return to_pixels(cover(decode(entry.picture.read(), max_pixels), entry.fit.bucket))
    except BadPicture as error:
        return Problem(entry.key, str(error))
    except OSError as error:
        return Problem(entry.key, f"unreadable: {error.strerror or error}")


@torch.no_grad()
def _captions(
    text_encoder: TextEncoder | None, entries: list[Entry]
) -> tuple[dict[str, Tensor], dict[str, str], int]:
    texts = [caption.text for entry in entries for caption in entry.captions]
    if text_encoder is None:
        nothing = {"vectors": torch.empty(0, 0), "lengths": torch.zeros(len(texts), dtype=torch.int32)}
        return nothing, _samples(entries), 0
    # Those of like length go together, so that little is padding.
    order = sorted(dict.fromkeys(texts), key=len)
    rows: dict[str, Tensor] = {}
    with _counted_cuts() as cuts:
        for start in range(0, len(order), ENCODED_AT_ONCE):
            part = order[start : start + ENCODED_AT_ONCE]
            embeddings, mask = text_encoder.encode(part)
            for text, row, there in zip(part, embeddings, mask, strict=True):
                rows[text] = row[there].bfloat16().cpu()
    tensors = {
        "vectors": torch.cat([rows[text] for text in texts]),
        "lengths": torch.tensor([len(rows[text]) for text in texts], dtype=torch.int32),
    }
    return tensors, _samples(entries), cuts.count


def _samples(entries: list[Entry]) -> dict[str, str]:
    return {"samples": json.dumps([described(entry) for entry in entries])}


@lru_cache(1)
def _networks(model: str, device: str) -> tuple[Autoencoder, TextEncoder | None]:
    """What encodes pictures and captions; loaded once in a process."""
    place, where = open_place(model), torch.device(device)
    autoencoder = assemble_autoencoder(place, "fp32").to(where)
    has_text = place.text is not None or "text_encoder" in place.networks
    return autoencoder, assemble_text_encoder(place, where) if has_text else None


def _check_whole(place: Place, model: str | Path, *, classes: bool) -> None:
    if classes:
        if "autoencoder" not in place.networks:
            raise CheckpointError(
                f"{model} holds no autoencoder, which encodes pictures. Give one that does."
            )
    elif place.missing:
        raise CheckpointError(
            f"{model} holds no {', no '.join(place.missing)}: pictures are encoded by the autoencoder, "
            "captions by the text encoder, for the transformer. Give the folder of a whole model."
        )


class _Cuts(logging.Filter):
    """Counts the warnings of captions that are cut off, instead of showing each of them."""

    count = 0

    def filter(self, record: logging.LogRecord) -> bool:
        self.count += 1
        return False


@contextmanager
def _counted_cuts() -> Iterator[_Cuts]:
    cuts, logger = _Cuts(), logging.getLogger("lineardit.text.prompt")
    logger.addFilter(cuts)
    try:
        yield cuts
    finally:
        logger.removeFilter(cuts)
