"""Checkpoints of a training run that survive being killed at any moment, without pickle.

    FOLDER/step-00001000/  model.safetensors  ema.safetensors  ...  state.json  manifest.json

A checkpoint is written into a hidden temporary folder, every file is synced, the manifest (sha256 and size
of each file) is written last, and one rename makes it visible; older ones are removed only after that.
So whatever is called `step-*` was complete once, and the manifest tells whether it still is.
"""

import json
import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from lineardit.errors import CheckpointError, InputError, OutputError
from lineardit.interop.durable import UNFINISHED, fingerprint, new_folder, remove_folder
from lineardit.interop.native import read_tensors, write_tensors

FORMAT = 1
MANIFEST = "manifest.json"
STATE = "state.json"

# A second save of the same step (after stepping back over a damaged one) gets a number of its own,
# because a folder cannot be replaced in one atomic operation.
_NAME = re.compile(r"step-(\d{8,})(?:-(\d+))?")
_STEM = re.compile(r"[A-Za-z0-9_]+")

_log = logging.getLogger(__name__)


class Loaded(NamedTuple):
    """What a checkpoint holds, on the CPU."""

    path: Path
    step: int
    tensors: dict[str, dict[str, Tensor]]
    """File stem (`model`, `ema`, `optimizer`) to state dict."""
    state: dict[str, Any]
    """Everything that is no tensor."""


def save(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int
) -> Path:
    """Write checkpoint `step` below `folder`, then remove all but the newest `keep`, and return its path.

    Raises:
        InputError: the state is not JSON, a file stem is no plain name, or `keep` is below 1.
        OutputError: the disk is full or not writable; what was there before is untouched.
    """
    if step < 0 or keep < 1:
        raise InputError(
            f"step={step} and keep={keep}: a step is at least 0, and at least 1 checkpoint is kept."
        )
    for stem in tensors:
        if not _STEM.fullmatch(stem):
            raise InputError(f"{stem!r} is no file stem: use letters, digits and underscores, as in 'model'.")
    try:
        state_text = json.dumps(dict(state), indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"the state of a checkpoint must be JSON, with finite numbers: {error}") from None

    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f"{UNFINISHED}*"):
            shutil.rmtree(leftover)
        final = _unused_path(folder, step)
        with new_folder(final) as place:
            _write(place, step, tensors, state_text)
        _prune(folder, final, keep)
    except OSError as error:
        raise OutputError(
            f"checkpoint {step} was not written to {folder}: {error} Older ones are kept."
        ) from error
    return final


def load(path: Path) -> Loaded:
    """Read one checkpoint after checking every file against the manifest.

    Raises:
        CheckpointError: there is no checkpoint, or one of its files is missing, short or altered.
    """
    named = _NAME.fullmatch(path.name)
    if not named or not path.is_dir():
        raise CheckpointError(f"{path} is no checkpoint: give a folder named like step-00001000.")
    files = _checked_files(path, step=int(named[1]))
    try:
        state = json.loads((path / STATE).read_text("utf-8"))
        tensors = {
            name.removesuffix(".safetensors"): read_tensors(path / name) for name in files if name != STATE
        }
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return Loaded(path, int(named[1]), tensors, state)


def load_newest(folder: Path) -> Loaded | None:
    """Read the newest checkpoint that is intact, saying in the log which damaged ones were passed over.

    Returns None where no checkpoint was ever finished.

    Raises:
        CheckpointError: there are checkpoints, and every one is damaged.
    """
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


def _write(folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state_text: str) -> None:
    for stem, state_dict in tensors.items():
        write_tensors(folder / f"{stem}.safetensors", state_dict)
    (folder / STATE).write_text(state_text, "utf-8")
    files = {path.name: fingerprint(path)._asdict() for path in folder.iterdir()}
    manifest = {"format": FORMAT, "step": step, "files": files}
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
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{path} is damaged: its {MANIFEST} is not what was written.") from None
    if version != FORMAT:
        raise CheckpointError(f"{path} has format {version}; this version of lineardit reads {FORMAT}.")
    if written_step != step or STATE not in files:
        raise CheckpointError(f"{path} is damaged: its {MANIFEST} belongs to another checkpoint.")
    for name, size, sha256 in entries:
        stem = name.removesuffix(".safetensors")
        if name != STATE and (stem == name or not _STEM.fullmatch(stem)):
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


def _unused_path(folder: Path, step: int) -> Path:
    attempts = [attempt for other, attempt in map(_age, _finished(folder)) if other == step]
    suffix = f"-{max(attempts) + 1}" if attempts else ""
    return folder / f"step-{step:08d}{suffix}"


def _prune(folder: Path, newest: Path, keep: int) -> None:
    """Remove all but `keep` up to `newest`. Later ones were stepped over as damaged and count for nothing."""
    older = [path for path in _finished(folder) if _age(path) < _age(newest)]
    for path in older[: len(older) - (keep - 1)]:
        remove_folder(path)
