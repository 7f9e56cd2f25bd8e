"""Our model folders come back exactly, and everything else is refused in one line that says why."""

import json
import os
import resource
import struct
from pathlib import Path

import pytest
import torch
from torch import nn

from lineardit.autoencoder.model import Autoencoder
from lineardit.config.models import AutoencoderConfig, SceneTextConfig, StageConfig, TransformerConfig
from lineardit.config.presets import AUTOENCODERS
from lineardit.errors import CheckpointError, InputError, OutputError
from lineardit.interop.native import (
    Component,
    check_files,
    describe_model,
    load_autoencoder,
    load_strict,
    load_transformer,
    read_model,
    read_tensors,
    save_autoencoder,
    save_model,
    save_transformer,
    write_tensors,
)
from lineardit.interop.stored import read_header
from lineardit.transformer.model import Transformer

TEXT = SceneTextConfig(vocabulary=101, width=64, depth=2)


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"weight": torch.randn(3, 5, generator=generator), "order": torch.arange(7)}


def components(seed: int = 0) -> dict[str, Component]:
    return {
        "transformer": Component(
            "Transformer", TransformerConfig(depth=2, width=64, cross_head_dim=32), tensors(seed)
        ),
        "autoencoder": Component("Autoencoder", AUTOENCODERS["dc-ae-f32c32-sana-1.0"], tensors(seed + 1)),
    }


def save(folder: Path, seed: int = 0) -> Path:
    save_model(
        folder,
        components(seed),
        about={"steps": 7},
        extra_files={"vocabulary.txt": b"a\nb\n", "README.md": b"card"},
    )
    return folder


def test_a_model_comes_back_exactly(tmp_path: Path) -> None:
    model = read_model(save(tmp_path / "model"))
    assert model.about == {"steps": 7}
    assert model.components.keys() == components().keys()
    for name, wanted in components().items():
        found = model.components[name]
        assert (found.class_name, found.config) == (wanted.class_name, wanted.config)
        assert found.tensors.keys() == wanted.tensors.keys()
        for key, tensor in wanted.tensors.items():
            assert torch.equal(found.tensors[key], tensor) and found.tensors[key].dtype == tensor.dtype
    assert (model.folder / "vocabulary.txt").read_bytes() == b"a\nb\n"


@pytest.mark.parametrize(("dtype", "torch_dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_only_floating_point_tensors_are_converted(
    tmp_path: Path, dtype: str, torch_dtype: torch.dtype
) -> None:
    save_model(
        tmp_path / "model", {"text_encoder": Component("SceneTextEncoder", TEXT, tensors())}, dtype=dtype
    )
    found = read_model(tmp_path / "model").components["text_encoder"].tensors
    assert (
        torch.equal(found["weight"], tensors()["weight"].to(torch_dtype))
        and found["weight"].dtype == torch_dtype
    )
    assert torch.equal(found["order"], torch.arange(7)) and found["order"].dtype == torch.int64


def test_a_number_too_large_for_fp16_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"bias has a number of size 7e\+04, too large for fp16. Use bf16 or fp32"
    ):
        write_tensors(tmp_path / "x.safetensors", {"bias": torch.tensor([1.0, 7e4])}, "fp16")


def test_saving_again_replaces_the_whole_folder(tmp_path: Path) -> None:
    folder = save(tmp_path / "model")
    save_model(folder, {"text_encoder": Component("SceneTextEncoder", TEXT, tensors(5))})
    assert sorted(path.name for path in folder.iterdir()) == ["lineardit.json", "text_encoder.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert read_model(folder).components.keys() == {"text_encoder"}


def test_a_folder_with_something_else_in_it_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="something that is no model"):
        save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    assert read_model(save(tmp_path)).about == {"steps": 7}


def test_a_full_disk_leaves_the_older_model_and_no_rubbish(tmp_path: Path) -> None:
    folder = save(tmp_path / "model")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    large = Component("SceneTextEncoder", TEXT, {"weight": torch.zeros(100_000)})
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OutputError, match=r"text_encoder.safetensors cannot be written"):
            save_model(folder, {"text_encoder": large})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert read_model(folder).about == {"steps": 7}


@pytest.mark.parametrize("killed_at", [1, 2])
def test_a_replacement_killed_between_its_renames_loses_nothing(
    tmp_path: Path, killed_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path / "model", seed=0)
    renames = 0
    rename = os.rename

    class Killed(BaseException):
        pass

    def killing(source: Path, target: Path) -> None:
        nonlocal renames
        renames += 1
        if renames == killed_at:
            raise Killed
        rename(source, target)

    monkeypatch.setattr(os, "rename", killing)
    with pytest.raises(Killed):
        save(folder, seed=3)
    monkeypatch.undo()
    with pytest.raises(InputError):
        save_model(folder, {"autoencoder": components()["autoencoder"]}, dtype="fp8")
    found = read_model(folder).components["transformer"].tensors["weight"]
    assert torch.equal(found, tensors(0)["weight"]), "the next attempt fails too, and the old one is back"
    save(folder, seed=4)
    assert torch.equal(read_model(folder).components["transformer"].tensors["weight"], tensors(4)["weight"])
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_description_counts_parameters_without_reading_weights(tmp_path: Path) -> None:
    folder = save(tmp_path / "model")
    summaries, about = describe_model(folder)
    assert about == {"steps": 7}
    assert summaries["transformer"].parameters == 15 + 7
    assert summaries["transformer"].tensors["weight"] == ("F32", (3, 5))
    assert summaries["transformer"].config == components()["transformer"].config


def test_a_flipped_bit_in_the_weights_is_found_when_asked_for(tmp_path: Path) -> None:
    folder = save(tmp_path / "model")
    check_files(folder)
    file = folder / "autoencoder.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"autoencoder.safetensors differs from what was written"):
        check_files(folder)


TINY_AUTOENCODER = AutoencoderConfig(
    latent_channels=4,
    encoder=(StageConfig(width=8, depth=1), StageConfig(width=16, depth=1)),
    decoder=(StageConfig(width=8, depth=1), StageConfig(width=16, depth=1)),
    latent_scale=(0.5,),
)
TINY_TRANSFORMER = TransformerConfig(
    latent_channels=4, depth=1, width=16, head_dim=8, cross_head_dim=8, text_width=6
)


def test_an_autoencoder_computes_the_same_after_a_round_trip(tmp_path: Path) -> None:
    model = Autoencoder(TINY_AUTOENCODER).eval()
    found = load_autoencoder(save_autoencoder(tmp_path / "model", model))
    images = torch.randn(2, 3, 8, 10)
    assert not found.training and torch.equal(found.encode(images), model.encode(images))
    assert torch.equal(found(images), model(images))


def test_a_transformer_computes_the_same_after_a_round_trip(tmp_path: Path) -> None:
    model = Transformer(TINY_TRANSFORMER).eval()
    found = load_transformer(save_transformer(tmp_path / "model", model))
    inputs = torch.randn(2, 4, 3, 5), torch.rand(2), torch.randn(2, 7, 6), torch.ones(2, 7, dtype=torch.bool)
    assert not found.training and torch.equal(found(*inputs), model(*inputs))


def test_a_network_stored_in_bf16_is_used_in_float32(tmp_path: Path) -> None:
    model = Transformer(TINY_TRANSFORMER)
    found = load_transformer(save_transformer(tmp_path / "model", model, dtype="bf16"))
    for wanted, parameter in zip(model.parameters(), found.parameters(), strict=True):
        assert parameter.dtype == torch.float32 and torch.equal(parameter, wanted.bfloat16().float())


def test_a_folder_without_the_network_asked_for_says_so(tmp_path: Path) -> None:
    folder = save_transformer(tmp_path / "model", Transformer(TINY_TRANSFORMER))
    with pytest.raises(CheckpointError, match="model holds no autoencoder"):
        load_autoencoder(folder)


def spoil_index(folder: Path, **changes: object) -> None:
    path = folder / "lineardit.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def spoil_component(folder: Path, **changes: object) -> None:
    index = json.loads((folder / "lineardit.json").read_text())
    spoil_index(folder, components={"transformer": index["components"]["transformer"] | changes})


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda folder: (folder / "lineardit.json").unlink(), "holds no model: there is no lineardit.json"),
        (lambda folder: (folder / "lineardit.json").write_text("{"), "lineardit.json is damaged"),
        (lambda folder: (folder / "lineardit.json").write_text("[]"), "lineardit.json is damaged"),
        (lambda folder: (folder / "lineardit.json").write_text("[" * 100_000), "lineardit.json is damaged"),
        (lambda folder: spoil_index(folder, format=2), "has format 2; this version of lineardit reads 1"),
        (lambda folder: spoil_index(folder, components=[]), "lineardit.json is damaged"),
        (
            lambda folder: spoil_component(folder, **{"class": "os.system"}),
            "the class os.system of transformer is unknown",
        ),
        (lambda folder: spoil_component(folder, config={"dept": 3}), "unknown key dept"),
        (lambda folder: spoil_component(folder, size="many"), "damaged at the component transformer"),
        (
            lambda folder: spoil_component(folder, size=float("inf")),
            "damaged at the component transformer",
        ),
        (lambda folder: spoil_component(folder, config={"self": 1}), "transformer does not hold"),
        (
            lambda folder: (folder / "transformer.safetensors").unlink(),
            "transformer.safetensors does not exist",
        ),
        (
            lambda folder: (folder / "transformer.safetensors").write_bytes(b"x" * 30),
            r"transformer.safetensors has 30 bytes, \d+ were written",
        ),
    ],
)
def test_a_folder_that_is_no_whole_model_is_refused_in_one_line(
    tmp_path: Path, spoil: object, complaint: str
) -> None:
    folder = save(tmp_path / "model")
    assert callable(spoil)
    spoil(folder)
    with pytest.raises(CheckpointError, match=complaint) as caught:
        read_model(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_a_component_cannot_point_out_of_its_folder(tmp_path: Path) -> None:
    folder = save(tmp_path / "model")
    index = json.loads((folder / "lineardit.json").read_text())
    spoil_index(folder, components={"../secret": index["components"]["transformer"]})
    with pytest.raises(CheckpointError, match="damaged at the component"):
        read_model(folder)


def truncated_file() -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    return struct.pack("<Q", len(header)) + header + b"\0" * 10


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (truncated_file(), "is cut off or damaged"),
        (truncated_file()[:20], "is cut off or damaged"),
        (b"", "is empty"),
        (b"PK\x03\x04" + b"\0" * 40, "is a pickle, which could run code"),
        (b"\x80\x02}q\x00." + b"\0" * 40, "is a pickle, which could run code"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "is a pointer of Git LFS"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "is no safetensors file"),
        (b"12345", "is no safetensors file"),
    ],
)
def test_a_file_that_holds_no_tensors_is_refused_in_one_line(
    tmp_path: Path, content: bytes, complaint: str
) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    for read in (read_tensors, read_header):
        with pytest.raises(CheckpointError, match=complaint) as caught:
            read(path)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_missing_file_and_a_folder_in_its_place_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        read_tensors(tmp_path / "gone.safetensors")
    with pytest.raises(CheckpointError, match="is no file"):
        read_tensors(tmp_path)


def small_model() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 2))


def test_loading_strictly_copies_every_tensor_and_keeps_the_dtype() -> None:
    source, target = small_model(), small_model().double()
    load_strict(target, source.state_dict(), "weights.safetensors")
    for wanted, found in zip(source.parameters(), target.parameters(), strict=True):
        assert found.dtype == torch.float64 and torch.equal(found, wanted.double())


def test_a_model_on_the_meta_device_takes_the_tensors_themselves() -> None:
    source = small_model().bfloat16()
    with torch.device("meta"):
        target = small_model()
    load_strict(target, source.state_dict(), "weights.safetensors")
    for wanted, found in zip(source.parameters(), target.parameters(), strict=True):
        assert found.dtype == torch.bfloat16 and torch.equal(found, wanted)


def test_every_difference_is_listed_in_one_error_and_nothing_is_loaded() -> None:
    target = small_model()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    given = {name: torch.ones_like(tensor) for name, tensor in before.items()}
    del given["0.weight"], given["1.bias"]
    given |= {"head.bias": torch.ones(2), "1.weight": torch.ones(3, 2)}
    with pytest.raises(CheckpointError) as caught:
        load_strict(target, given, "sana.safetensors")
    assert str(caught.value) == (
        "sana.safetensors does not fit Sequential:\n"
        "  missing (2): 0.weight, 1.bias\n"
        "  unknown (1): head.bias\n"
        "  other shape (1): 1.weight is (3, 2), the model has (2, 3)"
    )
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(
    ("given", "extra", "dtype", "complaint"),
    [
        ({"transformer": Component("Pipeline", TEXT, {})}, {}, "fp32", "the class Pipeline is unknown"),
        ({"transformer": Component("Transformer", TEXT, {})}, {}, "fp32", "built from a TransformerConfig"),
        ({"../transformer": Component("SceneTextEncoder", TEXT, {})}, {}, "fp32", "no name of a component"),
        ({"text": Component("SceneTextEncoder", TEXT, {})}, {"../card": b""}, "fp32", "no name for a file"),
        (
            {"text": Component("SceneTextEncoder", TEXT, {})},
            {"text.safetensors": b""},
            "fp32",
            "no name for a file",
        ),
        ({"text": Component("SceneTextEncoder", TEXT, {})}, {}, "fp8", "dtype='fp8' cannot be stored"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(
    tmp_path: Path, given: dict[str, Component], extra: dict[str, bytes], dtype: str, complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        save_model(tmp_path / "model", given, extra_files=extra, dtype=dtype)
    assert not list(tmp_path.iterdir())
