"""Tars against the standard library's writer, made by strangers, and damaged in every way."""

import io
import random
import tarfile
from pathlib import Path
from typing import Any

import pytest

from lineardit.data.tar import Damage, Member, _records, members
from lineardit.errors import InputError, LineardiTError

FILES = {
    "a.txt": b"hello",
    "folder/b.png": b"x" * 1500,
    "empty.txt": b"",
    "n" * 140 + "/" + "m" * 90 + ".txt": b"a long name",
    "grüße/ü.txt": "ü".encode(),
}


def tar(path: Path, format: int, files: dict[str, bytes] = FILES) -> Path:
    with tarfile.open(path, "w", format=format) as file:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def content(path: Path) -> dict[str, bytes]:
    found = {}
    for member in members(path):
        assert isinstance(member, Member)
        found[member.name] = path.read_bytes()[member.offset : member.offset + member.size]
    return found


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_what_the_standard_library_writes_is_found(tmp_path: Path, format: int) -> None:
    assert content(tar(tmp_path / "a.tar", format)) == FILES


def test_a_size_in_base_256_is_read(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", tarfile.GNU_FORMAT, {"a.txt": b"hello"})
    data = bytearray(path.read_bytes())
    data[124:136] = b"\x80" + (5).to_bytes(11, "big")
    data[148:156] = b" " * 8
    data[148:155] = f"{sum(data[:512]):06o}\0".encode()
    path.write_bytes(data)
    assert content(path) == {"a.txt": b"hello"}


def test_links_devices_and_folders_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as file:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo(f"kind{kind.decode()}.png")
            info.type, info.linkname = kind, "/etc/passwd"
            file.addfile(info)
        file.addfile(tarfile.TarInfo("a.txt"))
    assert list(content(path)) == ["a.txt"]


@pytest.mark.parametrize("name", ["../a.png", "/etc/a.png", "a/../../b.png", "a\\b.png", "a\x07.png", "a/.."])
def test_names_that_lead_out_are_told_and_not_followed(tmp_path: Path, name: str) -> None:
    path = tar(tmp_path / "a.tar", tarfile.PAX_FORMAT, {name: b"x", "good.txt": b"y"})
    damage, good = members(path)
    assert isinstance(damage, Damage) and damage.reason.startswith("unsafe name")
    assert damage.place.isprintable()
    assert isinstance(good, Member) and good.name == "good.txt"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"12 path=abc\n5 a=\n", {"path": "abc", "a": ""}),
        (b"9 a=b=c\n\n6 a=d\n", {"a": "d"}),
        ("9 a=üü\n".encode(), {"a": "üü"}),
        (b"99999999 a=b\n", {"a": "b"}),
        (b"5 a=\n100000006 a=b\n", {"a": ""}),
        (b"6 a=b\n6 a=bc", {"a": "b"}),
        (b"6 a=b\n5 ab\n6 c=d\n", {"a": "b"}),
        (b"6 a=b\n0 \n6 c=d\n", {"a": "b"}),
        (b"6 a=b\n-6 c=d\n", {"a": "b"}),
        (b"6 a=b\n 6 c=d\n", {"a": "b"}),
        (b"6 a=b\n\0\0\0", {"a": "b"}),
        (b"", {}),
    ],
)
def test_pax_records_are_read_up_to_the_first_damaged_one(content: bytes, expected: dict[str, str]) -> None:
    assert _records(content) == expected


def test_no_pax_record_is_read_twice() -> None:
    handed: list[int] = []

    class Watched(bytes):
        """Counts what is taken out of it."""

        def __getitem__(self, place: Any) -> "Watched":
            part = Watched(super().__getitem__(place))
            handed.append(len(part))
            return part

    content = b"".join(b"6 %c=b\n" % (97 + number % 26) for number in range(2000))
    assert len(_records(Watched(content))) == 26
    assert sum(handed) <= len(content)


def test_where_a_tar_ends_too_early_is_told(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", tarfile.USTAR_FORMAT, {"a.txt": b"a", "b.txt": b"b" * 2000})
    whole = path.read_bytes()
    for length, reason in ((1024 + 300, "within a header"), (1024 + 512 + 700, "within a file")):
        path.write_bytes(whole[:length])
        good, damage = members(path)
        assert isinstance(good, Member) and good.name == "a.txt"
        assert isinstance(damage, Damage) and reason in damage.reason and damage.place == "byte 1024"


@pytest.mark.parametrize(("mode", "kind"), [("w:gz", "gzip"), ("w:bz2", "bzip2"), ("w:xz", "xz")])
def test_a_compressed_tar_is_refused_with_what_to_do(tmp_path: Path, mode: str, kind: str) -> None:
    with tarfile.open(tmp_path / "a.tar", mode) as file:  # type: ignore[call-overload]
        file.addfile(tarfile.TarInfo("a.txt"))
    with pytest.raises(InputError, match=rf"is compressed \({kind}\).*Decompress it first"):
        list(members(tmp_path / "a.tar"))


def test_a_tar_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a.tar cannot be read"):
        list(members(tmp_path / "a.tar"))


def test_mutated_tars_end_and_raise_nothing_foreign(tmp_path: Path) -> None:
    draw = random.Random(0)
    originals = [tar(tmp_path / f"{format}.tar", format).read_bytes() for format in (0, 1, 2)]
    path = tmp_path / "mutated.tar"
    for number in range(600):
        data = bytearray(draw.choice(originals))
        for _ in range(draw.choice([1, 1, 4, 40])):
            place = draw.randrange(len(data))
            if draw.random() < 0.7:  # headers are where it matters
                place = place // 512 * 512 + draw.randrange(100, 170)
            data[place] = draw.choice([0, 0x30, 0x37, 0x80, 0xFF, draw.randrange(256)])
        if number % 2:  # a checksum that holds lets the mutation through
            for start in range(0, len(data) - 512, 512):
                if any(data[start : start + 512]):
                    data[start + 148 : start + 156] = b" " * 8
                    total = sum(data[start : start + 512])
                    data[start + 148 : start + 155] = f"{total:06o}\0".encode()
        path.write_bytes(data[: draw.randrange(len(data))] if number % 5 == 0 else data)
        try:
            found = list(members(path))
        except LineardiTError:
            continue
        size = path.stat().st_size
        for each in found:
            assert isinstance(each, Damage) or each.offset + each.size <= size
