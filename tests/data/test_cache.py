"""Computed once, kept, checked, and never mixed."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lineardit.data.cache import INDEX, ShardCache
from lineardit.errors import CheckpointError, OutputError

KEY = {"seed": 1, "sizes": (2, 3)}


class Maker:
    def __init__(self) -> None:
        self.made: list[int] = []

    def __call__(self, index: int) -> dict[str, Tensor]:
        self.made.append(index)
        return {
            "x": torch.full((2, 3), index, dtype=torch.bfloat16),
            "y": torch.arange(2)[:, None].expand(2, 2),
        }


def filled(folder: Path, count: int = 3) -> Maker:
    maker = Maker()
    ShardCache(folder, KEY).fill(count, maker)
    return maker


def test_shards_are_made_once_in_order_and_read_back(tmp_path: Path) -> None:
    assert filled(tmp_path / "pool").made == [0, 1, 2]
    assert filled(tmp_path / "pool").made == []
    loaded = ShardCache(tmp_path / "pool", KEY).load(3)
    assert loaded["x"].dtype == torch.bfloat16
    assert loaded["x"][:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert loaded["y"].tolist() == [[0, 0], [1, 1]] * 3


def test_a_pool_grows_and_fewer_can_be_read(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    assert filled(tmp_path, 3).made == [1, 2]
    assert len(ShardCache(tmp_path, KEY).load(2)["x"]) == 4


def test_an_interrupted_fill_goes_on_where_it_was(tmp_path: Path) -> None:
    def interrupted(index: int) -> dict[str, Tensor]:
        if index == 2:
            raise KeyboardInterrupt
        return Maker()(index)

    with pytest.raises(KeyboardInterrupt):
        ShardCache(tmp_path, KEY).fill(3, interrupted)
    assert filled(tmp_path).made == [2]


@pytest.mark.parametrize(
    ("key", "changed"),
    [
        ({"seed": 2, "sizes": [2, 3]}, "seed"),
        ({"seed": 1, "sizes": [2, 3], "words": 4}, "words"),
        ({"seed": 1}, "sizes"),
    ],
)
def test_a_folder_made_from_other_settings_is_refused(
    tmp_path: Path, key: dict[str, object], changed: str
) -> None:
    filled(tmp_path)
    with pytest.raises(OutputError, match=rf"computed from other settings \({changed}\). Remove it"):
        ShardCache(tmp_path, key)


def test_a_damaged_shard_is_named_and_made_again_once_removed(tmp_path: Path) -> None:
    filled(tmp_path)
    before = ShardCache(tmp_path, KEY).load(3)
    path = tmp_path / "shard-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="shard-00001.safetensors is damaged: .* Remove it"):
        ShardCache(tmp_path, KEY).load(3)
    path.unlink()
    with pytest.raises(CheckpointError, match="shard-00001.safetensors is missing"):
        ShardCache(tmp_path, KEY).load(3)
    assert filled(tmp_path).made == [1]
    after = ShardCache(tmp_path, KEY).load(3)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"key": 3, "shards": {}}', '{"key": {}}', pytest.param("[" * 100_000, id="deep")],
)
def test_a_damaged_index_is_named(tmp_path: Path, content: str) -> None:
    filled(tmp_path)
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(CheckpointError, match="index.json is damaged. Remove"):
        ShardCache(tmp_path, KEY)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file/pool cannot be written"):
        filled(tmp_path / "file" / "pool")


def test_nothing_unfinished_is_left_lying(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [INDEX, "shard-00000.safetensors", "shard-00001.safetensors"]
    assert set(json.loads((tmp_path / INDEX).read_text())["shards"]) == set(names[1:])
