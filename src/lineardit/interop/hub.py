"""Folders and files of a hub that holds models, by their ids."""

import re
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lineardit.errors import CheckpointError, MissingExtraError
from lineardit.interop.official_files import CHECKPOINTS

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILE = re.compile(rf"hf://({_HUB_ID.pattern})/(.+)")
_HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", f"{CHECKPOINTS}/*.pth")


def resolve(place: str | Path) -> Path:
    """The path itself, or the folder of a hub id: the local copy, and only if there is none a fetched one.

    Raises:
        CheckpointError: there is no such path, and no such id at hand.
        MissingExtraError: it looks like a hub id, and huggingface_hub is not installed.
    """
    path = Path(place)
    if path.exists():
        return path
    if isinstance(place, str) and (named := _HUB_FILE.fullmatch(place)):
        return _fetched(place, named[1], "hf_hub_download", {"filename": named[2]})
    if not isinstance(place, str) or not _HUB_ID.fullmatch(place):
        raise CheckpointError(
            f"{place} is no folder and no file here. Give one, or a hub id such as NAME/MODEL."
        )
    return _fetched(place, place, "snapshot_download", {"allow_patterns": list(_HUB_FILES)})


def _fetched(place: str, name: str, function: str, wanted: Mapping[str, Any]) -> Path:
    """The local copy of what is wanted of `name` on a hub, and only if there is none a fetched one."""
    if find_spec("huggingface_hub") is None:
        raise MissingExtraError("huggingface_hub", "hub", f"{place} is no folder here; a hub id")
    download: Callable[..., str] = getattr(import_module("huggingface_hub"), function)
    try:
        return Path(download(name, **wanted, local_files_only=True))
    except Exception:  # nothing local, whatever the library calls it
        pass
    try:
        return Path(download(name, **wanted))
    except Exception as error:  # no network, no such model, no permission: many kinds, one meaning
        raise CheckpointError(
            f"{place} is no folder here, not among the models that huggingface_hub has at hand, and could "
            f"not be fetched ({type(error).__name__}). Fetch it where there is a network: hf download {name}"
        ) from None
