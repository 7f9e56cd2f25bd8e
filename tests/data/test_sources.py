"""What a folder is read as: pictures, tars or tables of pictures, and never one that hides another."""

import io
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from lineardit.data import tables
from lineardit.data.folder import FolderSource
from lineardit.data.sources import open_source
from lineardit.data.webdataset import WebDatasetSource
from lineardit.errors import InputError, MissingExtraError


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(stream, "PNG")
    return stream.getvalue()


def write(path: Path) -> Path:
    """A file of the kind that its name says: `captions.parquet` holds no pictures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tar":
        with tarfile.open(path, "w") as file:
            info = tarfile.TarInfo("0.png")
            info.size = len(png())
            file.addfile(info, io.BytesIO(png()))
    elif path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        rows = [{"url": "x", "caption": "a"}] if path.stem == "captions" else [{"image": png(), "text": "a"}]
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_bytes(png())
    return path


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["0.png", "1.png", "extra.tar"], "holds 0.png beside extra.tar, .* Give .*/extra.tar itself, or"),
        (["a/0.jpg", "0.tar", "1.tar"], "holds a/0.jpg beside 0.tar, .*/0.tar and the 1 like it themselves"),
        (["0.png", "a/rows.parquet"], "holds 0.png beside a/rows.parquet, .* Give .*/a/rows.parquet itself"),
        (["0.tar", "rows.parquet"], "holds 0.tar beside rows.parquet, .* Give .*/rows.parquet itself"),
    ],
)
def test_a_folder_of_two_kinds_is_refused(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        write(tmp_path / name)
    with pytest.raises(InputError, match=message):
        open_source([str(tmp_path)])


@pytest.mark.parametrize("beside", ["0.tar", "0.png"])
def test_a_parquet_file_that_only_names_pictures_or_is_cut_off_hides_nothing(
    tmp_path: Path, beside: str
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    write(tmp_path / beside)
    parquet.write_table(pyarrow.Table.from_pylist([{"image": "0.png"}]), tmp_path / "index.parquet")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    found = open_source([str(tmp_path)])
    assert isinstance(found, WebDatasetSource if beside.endswith("tar") else FolderSource)
    (tmp_path / beside).unlink()
    with pytest.raises(InputError, match="cut.parquet is damaged, or no parquet"):
        open_source([str(tmp_path)])
    (tmp_path / "cut.parquet").unlink()
    source = open_source([str(tmp_path)])
    record = source[0]
    assert len(source) == 1
    assert record.picture is not None
    with pytest.raises(OSError, match="it is only a path, which is not followed"):
        record.picture.read()


def test_parquet_files_without_pictures_hide_no_pictures_and_no_tars(tmp_path: Path) -> None:
    write(tmp_path / "pictures" / "00000" / "0.jpg")
    write(tmp_path / "pictures" / "captions.parquet")
    source = open_source([str(tmp_path / "pictures")])
    assert isinstance(source, FolderSource) and source[0].key == "00000/0.jpg"
    write(tmp_path / "tars" / "0.tar")
    write(tmp_path / "tars" / "captions.parquet")
    assert isinstance(open_source([str(tmp_path / "tars")]), WebDatasetSource)


def test_hidden_files_hide_nothing(tmp_path: Path) -> None:
    for name in ("0.png", ".cache/rows.parquet", ".extra.tar"):
        write(tmp_path / name)
    assert isinstance(open_source([str(tmp_path)]), FolderSource)


def test_pictures_and_tars_beside_parquet_files_need_no_pyarrow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, name in (("pictures", "0.png"), ("tars", "0.tar")):
        write(tmp_path / folder / name)
        write(tmp_path / folder / "captions.parquet")
    table = write(tmp_path / "tables" / "rows.parquet")
    monkeypatch.setattr(tables, "find_spec", lambda name: None)
    assert isinstance(open_source([str(tmp_path / "pictures")]), FolderSource)
    assert isinstance(open_source([str(tmp_path / "tars")]), WebDatasetSource)
    with pytest.raises(MissingExtraError, match=r"rows.parquet needs .* pip install 'lineardit\[data\]'"):
        open_source([str(table.parent)])


def test_where_there_are_no_pictures_the_columns_that_there_are_are_named(tmp_path: Path) -> None:
    write(tmp_path / "captions.parquet")
    with pytest.raises(InputError, match="no column image or jpg .*; it has url, caption"):
        open_source([str(tmp_path)])


def test_a_table_without_pictures_among_others_is_told(tmp_path: Path) -> None:
    write(tmp_path / "captions.parquet")
    write(tmp_path / "rows.parquet")
    source = open_source([str(tmp_path)])
    first, second = (source[number] for number in range(len(source)))
    assert first.problem is None and first.picture is not None and first.picture.read() == png()
    assert second.key.endswith("/captions.parquet")
    assert second.problem == (
        "no pictures: there is no column image or jpg or png or webp or picture, only url, caption"
    )
