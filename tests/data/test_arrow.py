"""What `save_to_disk` of Hugging Face's datasets wrote, read without that library."""

import io
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lineardit.data.arrow import ArrowRows
from lineardit.data.dataset import DatasetSource
from lineardit.data.labels import ClassRule
from lineardit.data.sources import open_source
from lineardit.data.tables import declared_features
from lineardit.errors import InputError, MissingExtraError

pyarrow = pytest.importorskip("pyarrow")

COLORS = ["red", "blue", "green", "white", "black"]
DEEP = "[" * 100_000
"""No JSON, and deeper than its reader goes."""
FEATURES = {
    "image": {"_type": "Image"},
    "text": {"dtype": "string", "_type": "Value"},
    "label": {"names": ["dark", "light"], "_type": "ClassLabel"},
}


def png(color: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), color).save(stream, "PNG")
    return stream.getvalue()


def write(path: Path, colors: list[str], kind: str = "new_stream") -> None:
    """An Arrow file with the notes of datasets in its schema."""
    rows = [{"image": {"bytes": png(each), "path": None}, "text": each, "label": 1} for each in colors]
    table = pyarrow.Table.from_pylist(rows)
    notes = {"huggingface": json.dumps({"info": {"features": FEATURES}})}
    table = table.replace_schema_metadata(notes)
    with pyarrow.OSFile(str(path), "wb") as file, getattr(pyarrow.ipc, kind)(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "saved"
    folder.mkdir()
    write(folder / "data-00000-of-00002.arrow", COLORS[:3])
    write(folder / "data-00001-of-00002.arrow", COLORS[3:])
    files = [{"filename": f"data-0000{number}-of-00002.arrow"} for number in range(2)]
    (folder / "state.json").write_text(json.dumps({"_data_files": files, "_fingerprint": "abc"}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def texts(source: Any) -> list[str]:
    return [source[number].captions[0].text for number in range(len(source))]


def test_a_saved_dataset_is_read_in_its_order(saved: Path) -> None:
    source = open_source([str(saved)], classes=ClassRule())
    assert texts(source) == COLORS
    assert isinstance(source, DatasetSource) and source.class_names == ("dark", "light")
    for number in (4, 0, 3, 2):
        record = source[number]
        assert record.label == "light" and record.key == f"saved:{number}" and record.picture is not None
        # Pictures are read in other processes.
        assert pickle.loads(pickle.dumps(record.picture)).read() == png(COLORS[number])
        assert record.picture.fingerprint.endswith(f":{number}")


def test_one_file_and_the_file_format_are_read_too(saved: Path, tmp_path: Path) -> None:
    assert texts(open_source([str(saved / "data-00001-of-00002.arrow")])) == COLORS[3:]
    write(tmp_path / "feather.arrow", COLORS, "new_file")
    assert texts(open_source([str(tmp_path / "feather.arrow")])) == COLORS


def test_a_dictionary_of_one_split_is_that_split(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["saved"]}')
    assert texts(open_source([str(tmp_path)])) == COLORS
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(InputError, match=r"holds 2 splits: train, test. Give one, as .*/train"):
        open_source([str(tmp_path)])
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["../../saved"]}')
    assert texts(open_source([str(tmp_path)])) == COLORS, "no split leads out of the folder"


def test_what_is_damaged_is_named(saved: Path) -> None:
    (saved / "data-00001-of-00002.arrow").write_bytes(b"no arrow")
    with pytest.raises(InputError, match=r"data-00001-of-00002.arrow is damaged, or no Arrow file"):
        open_source([str(saved)])
    (saved / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(InputError, match="No such file"):
        open_source([str(saved)])
    for content in ("{}", "nothing", '{"_data_files": [{"name": 1}]}', DEEP):
        (saved / "state.json").write_text(content)
        with pytest.raises(InputError, match=r"state.json is damaged"):
            open_source([str(saved)])


def test_splits_and_notes_that_are_damaged_are_no_foreign_error(saved: Path) -> None:
    (saved / "dataset_dict.json").write_text(DEEP)
    with pytest.raises(InputError, match=r"dataset_dict.json is damaged"):
        open_source([str(saved)])
    schema = pyarrow.schema([("image", pyarrow.binary())], metadata={"huggingface": DEEP})
    assert declared_features(schema) == {}


def test_without_pyarrow_the_extra_is_named(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lineardit.data.arrow.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"lineardit\[data\]"):
        ArrowRows([saved / "data-00000-of-00002.arrow"])
