"""Rows that hold pictures: as a datasets.Dataset has them, in parquet, drawn, of several sources at once."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lineardit.config.data import BucketConfig, CheckConfig
from lineardit.data.dataset import DatasetSource, ParquetRows
from lineardit.data.emoji_atlas import Atlas
from lineardit.data.images import decode
from lineardit.data.sources import open_source
from lineardit.data.survey import survey
from lineardit.errors import InputError


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


RED = Image.new("RGB", (6, 4), "red")


@pytest.mark.parametrize("mode", ["I;16", "I"])
def test_rows_of_sixteen_bits_keep_their_shades(mode: str) -> None:
    picture = DatasetSource([{"image": Image.new(mode, (6, 4), 100 << 8), "text": "grey"}])[0].picture
    assert picture is not None
    assert decode(picture.read(), 1000).getpixel((1, 1)) == (100, 100, 100)


def test_rows_give_pictures_and_captions() -> None:
    rows: list[dict[str, Any]] = [
        {"image": RED, "text": "red"},
        {"image": {"bytes": png(RED), "path": None}, "text": ["red", "crimson"]},
        {"image": png(RED), "text": None},
        {"image": RED.convert("CMYK"), "text": 3},
        {"image": "/etc/passwd", "text": "a path"},
        {"image": None, "text": "nothing"},
    ]
    source = DatasetSource(rows)
    found = [source[number] for number in range(len(source))]
    assert [record.key for record in found] == [f"row:{number}" for number in range(6)]
    assert [len(record.captions) for record in found] == [1, 2, 0, 0, 1, 1]
    assert found[3].problem == "bad caption: a caption is a text or a list of texts, not 3"
    for record in found[:4]:
        assert record.picture is not None
        image = Image.open(io.BytesIO(record.picture.read()))
        assert image.convert("RGB").getpixel((1, 1))[0] > 250  # type: ignore[index]
        assert len(record.picture.fingerprint) == 64
    for record, reason in ((found[4], "only a path"), (found[5], "NoneType is no picture")):
        assert record.picture is not None
        with pytest.raises(OSError, match=reason):
            record.picture.read()


def test_the_fingerprint_of_a_dataset_spares_reading_its_pictures() -> None:
    class Rows(list):  # type: ignore[type-arg]
        _fingerprint = "abc"

    source = DatasetSource(Rows([{"jpg": None, "prompt": "x"}]))
    assert source[0].picture is not None and source[0].picture.fingerprint == "abc:0"


def test_a_row_that_cannot_be_read_is_told() -> None:
    class Broken(list):  # type: ignore[type-arg]
        def __getitem__(self, number: Any) -> Any:
            if number == 1:
                raise RuntimeError("broken shard")
            return super().__getitem__(number)

    source = DatasetSource(Broken([{"image": RED, "text": "a"}] * 2))
    assert source[0].problem is None
    assert source[1].problem == "unreadable: the dataset gives no row 1 (RuntimeError)"


@pytest.mark.parametrize(
    ("rows", "picture", "message"),
    [
        ([], None, "no rows"),
        ([{"text": "a"}], None, "no column image or jpg or .*; it has text"),
        ([{"image": RED}], "photo", "no column photo; it has image"),
    ],
)
def test_a_dataset_without_pictures_is_refused(rows: list[Any], picture: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        DatasetSource(rows, picture=picture)


def test_parquet_files_are_read_group_by_group(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    colors = ["red", "blue", "green", "white", "black"]
    rows = [
        {"image": {"bytes": png(Image.new("RGB", (4, 4), color)), "path": "x.png"}, "text": color}
        for color in colors
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows[:3]), tmp_path / "a.parquet", row_group_size=2)
    parquet.write_table(pyarrow.Table.from_pylist(rows[3:]), tmp_path / "b.parquet")
    source = open_source([str(tmp_path)])
    assert len(source) == 5
    for number in (4, 0, 2, 1, 3):
        record = source[number]
        assert record.captions[0].text == colors[number] and record.picture is not None
        assert record.picture.read() == rows[number]["image"]["bytes"]  # type: ignore[index]
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="b.parquet is damaged, or no parquet"):
        ParquetRows([tmp_path / "b.parquet"])


def test_a_row_without_the_column_of_pictures_is_left_out_and_told(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    content = png(Image.new("RGB", (8, 8), "red"))
    for name, column in (("a", "image"), ("b", "jpg")):
        rows = [{column: content, "text": name}]
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    found = survey(open_source([str(tmp_path)]), BucketConfig(sizes=(8,), step=8), CheckConfig())
    assert [entry.captions[0].text for entry in found.entries] == ["a"]
    assert [problem.reason for problem in found.problems] == ["unreadable: there is no image, only jpg, text"]


def test_a_dataset_whose_first_row_cannot_be_read_is_refused(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([{"image": png(RED), "text": "red"}]), path)
    content = path.read_bytes()
    footer = 8 + int.from_bytes(content[-8:-4], "little")
    path.write_bytes(content[:4] + b"\xff" * (len(content) - 4 - footer) + content[-footer:])
    message = r"the first row of the dataset, .* a.parquet is damaged \(.*\)\. Restore its file"
    for place in (path, tmp_path):
        with pytest.raises(InputError, match=message):
            open_source([str(place)])


def test_drawn_scenes_are_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    def from_font(names: tuple[str, ...], path: Path | None = None) -> Atlas:
        return Atlas(names, torch.full((len(names), 4, 8, 8), 255, dtype=torch.uint8))

    from lineardit.data import emoji_source

    monkeypatch.setattr(Atlas, "from_font", from_font)
    emoji_source._scenes.cache_clear()
    source = open_source(["emoji:3"])
    assert len(source) == 3 and source[2].key == "scene-2" and len(source[2].captions) == 4
    picture = source[1].picture
    assert picture is not None and Image.open(io.BytesIO(picture.read())).size == (128, 128)
    assert source[0].picture.fingerprint != picture.fingerprint  # type: ignore[union-attr]
    with pytest.raises(InputError, match="no scene to draw"):
        open_source(["emoji:0"])
    emoji_source._scenes.cache_clear()


def test_several_sources_follow_each_other(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        RED.save(tmp_path / name / "x.png")
    source = open_source([str(tmp_path / "a"), str(tmp_path / "b")])
    assert [source[number].key for number in range(len(source))] == ["a/x.png", "b/x.png"]
    with pytest.raises(IndexError):
        source[2]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone", "gone does not exist"),
        ("x.zip", "is compressed. Unpack it"),
        ("x.tar.gz", "is compressed. Unpack it"),
        ("x.txt", "is no folder, .tar, .parquet or .arrow file"),
    ],
)
def test_a_place_that_is_no_source_is_refused(tmp_path: Path, name: str, message: str) -> None:
    if name != "gone":
        (tmp_path / name).write_text("x")
    with pytest.raises(InputError, match=message):
        open_source([str(tmp_path / name)])
    with pytest.raises(InputError, match="no source was given"):
        open_source([])
