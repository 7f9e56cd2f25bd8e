"""The library datasets itself: what it holds and what it writes is read, with captions and classes."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from lineardit.config.data import BucketConfig, CheckConfig
from lineardit.data.dataset import DatasetSource
from lineardit.data.labels import ClassRule
from lineardit.data.records import Source
from lineardit.data.sources import open_source
from lineardit.data.survey import survey

datasets = pytest.importorskip("datasets", reason="needs pip install 'lineardit[data]'")

COLORS = ("red", "blue", "green", "white")


@pytest.fixture
def dataset(tmp_path: Path) -> "datasets.Dataset":
    """An imagefolder with a metadata.jsonl, one folder per class, read by the library."""
    for number, color in enumerate(COLORS):
        folder = tmp_path / "pictures" / ("dark" if number < 2 else "light")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), color).save(folder / f"{color}.png")
    loaded = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path / "pictures"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded.features["label"].names == ["dark", "light"]
    return loaded.add_column("text", [f"picture {number}" for number in range(4)])


def saved(dataset: "datasets.Dataset", place: Path) -> str:
    dataset.save_to_disk(str(place))
    return str(place)


def parquet(dataset: "datasets.Dataset", place: Path) -> str:
    """With the pictures in it, as push_to_hub writes it."""
    place.mkdir()
    whole = dataset.with_format("arrow").map(datasets.table.embed_table_storage, batched=True)
    whole.with_format(None).to_parquet(str(place / "train.parquet"))
    return str(place)


def check(source: Source) -> None:
    found = survey(source, BucketConfig(sizes=(8,), step=8), CheckConfig(classes=True))
    assert not found.problems and found.classes() == {"dark": 2, "light": 2}
    assert [entry.captions[0].text for entry in found.entries] == [f"picture {number}" for number in range(4)]
    assert len({entry.sha256 for entry in found.entries}) == 4


@pytest.mark.parametrize("write", [saved, parquet])
def test_what_the_library_writes_is_read(
    dataset: "datasets.Dataset", write: Callable[["datasets.Dataset", Path], str], tmp_path: Path
) -> None:
    check(open_source([write(dataset, tmp_path / "written")], classes=ClassRule()))


def test_a_parquet_file_of_paths_alone_is_told_apart(dataset: "datasets.Dataset", tmp_path: Path) -> None:
    dataset.to_parquet(str(tmp_path / "paths.parquet"))
    source = open_source([str(tmp_path / "paths.parquet")])
    found = survey(source, BucketConfig(sizes=(8,), step=8), CheckConfig())
    reasons = {problem.reason for problem in found.problems}
    assert reasons == {
        "unreadable: it is only a path, which is not followed; write the dataset with save_to_disk, which "
        "puts the pictures in, or give their folder"
    }


def test_a_dataset_in_memory_is_read(dataset: "datasets.Dataset") -> None:
    source = DatasetSource(dataset, classes=ClassRule())
    check(source)
    assert source[0].picture is not None
    assert source[0].picture.fingerprint == f"{dataset._fingerprint}:0"


def test_a_saved_dictionary_of_one_split_is_read(dataset: "datasets.Dataset", tmp_path: Path) -> None:
    datasets.DatasetDict({"train": dataset}).save_to_disk(str(tmp_path / "written"))
    check(open_source([str(tmp_path / "written")], classes=ClassRule()))


def test_the_folder_that_it_was_made_of_gives_the_same_classes(
    dataset: "datasets.Dataset", tmp_path: Path
) -> None:
    source = open_source([str(tmp_path / "pictures")], classes=ClassRule())
    found = survey(source, BucketConfig(sizes=(8,), step=8), CheckConfig(classes=True))
    assert list(found.classes()) == dataset.features["label"].names
