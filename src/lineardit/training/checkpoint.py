"""Checkpoints of a training run that survive being killed at any moment, without pickle.

    FOLDER/step-00001000/  model.safetensors  ema.safetensors  ...  state.json  manifest.json

A checkpoint is written into a hidden temporary folder, every file is synced, the manifest (sha256 and size
of each file) is written last, and one rename makes it visible; older ones are removed only after that.
So whatever is called `step-*` was complete once, and the manifest tells whether it still is.

Where processes hold rows of every tensor, each writes its own, as model-00001-of-00002.safetensors: a tensor
is the rows of these files one after the other, whoever reads them.
"""

import json
import logging
import re
import shutil
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from torch import Tensor

from lineardit.errors import CheckpointError, InputError, OutputError
from lineardit.interop.durable import UNFINISHED, fingerprint, new_folder, remove_folder
from lineardit.interop.native import write_tensors
from lineardit.training.distributed import World
from lineardit.training.pieces import Pieces, own_pieces
from lineardit.training.shares import Share

FORMAT = 1
MANIFEST = "manifest.json"
STATE = "state.json"

# A second save of the same step (after stepping back over a damaged one) gets a number of its own,
# because a folder cannot be replaced in one atomic operation.
_NAME = re.compile(r"step-(\d{8,})(?:-(\d+))?")
_STEM = re.compile(r"[A-Za-z0-9_]+")
_FILE = re.compile(r"([A-Za-z0-9_]+)(?:-\d{5}-of-\d{5})?\.safetensors")
_WRITTEN = ".written-"
"""What the names of files begin with in which processes tell the first one what they wrote."""

_log = logging.getLogger(__name__)


class Loaded(NamedTuple):
    """What a checkpoint holds; tensors are read to the CPU when they are asked for."""

    path: Path
    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    """File stem (`model`, `ema`, `optimizer`) to state dict."""
    state: dict[str, Any]
    """Everything that is no tensor."""


def save(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    keep: int,
    *,
    keep_best: int = 0,
    score: float | None = None,
    world: World = World(),  # noqa: B008, a tuple
    part: Share | None = Share(),  # noqa: B008, a tuple
) -> Path:
    """Write checkpoint `step` below `folder`, then remove older ones, and return its path.

    The newest `keep` stay, and the `keep_best` whose `score` is lowest. In a job of several processes all
    call this at once, into a folder that all see; each writes `part` of the tensors, or nothing where it is
    None.

    Raises:
        InputError: the state is not JSON, a file stem is no plain name, or `keep` is below 1.
        OutputError: the disk is full or not writable; what was there before is untouched.
    """
    if step < 0 or keep < 1 or keep_best < 0:
        raise InputError(
            f"step={step}, keep={keep} and keep_best={keep_best}: a step is at least 0, at least 1 "
            "checkpoint is kept, and no fewer than 0 of the best."
        )
    for stem in tensors:
        if not _STEM.fullmatch(stem):
            raise InputError(f"{stem!r} is no file stem: use letters, digits and underscores, as in 'model'.")
    try:
        state_text = json.dumps(dict(state), indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"the state of a checkpoint must be JSON, with finite numbers: {error}") from None
    if not world.first:
        return _follow(folder, step, tensors, world, part)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f"{UNFINISHED}*"):
            shutil.rmtree(leftover)
        attempt = _unused_attempt(folder, step)
        final = _path(folder, step, attempt)
        with new_folder(final) as place:
            world.told(attempt)
            failed = _written(place, tensors, part)
            if world.sum([float(failed is not None)])[0]:
                raise failed or OSError("another process could not write its part.")
            _seal(place, step, state_text, score)
        _prune(folder, final, keep, keep_best)
    except OSError as error:
        world.told(0)  # instead of the attempt, or of the 1 below
        raise OutputError(
            f"checkpoint {step} was not written to {folder}: {error} Older ones are kept."
        ) from error
    world.told(1)
    return final


def _follow(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], world: World, part: Share | None
) -> Path:
    """What the other processes do while the first one saves."""
    attempt = world.told(0)
    if not attempt:
        raise OutputError(
            f"checkpoint {step} was not written to {folder}: the first process could not begin it."
        )
    final = _path(folder, step, attempt)
    failed = _written(final.with_name(f"{UNFINISHED}{final.name}"), tensors, part)
    world.sum([float(failed is not None)])
    if not world.told(0):
        raise OutputError(
            f"checkpoint {step} was not written to {folder}: {failed or 'another process failed.'} "
            "Older ones are kept."
        )
    return final


def load(path: Path) -> Loaded:
    """Open one checkpoint after checking every file against the manifest.

    Raises:
        CheckpointError: there is no checkpoint, or one of its files is missing, short or altered.
    """
    named = _NAME.fullmatch(path.name)
    if not named or not path.is_dir():
        raise CheckpointError(f"{path} is no checkpoint: give a folder named like step-00001000.")
    return _opened(path, _checked_files(path, step=int(named[1])))


def load_newest(folder: Path, world: World = World()) -> Loaded | None:  # noqa: B008, a tuple
    """Open the newest checkpoint that is intact, saying in the log which damaged ones were passed over.

    Returns None where no checkpoint was ever finished. Of several processes the first one checks, and all
    open what it found.

    Raises:
        CheckpointError: there are checkpoints, and every one is damaged.
    """
    if not world.first:
        step, attempt = world.told(0), world.told(0)
        if step < 0:
            raise CheckpointError(f"no checkpoint in {folder} is whole, as the first process found.")
        path = _path(folder, step, attempt)
        return _opened(path, [each.name for each in path.iterdir()]) if attempt else None
    try:
        found = _newest_whole(folder)
    except CheckpointError:
        world.told(-1)
        world.told(0)
        raise
    step, attempt = _age(found.path) if found else (0, 0)
    world.told(step)
    world.told(attempt)
    return found


def _newest_whole(folder: Path) -> Loaded | None:
    damaged = []
    for path in reversed(_finished(folder)):
        try:
            loaded = load(path)
        except CheckpointError as error:
            _log.warning("stepping back over a damaged checkpoint: %s", error)
            damaged.append(path.name)
        else:
            if damaged:
                _log.warning("continuing from the older checkpoint %s", path)
            return loaded
    if damaged:
        raise CheckpointError(
            f"every checkpoint in {folder} is damaged ({', '.join(damaged)}): "
            "restore one from a copy, or start in another folder."
        )
    return None


def _opened(path: Path, files: list[str]) -> Loaded:
    stems: dict[str, list[Path]] = defaultdict(list)
    for name in sorted(files):
        if named := _FILE.fullmatch(name):
            stems[named[1]].append(path / name)
    try:
        state = json.loads((path / STATE).read_text("utf-8"))
        tensors = {stem: Pieces(paths) for stem, paths in stems.items()}
    except (OSError, ValueError, SafetensorError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return Loaded(path, _age(path)[0], tensors, state)


def _written(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], part: Share | None) -> OSError | None:
    """Write this process's part, with a note of what the files hold; returns what went wrong."""
    if part is None:
        return None
    suffix = f"-{part.index + 1:05}-of-{part.count:05}" if part.count > 1 else ""
    try:
        names = []
        for stem, state_dict in tensors.items():
            names.append(f"{stem}{suffix}.safetensors")
            write_tensors(folder / names[-1], own_pieces(state_dict, part))
        files = {name: fingerprint(folder / name)._asdict() for name in names}
        (folder / f"{_WRITTEN}{part.index}").write_text(json.dumps(files), "utf-8")
    except OSError as error:  # an OutputError is one
        return error
    return None


def _seal(folder: Path, step: int, state_text: str, score: float | None) -> None:
    """Write the state, and the manifest of all that the processes wrote."""
    (folder / STATE).write_text(state_text, "utf-8")
    files = {STATE: fingerprint(folder / STATE)._asdict()}
    for note in sorted(folder.glob(f"{_WRITTEN}*")):
        files |= json.loads(note.read_text("utf-8"))
        note.unlink()
    manifest = {"format": FORMAT, "step": step, "score": score, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), "utf-8")


def _checked_files(path: Path, step: int) -> list[str]:
    """Names of the files in the manifest, each of which was found to be what the manifest says."""
    try:
        manifest = json.loads((path / MANIFEST).read_text("utf-8"))
        version, written_step, files = manifest["format"], manifest["step"], manifest["files"]
        entries = [(name, entry["size"], entry["sha256"]) for name, entry in files.items()]
    except OSError as error:
        raise CheckpointError(
            f"{path} is damaged: its {MANIFEST} cannot be read ({error.strerror})."
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{path} is damaged: its {MANIFEST} is not what was written.") from None
    if version != FORMAT:
        raise CheckpointError(f"{path} has format {version}; this version of lineardit reads {FORMAT}.")
    if written_step != step or STATE not in files:
        raise CheckpointError(f"{path} is damaged: its {MANIFEST} belongs to another checkpoint.")
    for name, size, sha256 in entries:
        if name != STATE and not _FILE.fullmatch(name):
            raise CheckpointError(f"{path} is damaged: its {MANIFEST} names the foreign file {name!r}.")
        try:
            found = fingerprint(path / name)
        except OSError as error:
            raise CheckpointError(f"{path} is damaged: {name} cannot be read ({error.strerror}).") from None
        if found.size != size:
            raise CheckpointError(f"{path} is damaged: {name} has {found.size} bytes, {size} were written.")
        if found.sha256 != sha256:
            raise CheckpointError(f"{path} is damaged: {name} differs from what was written (sha256).")
    return list(files)


def _age(path: Path) -> tuple[int, int]:
    named = _NAME.fullmatch(path.name)
    assert named is not None
    return int(named[1]), int(named[2] or 1)


def _finished(folder: Path) -> list[Path]:
    """Checkpoints from the oldest to the newest, intact or not."""
    return sorted((path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)), key=_age)


def _unused_attempt(folder: Path, step: int) -> int:
    return 1 + max((attempt for other, attempt in map(_age, _finished(folder)) if other == step), default=0)


def _path(folder: Path, step: int, attempt: int) -> Path:
    return folder / (f"step-{step:08d}" + (f"-{attempt}" if attempt > 1 else ""))


def _prune(folder: Path, newest: Path, keep: int, keep_best: int) -> None:
    """Remove all but `keep` up to `newest` and the best. Later ones were stepped over as damaged: they count
    for nothing, and stay until they are old."""
    older = [path for path in _finished(folder) if _age(path) < _age(newest)]
    scored = [(score, path) for path in (*older, newest) if (score := _score(path)) is not None]
    best = [path for _, path in sorted(scored)[:keep_best]]
    for path in older[: max(0, len(older) - (keep - 1))]:
        if path not in best:
            remove_folder(path)


def _score(path: Path) -> float | None:
    try:
        score = json.loads((path / MANIFEST).read_text("utf-8"))["score"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return score if isinstance(score, float) else None
