"""Where the model lies that ships with the package."""

from importlib.resources import files
from pathlib import Path

BUNDLED = "emoji"
"""What it is called."""


def bundled_folder() -> Path:
    """Its folder."""
    return Path(str(files("lineardit"))) / "weights" / BUNDLED


def folder_named(place: Path) -> Path:
    """The place, or the folder of the bundled model where it is called by its name."""
    return bundled_folder() if str(place) == BUNDLED else place
