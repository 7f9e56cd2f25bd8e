"""Classes of pictures: in rows, tables, files, folders and numbers that a dataset has names for."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lineardit.config.data import BucketConfig, CheckConfig
from lineardit.data.dataset import DatasetSource
from lineardit.data.emoji_atlas import Atlas
from lineardit.data.folder import FolderSource
from lineardit.data.labels import LONGEST, BadLabel, ClassRule, label_from, label_of_row, ordered
from lineardit.data.records import Source
from lineardit.data.sources import open_source
from lineardit.data.survey import survey
from lineardit.data.webdataset import WebDatasetSource

RED = Image.new("RGB", (8, 8), "red")


def labels(source: Source) -> list[str | None]:
    return [source[number].label for number in range(len(source))]


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    RED.save(path)
    return path


def test_a_class_is_a_name_or_a_number() -> None:
    assert label_from(" dog ") == "dog" and label_from(7) == "7"
    assert label_from(1, ["cat", "dog"]) == "dog"
    for nothing in (None, "", "  ", float("nan")):
        assert label_from(nothing) is None
    assert label_from(-1, ["cat"]) is None and label_from(-1) == "-1"
    assert label_of_row({"label": "dog", "class": "cat"}, ("class", "label")) == "cat"
    assert label_of_row({"text": "a dog"}, ("class", "label")) is None


@pytest.mark.parametrize(
    ("value", "names", "message"),
    [
        (2, ["cat", "dog"], "2 is none of the 2 classes"),
        (True, None, "a name or a whole number, not True"),
        (1.5, None, "a name or a whole number, not 1.5"),
        (["dog"], None, "a name or a whole number, not"),
        ("x" * (LONGEST + 1), None, f"at most {LONGEST} characters"),
        ("a\x1b[31mb", None, "a name of at most"),
    ],
)
def test_what_is_no_class_is_refused(value: object, names: list[str] | None, message: str) -> None:
    with pytest.raises(BadLabel, match=message):
        label_from(value, names)


def test_declared_classes_come_first_then_numbers_by_size_then_names() -> None:
    assert ordered({"10", "9", "ant", "cat", "dog"}, ["dog", "cat"]) == ("dog", "cat", "9", "10", "ant")
    assert ordered(["b", "a", "b"]) == ("a", "b")


def test_folders_tables_and_files_tell_the_class(tmp_path: Path) -> None:
    picture(tmp_path / "dog" / "0.png")
    picture(tmp_path / "inner" / "cat" / "0.png")
    picture(tmp_path / "one.png")
    picture(tmp_path / "sea" / "0.png").with_suffix(".json").write_text('{"label": "boat", "text": "a boat"}')
    picture(tmp_path / "sea" / "1.png")
    picture(tmp_path / "sea" / "2.png")
    rows = [{"file_name": "1.png", "class": 3}, {"file_name": "2.png", "class": [1]}]
    (tmp_path / "sea" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert labels(FolderSource(tmp_path)) == [None] * 6
    source = FolderSource(tmp_path, classes=ClassRule())
    assert labels(source) == ["dog", "cat", None, "boat", "3", None]
    assert source[5].problem == "bad class: metadata.jsonl:2: a class is a name or a whole number, not [1]"
    assert source[3].captions[0].text == "a boat"
    only = FolderSource(tmp_path, classes=ClassRule(("class",), folders=False))
    assert labels(only) == [None, None, None, None, "3", None]


def test_tars_have_classes_in_cls_or_json(tmp_path: Path) -> None:
    stream = io.BytesIO()
    RED.save(stream, "PNG")
    files = [
        ("0.png", stream.getvalue()),
        ("0.cls", b"17\n"),
        ("1.png", stream.getvalue()),
        ("1.json", b'{"caption": "red", "label": "colour"}'),
        ("2.png", stream.getvalue()),
    ]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    assert labels(WebDatasetSource([tmp_path / "a.tar"], classes=ClassRule())) == ["17", "colour", None]
    assert labels(WebDatasetSource([tmp_path / "a.tar"])) == [None, None, None]
    other = WebDatasetSource([tmp_path / "a.tar"], classes=ClassRule(("label",), folders=False))
    assert labels(other) == [None, "colour", None]


class Named(list[dict[str, Any]]):
    """Rows with the names behind their numbers, as a datasets.Dataset has them."""

    class ClassLabel:
        names = ("cat", "dog", "owl")

    features = {"label": ClassLabel, "image": None}  # noqa: RUF012


def test_numbers_of_a_dataset_get_their_names() -> None:
    rows = Named({"image": RED, "label": number} for number in (2, 0, -1, 5))
    source = DatasetSource(rows, classes=ClassRule())
    assert labels(source) == ["owl", "cat", None, None]
    assert source[3].problem == "bad class: 5 is none of the 3 classes"
    assert source.class_names == ("cat", "dog", "owl") and DatasetSource(rows).class_names == ()


def test_pictures_with_a_class_need_no_caption_and_those_without_are_left_out(tmp_path: Path) -> None:
    rows = Named({"image": RED, "label": number} for number in (2, 0, -1, 2))
    source = DatasetSource(rows, classes=ClassRule())
    buckets = BucketConfig(sizes=(8,), step=8)
    found = survey(source, buckets, CheckConfig(classes=True))
    assert [entry.label for entry in found.entries] == ["owl", "cat", "owl"]
    assert [entry.captions[0].text for entry in found.entries] == ["owl", "cat", "owl"]
    assert found.classes() == {"cat": 1, "dog": 0, "owl": 2} == found.report()["classes"]
    assert list(found.classes()) == ["cat", "dog", "owl"]
    assert [problem.reason for problem in found.problems] == ["no class"]
    plain = survey(source, buckets, CheckConfig(caption="a thing"))
    assert len(plain.entries) == 4 and not plain.classes() and "classes" not in plain.report()
    assert {entry.label for entry in plain.entries} == {None}


def test_a_scene_of_one_object_is_of_its_class(atlas: Atlas, monkeypatch: pytest.MonkeyPatch) -> None:
    def from_font(names: tuple[str, ...], path: Path | None = None) -> Atlas:
        return Atlas(names, atlas.pictures[: len(names)])

    monkeypatch.setattr(Atlas, "from_font", from_font)
    source = open_source(["emoji:20"], classes=ClassRule())
    for number, label in enumerate(labels(source)):
        texts = [caption.text for caption in source[number].captions]
        assert label is None or any(label in text for text in texts), (label, texts)
    assert 0 < labels(source).count(None) < 20
