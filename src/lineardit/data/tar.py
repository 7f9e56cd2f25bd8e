"""Where the files of a tar lie, read from its headers alone: nothing is unpacked, followed or run.

What is read are the regular files of the POSIX (ustar, pax) and GNU formats, uncompressed, with names that
stay below the archive. Links, devices and whatever else a tar can hold are passed over. The format: IEEE Std
1003.1, pax, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format".
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from lineardit.errors import InputError

BLOCK = 512
LONGEST_NAME = 4096
"""Bytes of a member's name."""
MOST_PAX_BYTES = 2**20
"""An extended header that is larger is damaged."""
_REGULAR = (b"0", b"\0", b"7")
_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL = b"L", b"K", b"x", b"g"
_MAGICS = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"(\xb5": "zstd"}


class Member(NamedTuple):
    """A regular file in a tar."""

    name: str
    """With slashes, relative."""
    offset: int
    """Where its bytes begin."""
    size: int


class Damage(NamedTuple):
    """What cannot be read, and why."""

    place: str
    """A name, or the byte of the archive at which reading ends."""
    reason: str


def members(path: Path) -> Iterator[Member | Damage]:
    """The regular files of a tar in their order. After damage that hides what follows, nothing more comes.

    Raises:
        InputError: it cannot be opened, or is compressed.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            start = file.read(2)
            if start in _MAGICS:
                raise InputError(
                    f"{path} is compressed ({_MAGICS[start]}), so that nothing in it can be read alone. "
                    "Decompress it first: pictures are compressed already."
                )
            yield from _members(file, size)
    except OSError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read ({error.strerror or error}).") from None


def _members(file: IO[bytes], end: int) -> Iterator[Member | Damage]:
    at, long_name, pax = 0, "", dict[str, str]()
    while at < end:
        file.seek(at)
        header = file.read(BLOCK)
        if not header.strip(b"\0") and len(header) == BLOCK:
            return  # the end of the archive
        place = f"byte {at}"
        if len(header) < BLOCK:
            yield Damage(place, "truncated: the tar ends within a header")
            return
        size = _number(header[124:136])
        if size is None or not _checksum_holds(header):
            yield Damage(place, "damaged: a header of the tar is not what was written")
            return
        kind, data = header[156:157], at + BLOCK
        if "size" in pax and kind not in (_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL):
            if not (pax["size"].isascii() and pax["size"].isdigit() and len(pax["size"]) < 20):
                yield Damage(place, "damaged: a header of the tar has no size")
                return
            size = int(pax["size"])
        if data + size > end:
            yield Damage(place, "truncated: the tar ends within a file")
            return
        at = data + -(-size // BLOCK) * BLOCK
        if kind in (_LONG_NAME, _PAX):
            if size > (LONGEST_NAME if kind == _LONG_NAME else MOST_PAX_BYTES):
                yield Damage(place, "damaged: a header of the tar is too long")
                return
            content = file.read(size)
            if kind == _LONG_NAME:
                long_name = content.rstrip(b"\0").decode("utf-8", "replace")
            else:
                pax = _records(content)
            continue
        if kind in (_LONG_LINK, _PAX_GLOBAL):
            continue
        name = pax.get("path") or long_name or _name(header)
        sparse = any(key.startswith("GNU.sparse") for key in pax)
        long_name, pax = "", {}
        if kind not in _REGULAR or sparse or name.endswith("/"):
            continue
        if not _stays_inside(name):
            yield Damage(_printable(name), "unsafe name: it leads out of the tar")
        else:
            yield Member(name, data, size)


def _number(field: bytes) -> int | None:
    """A size: octal digits, or for 8 GiB and more a base-256 number whose first bit is set."""
    if field[0] & 0x80:
        number = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
        return number if number < 2**62 else None
    digits = field.strip(b"\0 ")
    if not digits:
        return 0
    return int(digits, 8) if all(byte in b"01234567" for byte in digits) else None


def _checksum_holds(header: bytes) -> bool:
    """The sum of all bytes, those of the sum itself counting as blanks."""
    written = _number(header[148:156])
    return written == sum(header[:148]) + 8 * ord(" ") + sum(header[156:])


def _name(header: bytes) -> str:
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "replace")


def _records(content: bytes) -> dict[str, str]:
    """The records of a pax header, each `LENGTH KEY=VALUE` and a line break, up to the first damaged one."""
    found, at = {}, 0
    while at < len(content):
        blank = content.find(b" ", at, at + 9)  # a length has at most 8 digits
        digits = content[at : max(at, blank)]
        if not digits.isdigit():
            break
        at += int(digits)
        key, equals, value = content[blank + 1 : at].partition(b"=")
        if not equals or not value.endswith(b"\n"):
            break
        found[key.decode("utf-8", "replace")] = value[:-1].decode("utf-8", "replace")
    return found


def _stays_inside(name: str) -> bool:
    path = PurePosixPath(name)
    plain = name.isprintable() and "\\" not in name and "\ufffd" not in name and len(name) <= LONGEST_NAME
    return plain and bool(path.name) and not path.is_absolute() and ".." not in path.parts


def _printable(name: str) -> str:
    return name[:100].encode("unicode_escape").decode("ascii")
