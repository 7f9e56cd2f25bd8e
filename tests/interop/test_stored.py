"""Tensors stay in their files until they are asked for, and a network loads in its own size."""

import gc
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lineardit.config.models import TransformerConfig
from lineardit.errors import CheckpointError, InputError, OutputError
from lineardit.interop import official
from lineardit.interop.assembly import assemble_transformer
from lineardit.interop.export import export
from lineardit.interop.native import save_transformer
from lineardit.interop.places import open_place
from lineardit.interop.shards import find_weights, open_weights, write_file, write_weights
from lineardit.interop.stored import Stored, open_tensors, stored_of
from lineardit.transformer.model import Transformer


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(3, 5, generator=generator)
    return {
        "whole": draw,
        "half": draw.half(),
        "brain": draw.bfloat16(),
        "count": torch.arange(7),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
    }


def test_tensors_are_read_as_they_were_written(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "x.safetensors", metadata={"format": "pt"})
    lazy = open_tensors(tmp_path / "x.safetensors")
    assert lazy.stored["brain"] == Stored("BF16", (3, 5)) and lazy.stored["brain"].size_bytes == 30
    assert lazy.stored == stored_of(tensors())
    for name, tensor in tensors().items():
        assert torch.equal(lazy[name], tensor) and lazy[name].dtype == tensor.dtype
    with pytest.raises(KeyError):
        lazy["other"]


def test_reading_in_another_dtype_leaves_whole_numbers_alone(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "x.safetensors")
    lazy = open_tensors(tmp_path / "x.safetensors").to("bf16")
    assert {name: each.dtype for name, each in lazy.stored.items()} == {
        name: "I64" if name == "count" else "BF16" for name in tensors()
    }
    assert lazy["whole"].dtype == torch.bfloat16 and lazy["count"].dtype == torch.int64
    save_file({"large": torch.tensor([1.0, -7e4])}, tmp_path / "y.safetensors")
    with pytest.raises(InputError, match=r"large has a number of size 7e\+04, too large for fp16"):
        open_tensors(tmp_path / "y.safetensors").to("fp16")["large"]


def test_a_file_that_is_cut_after_it_was_opened_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.ones(100)}, path)
    lazy = open_tensors(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="is cut off"):
        lazy["x"]


def test_a_dtype_that_is_not_read_is_named(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1), "x": torch.ones(4).to(torch.float8_e4m3fn)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"stores x as F8_E4M3. Read are F64, F32"):
        open_tensors(tmp_path / "x.safetensors")["x"]


@pytest.mark.parametrize("largest", [10**9, 60, 1])
def test_weights_come_back_from_any_number_of_files(tmp_path: Path, largest: int) -> None:
    seen: list[str] = []
    files = write_weights(tmp_path, "model", tensors(), largest=largest, on_tensor=seen.append)
    assert len(files) == {10**9: 1, 60: 3, 1: 6}[largest] and seen == list(tensors())
    assert (tmp_path / "model.safetensors.index.json").exists() == (len(files) > 1)
    lazy = open_weights(tmp_path, "model")
    assert lazy.keys() == tensors().keys()
    assert all(torch.equal(lazy[name], tensor) for name, tensor in tensors().items())


def test_parts_of_one_tensor_can_be_written(tmp_path: Path) -> None:
    whole = torch.randn(6, 4)
    write_file(tmp_path / "x.safetensors", dict(zip("abc", whole.chunk(3), strict=True)))
    lazy = open_tensors(tmp_path / "x.safetensors")
    assert torch.equal(torch.cat([lazy[name] for name in "abc"]), whole)


def test_a_variant_is_taken_where_it_is_wanted_or_the_only_one(tmp_path: Path) -> None:
    for name in ("m.fp16", "m.bf16"):
        save_file({"x": torch.ones(1)}, tmp_path / f"{name}.safetensors")
    assert [path.name for path in find_weights(tmp_path, "m", "fp16")] == ["m.fp16.safetensors"]
    with pytest.raises(CheckpointError, match="holds no m.safetensors. There are the variants bf16, fp16"):
        find_weights(tmp_path, "m")
    (tmp_path / "m.bf16.safetensors").unlink()
    assert [path.name for path in find_weights(tmp_path, "m")] == ["m.fp16.safetensors"]
    save_file({"x": torch.ones(1)}, tmp_path / "m.safetensors")
    assert [path.name for path in find_weights(tmp_path, "m", "bf16")] == ["m.safetensors"]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("m.safetensors.index.json", "{", "is damaged, or is no index"),
        pytest.param("m.safetensors.index.json", "[" * 100_000, "is damaged, or is no index", id="deep"),
        (
            "m.safetensors.index.json",
            '{"weight_map": {"x": "../m.safetensors"}}',
            "is damaged, or is no index",
        ),
        ("m.safetensors.index.json", '{"weight_map": {"x": "m-1.safetensors"}}', "lacks 1 of 1 files"),
        ("m.bin", "", "holds no m.safetensors, only m.bin, a pickle, which could run code"),
        ("readme.txt", "", "holds no weights: there is no m.safetensors"),
    ],
)
def test_weights_that_are_not_all_there_get_one_line(
    tmp_path: Path, name: str, content: str, complaint: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=complaint) as caught:
        open_weights(tmp_path, "m")
    assert "\n" not in str(caught.value)


def test_two_files_with_the_same_tensor_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file({"x": torch.ones(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match="b.safetensors holds x, which another file"):
        open_tensors(tmp_path / "a.safetensors", tmp_path / "b.safetensors")


def test_a_place_that_cannot_be_written_gets_one_line(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        write_file(tmp_path / "gone" / "x.safetensors", tensors())


@pytest.mark.parametrize(
    ("format", "dtype"), [("diffusers", "fp32"), ("diffusers", "bf16"), ("official", "fp32")]
)
def test_loading_takes_less_than_a_fifth_more_than_the_weights(
    format: Any, dtype: str, tmp_path: Path, counting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted are tensors as torch makes them and what Python holds: no pages, allocators or threads."""
    config = TransformerConfig(depth=8, width=256, cross_head_dim=32, text_width=64)
    monkeypatch.setattr(official, "TRANSFORMERS", {"small": config})
    place = tmp_path / ("model.pth" if format == "official" else "model")
    with torch.random.fork_rng():
        save_transformer(tmp_path / "own", Transformer(config))
    export(open_place(tmp_path / "own"), place, format)
    with counting():
        assemble_transformer(open_place(place), dtype)  # what is imported and cached once
    gc.collect()
    tracemalloc.start()
    with counting() as counted:
        network = assemble_transformer(open_place(place), dtype)
    weights = sum(each.nbytes for each in network.parameters())
    beside = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert counted.live >= weights, "the instrument does not see what was loaded"
    assert (counted.peak + beside) / weights < 1.2
