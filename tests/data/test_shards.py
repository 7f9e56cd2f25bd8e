"""Shards: whole or not there, checked when they are opened, read row by row."""

from pathlib import Path

import pytest
import torch

from lineardit.data import shards
from lineardit.data.shards import Shards, sha256_of, shard_name, write_json, write_shard
from lineardit.errors import CheckpointError, OutputError

ROWS = torch.arange(24.0).reshape(6, 4)


def test_rows_tensors_and_facts_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / shard_name(3)
    digest = write_shard(path, {"x": ROWS.T.contiguous().T, "y": ROWS.bfloat16()}, {"about": "ü"})
    assert digest == sha256_of(path) and path.name == "shard-00003.safetensors"
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    found = Shards("Make it again.")
    assert torch.equal(found.rows(path, digest, "x", 2, 4), ROWS[2:4])
    assert torch.equal(found.tensor(path, digest, "y"), ROWS.bfloat16())
    assert found.facts(path, digest) == {"about": "ü"} and found.names(path, digest) == ["x", "y"]


def test_every_damaged_byte_is_found_and_the_shard_named(tmp_path: Path) -> None:
    path = tmp_path / shard_name(0)
    digest = write_shard(path, {"x": ROWS})
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        content = bytearray(whole)
        content[place] ^= 4
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"shard-00000.safetensors is damaged: .* Make it again\."):
            Shards("Make it again.").rows(path, digest, "x", 0, 1)
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot be read .* Make it again"):
        Shards("Make it again.").tensor(path, digest, "x")
    path.write_bytes(b"no shard at all")
    with pytest.raises(CheckpointError, match="is no safetensors file"):
        Shards("").tensor(path, sha256_of(path), "x")


def test_a_shard_is_checked_once_and_few_are_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "OPEN_FILES", 2)
    paths = [tmp_path / shard_name(number) for number in range(4)]
    digests = [write_shard(path, {"x": ROWS + number}) for number, path in enumerate(paths)]
    checked: list[Path] = []

    def counted(path: Path) -> str:
        checked.append(path)
        return sha256_of(path)

    monkeypatch.setattr(shards, "sha256_of", counted)
    found = Shards("")
    for _ in range(2):
        for number, (path, digest) in enumerate(zip(paths, digests, strict=True)):
            assert torch.equal(found.rows(path, digest, "x", 1, 2), ROWS[1:2] + number)
    assert checked == paths and len(found._open) == 2


def test_what_cannot_be_written_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / shard_name(0)
    digest = write_shard(path, {"x": ROWS})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards, "save_file", full)
    with pytest.raises(OutputError, match="cannot be written: .*No space left"):
        write_shard(path, {"x": ROWS + 1})
    assert sha256_of(path) == digest and [each.name for each in tmp_path.iterdir()] == [path.name]
    with pytest.raises(OutputError, match="cannot be written"):
        write_json(path / "index.json", {})
