"""`lineardit info` tells what is there, to people and to programs."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from lineardit.cli.app import main
from lineardit.config.models import TransformerConfig
from lineardit.interop.native import Component, save_model
from lineardit.interop.png_text import png_text


def read_json(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, object]]:
    facts: dict[str, dict[str, object]] = json.loads(capsys.readouterr().out)
    return facts


@pytest.fixture
def model(tmp_path: Path) -> Path:
    config = TransformerConfig(depth=2, width=64, cross_head_dim=32)
    component = Component("Transformer", config, {"weight": torch.ones(3, 5), "bias": torch.ones(7)})
    folder = tmp_path / "model"
    save_model(
        folder,
        {"transformer": component},
        about={"recipe": "emoji"},
        extra_files={"README.md": b"# A card [with] brackets"},
        dtype="bf16",
    )
    return folder


def test_this_machine_is_described_with_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--device", "cpu", "--dtype", "fp32", "--json"]) == 0
    facts = read_json(capsys)
    assert facts["used here"]["device"] == {"choice": "cpu", "reason": "asked for"}
    assert facts["used here"]["dtype"] == {"choice": "fp32", "reason": "asked for"}
    assert facts["machine"]["torch"] == torch.__version__


def test_the_table_says_the_same_to_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert "because" in out and torch.__version__ in out and "GB" in out


def test_a_picture_tells_how_it_was_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cat.png"
    Image.new("RGB", (8, 8)).save(path, pnginfo=png_text({"prompt": "a [cat] 🐈", "seed": 7}))
    assert main(["info", str(path), "--json"]) == 0
    assert read_json(capsys)["lineardit"] == {"prompt": "a [cat] 🐈", "seed": 7}
    assert main(["info", str(path)]) == 0
    assert "a [cat] 🐈" in capsys.readouterr().out


def test_a_model_is_described_from_its_headers(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(model), "--json"]) == 0
    facts = read_json(capsys)
    transformer = facts["transformer"]
    assert (transformer["class"], transformer["parameters"], transformer["dtype"]) == (
        "Transformer",
        22,
        "BF16",
    )
    assert (transformer["depth"], transformer["width"]) == (2, 64)
    assert facts["about"] == {"recipe": "emoji"}
    assert facts["card"] == {"text": "# A card [with] brackets"}


def test_the_card_is_printed_as_it_stands(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(model)]) == 0
    assert "# A card [with] brackets" in capsys.readouterr().out


def test_verifying_reads_the_weights(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(model), "--verify"]) == 0
    file = model / "transformer.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert main(["info", str(model)]) == 0
    assert main(["info", str(model), "--verify"]) == 2
    assert "transformer.safetensors differs from what was written" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["gone", "gone.png", "."])
def test_what_cannot_be_described_gets_one_line(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", str(tmp_path / name)]) == 2
    out, error = capsys.readouterr()
    assert not out and error.startswith("error: ") and error.count("\n") == 1


def test_what_training_takes_is_told_to_programs_too(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["info", "article-sana", "--train", "--batch", "2", "--height", "256", "--width", "256"]
    assert main([*arguments, "--json"]) == 0
    facts = read_json(capsys)
    assert (facts["target"], facts["height"], facts["dtype"]) == ("article-sana", 256, "bf16")
    ways = facts["batches"]
    assert isinstance(ways, list) and [way["optimizer"] for way in ways] == ["adamw", "adamw", "came"]
    first = ways[0]
    parts = ("weights", "gradients", "moments", "average", "working", "gathered", "beside")
    assert first["batch"] == 2 and first["total"] == sum(first[part] for part in parts)
    assert first["weights"] == 4 * 708_326_688


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train", "--dtype", "float32"], "dtype='float32' is unknown. Use auto, fp32, bf16, fp16."),
        (["--train", "--verify"], "--verify says nothing of training"),
        (["--train", "--device", "cpu"], "--device says nothing of training"),
        (["--batch", "3"], "--batch goes with --train"),
        (["sana-0.6b", "--verify"], "--verify reads the weights of a model"),
        (["--verify"], "--verify reads the weights of a model"),
    ],
)
def test_options_that_would_change_nothing_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", *arguments]) == 2
    out, error = capsys.readouterr()
    assert not out and error.startswith("error: ") and error.count("\n") == 1 and message in error


@pytest.mark.parametrize(
    ("name", "class_name", "parameters"),
    [("article-sana", "ArticleSana", 708_326_688), ("article-dc-ae", "ArticleAutoencoder", 63_144_995)],
)
def test_a_preset_is_described_by_its_name(
    name: str, class_name: str, parameters: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", name, "--json"]) == 0
    facts = read_json(capsys)["preset"]
    assert (facts["name"], facts["class"], facts["parameters"]) == (name, class_name, parameters)
    assert facts["latent_channels"] == 32
