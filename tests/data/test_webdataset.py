"""WebDataset tars: what belongs together is found, and nothing in them is run."""

import io
import pickle
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from lineardit.data.sources import open_source
from lineardit.data.webdataset import WebDatasetSource
from lineardit.errors import InputError


def png(color: str = "red") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), color).save(stream, "PNG")
    return stream.getvalue()


def tar(path: Path, files: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as file:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def test_files_that_share_a_name_are_a_sample(tmp_path: Path) -> None:
    first = tar(
        tmp_path / "a-0.tar",
        [
            ("./x/0001.png", png("red")),
            ("./x/0001.txt", b"red\ncrimson"),
            ("./x/0001.cls", b"3"),
            ("0002.seg.png", png()),
            ("0002.jpg", png("blue")),
            ("0002.json", b'{"caption": "blue", "weight": 2}'),
            ("0003.webp", png()),
        ],
    )
    second = tar(tmp_path / "a-1.tar", [("0001.png", png("green")), ("0001.caption", b"green")])
    source = open_source([str(tmp_path)])
    found = [source[number] for number in range(len(source))]
    assert [record.key for record in found] == [
        "a-0.tar:./x/0001.png", "a-0.tar:0002.jpg", "a-0.tar:0003.webp", "a-1.tar:0001.png"
    ]  # fmt: skip
    texts = [[caption.text for caption in record.captions] for record in found]
    assert texts == [["red", "crimson"], ["blue"], [], ["green"]]
    assert found[1].captions[0].weight == 2
    assert [record.picture.read() for record in found if record.picture] == [
        png("red"), png("blue"), png(), png("green")
    ]  # fmt: skip
    prints = {record.picture.fingerprint for record in found if record.picture}
    assert len(prints) == 4
    assert WebDatasetSource([second, first])[0].key == "a-1.tar:0001.png"


def test_what_cannot_be_used_is_told_and_the_rest_is_kept(tmp_path: Path) -> None:
    path = tar(
        tmp_path / "a.tar",
        [
            ("1.png", png()),
            ("1.json", b"{"),
            ("2.png", png()),
            ("2.jpg", png()),
            ("3.gif", b"GIF89a"),
            ("../4.png", png()),
            ("5.png", png()),
        ],
    )
    content = path.read_bytes().rstrip(b"\0")
    path.write_bytes(content + bytes(-len(content) % 512) + b"damage" * 100)
    source = WebDatasetSource([path])
    found = {record.key: record.problem for record in (source[number] for number in range(len(source)))}
    assert found.pop("a.tar:2.png") is None and found.pop("a.tar:5.png") is None
    reasons = sorted(str(problem).partition(":")[0] for problem in found.values())
    assert reasons == ["bad caption", "damaged", "second picture", "unread format", "unsafe name"]


class _Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return sys.audit, ("lineardit.test.executed",)


def test_nothing_in_a_tar_is_run(tmp_path: Path) -> None:
    names = ["1.pyd", "1.pickle", "1.pth", "1.pkl", "1.npy", "pipe:touch executed.png"]
    files = [(name, pickle.dumps(_Payload())) for name in names]
    path = tar(tmp_path / "a.tar", [("1.png", png()), *files])
    heard: list[str] = []
    active = [True]

    def hook(event: str, _: object) -> None:
        if active and (event.startswith(("lineardit.test", "subprocess", "os.system", "pickle"))):
            heard.append(event)

    sys.addaudithook(hook)
    try:
        source = WebDatasetSource([path])
        for number in range(len(source)):
            record = source[number]
            assert record.picture is None or record.picture.read()
    finally:
        active.clear()
    assert not heard


def test_a_tar_that_was_cut_after_it_was_opened_is_told(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", [("1.txt", b"one"), ("1.png", png())])
    source = WebDatasetSource([path])
    path.write_bytes(path.read_bytes()[:600])
    record = source[0]
    assert record.problem is None and record.picture is not None
    with pytest.raises(OSError, match="the tar has become shorter"):
        record.picture.read()
    path.write_bytes(b"")
    assert source[0].problem == "bad caption: the tar has become shorter"


def test_tars_without_pictures_are_refused(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", [("1.txt", b"one")])
    with pytest.raises(InputError, match="a.tar has no pictures"):
        WebDatasetSource([path])
    path.write_bytes(b"x" * 700)
    with pytest.raises(InputError, match="has no pictures .* damaged: a header of the tar"):
        WebDatasetSource([path])
