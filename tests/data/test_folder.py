"""Folders of pictures: captions beside them and in tables, and what is wrong with either."""

import json
import random
from pathlib import Path

import pytest
from PIL import Image

from lineardit.data import tables
from lineardit.data.folder import FolderSource
from lineardit.data.records import Record
from lineardit.errors import InputError, MissingExtraError

pyarrow_parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.JPG", "inner/c.webp", ".hidden/d.png", ".e.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(path, path.suffix[1:].replace("JPG", "jpeg"))
    (tmp_path / "readme.md").write_text("no picture")
    return tmp_path


def records(source: FolderSource) -> dict[str, Record]:
    return {record.key: record for record in (source[number] for number in range(len(source)))}


def texts(source: FolderSource) -> dict[str, list[str] | str | None]:
    return {
        key: record.problem or [caption.text for caption in record.captions]
        for key, record in records(source).items()
    }


def table(folder: Path, kind: str, rows: list[dict[str, object]]) -> None:
    path = folder / f"metadata.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    elif kind == "csv":
        names = list(rows[0])
        lines = [",".join(names), *(",".join(f'"{row[name]}"' for name in names) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    else:
        import pyarrow

        pyarrow_parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def test_captions_stand_beside_their_pictures(folder: Path) -> None:
    (folder / "a.txt").write_text("a cat\na tom\n")
    (folder / "b.json").write_text('{"captions": ["x", "y"], "weights": [1, 3]}')
    (folder / "inner" / "c.caption").write_text("deep")
    source = FolderSource(folder)
    assert texts(source) == {"a.png": ["a cat", "a tom"], "b.JPG": ["x", "y"], "inner/c.webp": ["deep"]}
    assert [caption.weight for caption in source[1].captions] == [1, 3]
    picture = source[0].picture
    assert picture is not None and picture.read() == (folder / "a.png").read_bytes()
    before = picture.fingerprint
    (folder / "a.png").write_bytes(b"other")
    assert picture.fingerprint != before


def test_bad_captions_and_unread_formats_are_told(folder: Path) -> None:
    (folder / "a.json").write_text("{")
    (folder / "z.gif").write_bytes(b"GIF89a")
    found = texts(FolderSource(folder))
    assert found["a.png"] == "bad caption: a.json is no JSON"
    assert found["b.JPG"] == []
    assert found["z.gif"] == "unread format: .gif is not PNG, JPEG or WebP"


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_tables_name_pictures_and_their_captions(folder: Path, kind: str) -> None:
    (folder / "b.txt").write_text("beside")
    rows = [
        {"file_name": "a.png", "text": "a cat", "short": "cat"},
        {"file_name": "./inner/c.webp", "text": "deep", "short": "c"},
        {"file_name": "gone.png", "text": "x", "short": "x"},
        {"file_name": "../a.png", "text": "x", "short": "x"},
        {"file_name": "/etc/a.png", "text": "x", "short": "x"},
        {"file_name": "a.png", "text": "again", "short": "again"},
        {"file_name": "", "text": "none", "short": "none"},
    ]
    table(folder, kind, rows)
    found = texts(FolderSource(folder))
    assert {key: found.pop(key) for key in ("a.png", "b.JPG", "inner/c.webp")} == {
        "a.png": ["a cat"],
        "b.JPG": ["beside"],
        "inner/c.webp": ["deep"],
    }
    assert found == {
        f"metadata.{kind}:3": "missing: there is no gone.png",
        f"metadata.{kind}:4": "unsafe name: '../a.png' leads out of the folder",
        f"metadata.{kind}:5": "unsafe name: '/etc/a.png' leads out of the folder",
        f"metadata.{kind}:6": "second row: a.png has one already",
        f"metadata.{kind}:7": "bad row: there is no file_name in it",
    }
    (folder / "b.txt").unlink()
    asked = records(FolderSource(folder, {"short": 0.5, "text": 2.0}))
    assert asked["a.png"].captions == (("cat", 0.5), ("a cat", 2.0))


@pytest.mark.parametrize(
    ("column", "cells", "complaint"),
    [
        ("weight", ["0.5", " ", "much"], "a weight is a number, not 'much'"),
        ("weight", ["0.5", "", "-1"], "a weight lies between 0 and 1e9, not at -1.0"),
        ("weight", ["5e-1", "1", "0"], "the weights of all captions are 0"),
        ("weights", ["0.5", "", "1;2"], "the weights '1;2' do not fit 1 captions"),
    ],
)
def test_weights_in_csv_are_numbers(folder: Path, column: str, cells: list[str], complaint: str) -> None:
    names = ("a.png", "b.JPG", "inner/c.webp")
    pairs = zip(names, cells, strict=True)
    rows: list[dict[str, object]] = [
        {"file_name": name, "text": "a cat", column: cell} for name, cell in pairs
    ]
    table(folder, "csv", rows)
    found = records(FolderSource(folder))
    assert found["a.png"].captions == (("a cat", 0.5),)
    assert found["b.JPG"].captions == (("a cat", 1.0),)
    assert found["inner/c.webp"].problem == f"bad caption: metadata.csv:3: {complaint}"


def test_a_table_in_a_folder_below_names_what_is_there(folder: Path) -> None:
    table(folder / "inner", "jsonl", [{"file_name": "c.webp", "captions": ["x", "y"], "weights": [2, 1]}])
    assert records(FolderSource(folder))["inner/c.webp"].captions == (("x", 2.0), ("y", 1.0))


def test_rows_that_are_none_are_told_and_the_others_kept(folder: Path) -> None:
    (folder / "metadata.jsonl").write_bytes(
        b'{"file_name": "a.png", "text": "a"}\nno\n[1]\n\n{"file_name": "b.JPG", "text": 3}\n\xff\xfe\n'
    )
    found = texts(FolderSource(folder))
    assert found["a.png"] == ["a"]
    assert found["b.JPG"] == "bad caption: metadata.jsonl:5: a caption is a text or a list of texts, not 3"
    assert found["metadata.jsonl:2"] == "bad row: it is no JSON"
    assert found["metadata.jsonl:3"] == "bad row: it is no JSON object"
    assert found["metadata.jsonl:6"] == "bad row: it is no JSON"


def test_a_table_without_names_of_files_is_refused(folder: Path) -> None:
    table(folder, "csv", [{"name": "a.png", "text": "a"}])
    with pytest.raises(InputError, match="metadata.csv has no column file_name, .* it has name, text"):
        FolderSource(folder)


def test_a_damaged_parquet_is_refused(folder: Path) -> None:
    (folder / "metadata.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(InputError, match="metadata.parquet is damaged, or no parquet"):
        FolderSource(folder)


def test_without_pyarrow_the_line_that_installs_it_is_given(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(folder, "parquet", [{"file_name": "a.png", "text": "a"}])
    monkeypatch.setattr(tables, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"metadata.parquet needs .* pip install 'lineardit\[data\]'"):
        FolderSource(folder)


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no pictures"):
        FolderSource(tmp_path)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_mutated_tables_raise_nothing_foreign(folder: Path, kind: str) -> None:
    draw = random.Random(0)
    rows: list[dict[str, object]] = [{"file_name": "a.png", "text": "ü"}, {"file_name": "b.JPG", "text": "b"}]
    table(folder, kind, rows)
    path = folder / f"metadata.{kind}"
    original = path.read_bytes()
    for number in range(150):
        data = bytearray(original)
        for _ in range(draw.choice([1, 3, 20])):
            data[draw.randrange(len(data))] = draw.choice([0, 10, 34, 44, 92, 123, draw.randrange(256)])
        path.write_bytes(data[: draw.randrange(len(data))] if number % 4 == 0 else data)
        try:
            found = records(FolderSource(folder))
        except InputError:
            continue
        assert {"a.png", "b.JPG"} <= set(found)
        json.dumps({key: record.problem for key, record in found.items()}, ensure_ascii=False).encode()
