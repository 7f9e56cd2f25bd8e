"""What every source of pictures gives: a name, the bytes of a picture, and captions with weights."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

MOST_BYTES = 256 * 2**20
"""A file of a picture that is larger is not read."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""Endings of pictures that are read."""
OTHER_SUFFIXES = (".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jxl", ".jfif", ".ppm")
"""Endings of pictures that are not: they are listed, not passed over in silence."""

CaptionColumns = Mapping[str, float]
"""Columns (or keys of a JSON file) that hold captions, and the weight of each."""


class Caption(NamedTuple):
    """One text that says what is to be seen, and how often it is chosen among those of its picture."""

    text: str
    weight: float = 1.0


class Description(NamedTuple):
    """What is said of a picture."""

    captions: tuple[Caption, ...] = ()
    label: str | None = None
    """The class that it is of, where classes were asked for and there is one."""


@runtime_checkable
class PictureFile(Protocol):
    """A picture that is still encoded, somewhere."""

    @property
    def fingerprint(self) -> str:
        """Something that is another one when the bytes are others.

        Raises: OSError where it is not there.
        """
        ...

    def read(self) -> bytes:
        """The encoded bytes.

        Raises: OSError where they cannot be read, or are more than MOST_BYTES.
        """
        ...


class Record(NamedTuple):
    """One entry of a source. A bad one says what is wrong with it instead of raising."""

    key: str
    """Its name in the source: a path, or the number of a row."""
    picture: PictureFile | None
    captions: tuple[Caption, ...] = ()
    problem: str | None = None
    """Why it cannot be used, where that is known before the picture is looked at."""
    label: str | None = None
    """The class that it is of, where classes were asked for and there is one."""


@runtime_checkable
class Source(Protocol):
    """Records by number, the same in every run."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Record:
        """The record of a number from 0 to len - 1; never raises for what is wrong with its files."""
        ...


@runtime_checkable
class Declaring(Protocol):
    """A source that says which classes there are, and by their order which number each has."""

    @property
    def class_names(self) -> Sequence[str]:
        """Classes by number."""
        ...


class BadCaption(ValueError):
    """What stands where a caption should be is none; the message says why."""
