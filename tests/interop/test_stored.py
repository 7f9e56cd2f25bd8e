"""Tensors stay in their files until they are asked for, and a network loads in its own size."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lineardit.errors import CheckpointError, InputError, OutputError
from lineardit.interop.shards import find_weights, open_weights, write_file, write_weights
from lineardit.interop.stored import Stored, open_tensors, stored_of


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


MEASURE = """
import sys
from pathlib import Path
from lineardit.interop.places import assemble_transformer, open_place

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
network = assemble_transformer(open_place(sys.argv[1]), "fp32")
print((status("VmHWM") - before) / sum(each.nbytes for each in network.parameters()))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures with Linux's /proc")
def test_loading_takes_less_than_a_fifth_more_than_the_weights(tmp_path: Path) -> None:
    from lineardit.config.models import TransformerConfig
    from lineardit.interop.diffusers import transformer_renaming
    from lineardit.interop.diffusers_config import transformer_config_to_diffusers
    from lineardit.interop.export import _write_json

    config = TransformerConfig(depth=6, width=384, cross_head_dim=48)
    shapes = transformer_renaming(config).foreign_shapes
    write_weights(
        tmp_path, "diffusion_pytorch_model", {name: torch.zeros(shape) for name, shape in shapes.items()}
    )
    _write_json(tmp_path / "config.json", transformer_config_to_diffusers(config))
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert 0.9 < float(result.stdout) < 1.2
