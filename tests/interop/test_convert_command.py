"""`lineardit convert` and `lineardit info` over every format: number for number, whole or not at all."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderDC, SanaControlNetModel, SanaTransformer2DModel
from PIL import Image

from lineardit.cli.app import main
from lineardit.config.models import TransformerConfig
from lineardit.config.presets import TRANSFORMERS, differing
from lineardit.errors import CheckpointError, OutputError
from lineardit.interop import official
from lineardit.interop.bound import UNTOLD
from lineardit.interop.export import export
from lineardit.interop.native import save_model
from lineardit.interop.pickles import open_pickle
from lineardit.interop.place import Place
from lineardit.interop.places import open_place
from lineardit.interop.text import load_text_encoder
from lineardit.nn.offload import offloaded
from lineardit.pipeline import Pipeline


def tensors(place: Place) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": tensor
        for name, network in place.networks.items()
        for key, tensor in network.tensors.items()
    }


def assert_same_numbers(left: Path, right: Path) -> None:
    found, wanted = tensors(open_place(left)), tensors(open_place(right))
    assert found.keys() == wanted.keys() and wanted
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


def test_a_pipeline_goes_to_our_format_and_back(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    native, back = tmp_path / "native", tmp_path / "back"
    assert main(["convert", str(published), str(native)]) == 0
    out = capsys.readouterr().out
    assert f"diffusers -> native: {native}" in out
    assert "  transformer: Transformer, 46 tensors\n" in out and "text_encoder: Gemma2Model, copied" in out
    assert main(["convert", str(native), str(back), "--format", "diffusers"]) == 0
    assert_same_numbers(back, published)
    assert "whose licence it keeps" in (native / "README.md").read_text()
    (native / "README.md").write_text("a card that someone wrote")
    assert main(["convert", str(native), str(tmp_path / "half"), "--dtype", "bf16"]) == 0
    assert (tmp_path / "half" / "README.md").read_text().startswith("a card that someone wrote")
    assert all(tensor.dtype != torch.float32 for tensor in tensors(open_place(tmp_path / "half")).values())
    assert sorted(path.name for path in back.iterdir()) == sorted(path.name for path in published.iterdir())
    settings = json.loads((back / "scheduler" / "scheduler_config.json").read_text())
    assert (settings["flow_shift"], settings["use_flow_sigmas"]) == (3.0, True)
    assert Pipeline.from_pretrained(native, device="cpu").sampling.whole_times


def test_one_network_becomes_a_folder_that_diffusers_opens(published: Path, tmp_path: Path) -> None:
    for name, kind in (("transformer", SanaTransformer2DModel), ("vae", AutoencoderDC)):
        native, back = tmp_path / f"{name}-native", tmp_path / f"{name}-back"
        assert main(["convert", str(published / name), str(native)]) == 0
        assert main(["convert", str(native), str(back), "--format", "diffusers", "--dtype", "fp32"]) == 0
        wanted = kind.from_pretrained(published / name).state_dict()
        found = kind.from_pretrained(back).state_dict()
        assert all(torch.equal(found[key], tensor) for key, tensor in wanted.items())


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> TransformerConfig:
    """A transformer as small as the tests', among the published ones."""
    config = differing(
        TRANSFORMERS["sana-0.6b"],
        latent_channels=3, depth=2, width=96, cross_head_dim=24, text_width=28,
    )  # fmt: skip
    monkeypatch.setattr(official, "TRANSFORMERS", {**TRANSFORMERS, "sana-narrow": config})
    return config


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_transformer_goes_to_an_official_file_and_back(
    narrow: TransformerConfig, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from lineardit.interop.native import save_transformer
    from lineardit.transformer.model import Transformer

    native = save_transformer(tmp_path / "native", Transformer(narrow))
    file, back = tmp_path / f"sana{suffix}", tmp_path / "back"
    assert main(["convert", str(native), str(file), "--format", "official"]) == 0
    assert main(["convert", str(file), str(back)]) == 0
    assert "official -> native" in capsys.readouterr().out
    assert_same_numbers(back, native)
    assert open_place(back).networks["transformer"].config == narrow


def test_one_network_of_a_model_is_written_alone(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["convert", str(tiny_model), str(tmp_path / "out")]
    assert main([*arguments, "--part", "autoencoder"]) == 0
    alone = open_place(tmp_path / "out")
    assert set(alone.networks) == {"autoencoder"} and alone.text is None and not alone.files
    one, two = (each.networks["autoencoder"].tensors for each in (alone, open_place(tiny_model)))
    assert all(torch.equal(one[name], two[name]) for name in two)
    capsys.readouterr()
    assert main([*arguments, "--force", "--part", "vae"]) == 2
    error = capsys.readouterr().err
    assert "holds no vae, only transformer, autoencoder, text_encoder." in error


def test_our_text_encoder_is_written_alone_with_its_vocabulary(tiny_model: Path, tmp_path: Path) -> None:
    assert main(["convert", str(tiny_model), str(tmp_path / "out"), "--part", "text_encoder"]) == 0
    found, wanted = load_text_encoder(tmp_path / "out"), load_text_encoder(tiny_model)
    prompts = ["a red apple left of a cat"]
    assert torch.equal(found.encode(prompts).embeddings, wanted.encode(prompts).embeddings)
    assert list(open_place(tmp_path / "out").networks) == ["text_encoder"]


def test_what_has_no_place_is_named(
    narrow: TransformerConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shapes = official.transformer_renaming(narrow).foreign_shapes
    whole = {name: torch.zeros(shape) for name, shape in shapes.items()}
    torch.save({"state_dict": whole | {"logvar_linear.bias": torch.zeros(1)}}, tmp_path / "sana.pth")
    assert main(["convert", str(tmp_path / "sana.pth"), str(tmp_path / "out")]) == 0
    assert "left out" not in capsys.readouterr().out
    # Kept beside the network, for those who go back to the official code.
    assert main(["convert", str(tmp_path / "out"), str(tmp_path / "back.pth"), "--format", "official"]) == 0
    again = open_pickle(tmp_path / "back.pth")
    assert again.keys() == {*whole, "logvar_linear.bias"}
    capsys.readouterr()
    facts = described(capsys, str(tmp_path / "out"))
    assert facts["transformer"]["kept_for_training"] == ["logvar_linear.bias"]
    assert main(["convert", str(tmp_path / "out"), str(tmp_path / "theirs"), "--format", "diffusers"]) == 0
    assert "left out: logvar_linear.bias" in capsys.readouterr().out


def test_an_official_file_draws_with_an_autoencoder_and_a_text_encoder_of_other_places(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = open_place(published)
    config = place.networks["transformer"].config
    assert isinstance(config, TransformerConfig)
    same = differing(config, head_dim=4, position_base=32)
    monkeypatch.setattr(official, "HEAD_DIM", 4)
    monkeypatch.setattr(official, "TRANSFORMERS", {**TRANSFORMERS, "sana-tiny": same})
    file, gemma = tmp_path / "sana.pth", tmp_path / "gemma"
    export(open_place(published / "transformer"), file, "official")
    shutil.copytree(published / "text_encoder", gemma)
    shutil.copytree(published / "tokenizer", gemma, dirs_exist_ok=True)
    rest = ["--autoencoder", str(published / "vae"), "--text-encoder", str(gemma)]
    options = ["--device", "cpu", "--height", "16", "--width", "16", "--num-inference-steps", "2", "-o"]
    pictures = []
    assert main(["convert", str(file), str(tmp_path / "whole"), *rest]) == 0
    for number, model in enumerate(([str(file), *rest], [str(tmp_path / "whole")], [str(published)])):
        out = str(tmp_path / f"{number}.png")
        assert main(["generate", "two dogs", "--model", *model, *options, out]) == 0
        with Image.open(out) as picture:
            pictures.append(picture.tobytes())
    assert pictures[0] == pictures[1] == pictures[2]
    capsys.readouterr()
    assert main(["generate", "two dogs", "--model", str(file), *options, str(tmp_path / "x.png")]) == 2
    assert "holds no autoencoder, no text_encoder: a pipeline needs all three" in capsys.readouterr().err
    for wrong, complaint in (
        (["--autoencoder", str(gemma)], "holds a gemma2"),
        (["--autoencoder", str(file)], "holds no autoencoder, only transformer"),
        (["--text-encoder", str(published / "vae")], "holds no text encoder, only autoencoder"),
    ):
        assert main(["convert", str(file), str(tmp_path / "y"), *wrong]) == 2
        assert complaint in capsys.readouterr().err and not (tmp_path / "y").exists()


def test_an_official_controlnet_goes_to_diffusers_and_to_our_format_and_back(
    narrow: TransformerConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    control = differing(narrow, depth=1)
    shapes = official.transformer_renaming(narrow).foreign_shapes
    shapes |= official.controlnet_renaming(control).foreign_shapes
    whole = {name: torch.randn(shape) for name, shape in shapes.items()}
    torch.save({"state_dict": whole}, tmp_path / "sana.pth")
    native, back = tmp_path / "native", tmp_path / "back.pth"
    assert main(["convert", str(tmp_path / "sana.pth"), str(native)]) == 0
    assert "controlnet: ControlNet, 32 tensors" in capsys.readouterr().out
    assert main(["convert", str(native), str(back), "--format", "official"]) == 0
    again = open_pickle(back)
    assert again.keys() == whole.keys() and all(torch.equal(again[key], whole[key]) for key in whole)
    assert main(["convert", str(native), str(tmp_path / "theirs"), "--format", "diffusers"]) == 0
    for kind, folder in ((SanaControlNetModel, "controlnet"), (SanaTransformer2DModel, "transformer")):
        found = kind.from_pretrained(tmp_path / "theirs" / folder).state_dict()
        assert torch.equal(found["caption_norm.weight"], whole["attention_y_norm.weight"])


def test_nothing_is_overwritten_without_force(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["convert", str(published / "vae"), str(out)]) == 0
    before = (out / "lineardit.json").read_bytes()
    assert main(["convert", str(published / "transformer"), str(out)]) == 2
    assert "exists. Add --force to replace it" in capsys.readouterr().err
    assert (out / "lineardit.json").read_bytes() == before
    assert main(["convert", str(published / "transformer"), str(out), "--force"]) == 0
    assert list(open_place(out).networks) == ["transformer"]
    work = tmp_path / "work"
    work.mkdir()
    (work / "thesis.tex").write_text("years of work")
    assert main(["convert", str(published / "vae"), str(work), "--force"]) == 2
    assert "holds something that is no model" in capsys.readouterr().err


@pytest.mark.parametrize(
    "described",
    [
        '{"theme": "dark"}',
        '{"_class_name": "UNet2DConditionModel"}',
        '{"_class_name": ["SanaTransformer2DModel"]}',
        '{"_class_name": null}',
        '["SanaTransformer2DModel"]',
        "{",
        pytest.param("[" * 100_000, id="deep"),
    ],
)
@pytest.mark.parametrize("format", ["native", "diffusers"])
def test_a_folder_with_the_configuration_of_another_program_is_never_replaced(
    published: Path, tmp_path: Path, described: str, format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "config.json").write_text(described)
    (work / "thesis.tex").write_text("years of work")
    assert main(["convert", str(published / "vae"), str(work), "--format", format, "--force"]) == 2
    assert "holds something that is no model" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["config.json", "thesis.tex", "work"]


def test_one_network_of_diffusers_is_a_model_that_force_replaces(published: Path, tmp_path: Path) -> None:
    for name in ("vae", "transformer"):
        out = tmp_path / name
        shutil.copytree(published / name, out)
        assert main(["convert", str(published / "vae"), str(out), "--format", "diffusers", "--force"]) == 0
        assert list(open_place(out).networks) == ["autoencoder"]


@pytest.mark.parametrize("format", ["native", "diffusers", "official"])
def test_a_disk_that_fills_up_leaves_nothing(
    published: Path, tmp_path: Path, format: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = 0

    def full(_: str) -> None:
        nonlocal read
        read += 1
        if read == 30:
            raise OSError(28, "No space left on device")

    out = tmp_path / "out"
    with pytest.raises(OutputError, match="No space left on device"):
        export(open_place(published), out, format, on_tensor=full)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["gone", "out"], "gone is no folder and no file here"),
        (["PUBLISHED", "out", "--dtype", "fp8"], "dtype='fp8' cannot be stored"),
        (["PUBLISHED/transformer", "out", "--format", "official"], "is one file: let .* end in .pth"),
        (["TINY", "out", "--format", "diffusers"], "is a SceneTextEncoder, which diffusers does not have"),
    ],
)
def test_what_cannot_be_converted_gets_one_line_and_leaves_nothing(
    published: Path,
    tiny_model: Path,
    tmp_path: Path,
    arguments: list[str],
    complaint: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import re

    monkeypatch.chdir(tmp_path)
    given = [each.replace("PUBLISHED", str(published)).replace("TINY", str(tiny_model)) for each in arguments]
    assert main(["convert", *given]) == 2
    error = capsys.readouterr().err
    assert re.search(complaint, error) and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_autoencoder_of_any_format_can_be_measured(published: Path) -> None:
    from lineardit.cli import evaluate

    network = evaluate._autoencoder(evaluate.Place(str(published / "vae"), "cpu", "bf16"))
    assert network.decode(torch.zeros(1, 3, 2, 2, dtype=torch.bfloat16)).shape == (1, 3, 16, 16)
    with pytest.raises(CheckpointError, match="transformer holds no autoencoder"):
        evaluate._autoencoder(evaluate.Place(str(published / "transformer"), "cpu", "fp32"))


def described(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, dict[str, Any]]:
    assert main(["info", *arguments, "--json"]) == 0
    facts: dict[str, dict[str, Any]] = json.loads(capsys.readouterr().out)
    return facts


def test_a_published_pipeline_is_described(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = described(capsys, str(published), "--height", "64", "--width", "32", "--dtype", "fp32")
    network = SanaTransformer2DModel.from_pretrained(published / "transformer")
    transformer = facts["transformer"]
    assert (facts["model"]["format"], facts["model"]["made_for"]) == ("diffusers", "40 x 40 pixels")
    alone = described(capsys, str(published / "transformer"))
    assert alone["model"]["made_for"] == "5 x 5 latents" and "memory" not in alone
    assert transformer["parameters"] == sum(each.numel() for each in network.parameters())
    assert (transformer["class"], transformer["dtype"], transformer["preset"]) == ("Transformer", "F32", None)
    assert facts["text_encoder"] == {"class": "Gemma2Model", "width": 28}
    assert facts["sampling"]["shift"] == 3.0
    memory = facts["memory"]
    assert memory["picture"] == "64 x 32, fp32"
    file = published / "text_encoder" / "model.safetensors"
    assert memory["text_encoder_bytes"] == file.stat().st_size
    assert memory["weights_bytes"] == sum(
        facts[name]["size_bytes"] for name in ("transformer", "autoencoder")
    )
    pipe = Pipeline.from_pretrained(published, device="cpu", offload=True)
    stays = sum(
        each.nbytes
        for network in pipe.networks.values()
        for each in network.state_dict().values()
        if not each.is_meta
    )
    text, blocks, decoder = (
        max(each.size_bytes for each in offloaded(network))
        for network in (pipe.networks["text_encoder"], pipe.transformer, pipe.autoencoder.decoder)
    )
    steps, decoding = memory["denoising_in_bands_bytes"], memory["decoding_in_bands_bytes"]
    least = memory["program_bytes"] + stays + max(text, blocks + steps, decoder + decoding)
    assert memory["offloaded_in_bands_bytes"] == pytest.approx(least / (1 - UNTOLD), abs=1)
    assert main(["info", str(published)]) == 0
    assert "denoising" in capsys.readouterr().out


def test_a_preset_is_recognised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lineardit.interop.native import Component

    config = TRANSFORMERS["sana-1.5-1.6b"]
    component = Component("Transformer", config, {"x": torch.zeros(1)})
    save_model(tmp_path / "model", {"transformer": component})
    assert described(capsys, str(tmp_path / "model"))["transformer"]["preset"] == "sana-1.5-1.6b"


def test_a_size_between_tokens_and_checksums_that_are_not_there_are_refused(
    published: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", str(published), "--height", "63"]) == 2
    assert "height=63 is not a multiple of 8" in capsys.readouterr().err
    assert main(["info", str(published), "--verify"]) == 2
    assert "has no checksums to verify" in capsys.readouterr().err
