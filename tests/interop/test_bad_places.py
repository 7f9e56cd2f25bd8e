"""What is no model that fits gets one line on the command line, exit code 2, and leaves nothing behind."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lineardit.cli.app import main

WEIGHTS = "diffusion_pytorch_model.safetensors"


def write(path: Path, content: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def change(path: Path, **values: Any) -> None:
    write(path, json.loads(path.read_text()) | values)


def halved(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def truncated(at: Path) -> Path:
    halved(at / "transformer" / WEIGHTS)
    return at


def truncated_pickle(at: Path) -> Path:
    torch.save({"state_dict": load_file(at / "transformer" / WEIGHTS)}, at / "sana.pth")
    halved(at / "sana.pth")
    return at / "sana.pth"


def flux_file(at: Path) -> Path:
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.zeros(1)}, at / "flux1-dev.safetensors")
    return at / "flux1-dev.safetensors"


def flux_part(at: Path) -> Path:
    write(at / "flux" / "config.json", {"_class_name": "FluxTransformer2DModel", "num_layers": 19})
    return at / "flux"


def sdxl_folder(at: Path) -> Path:
    change(at / "model_index.json", _class_name="StableDiffusionXLPipeline", unet=["diffusers", "UNet2D"])
    return at


def sdxl_file(at: Path) -> Path:
    torch.save({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(1)}, at / "sdxl.ckpt")
    return at / "sdxl.ckpt"


def mixed(at: Path) -> Path:
    """The autoencoder of another model, which holds in itself."""
    tensors = load_file(at / "vae" / WEIGHTS)
    change(at / "vae" / "config.json", latent_channels=6)
    for name in ("encoder.conv_out.weight", "encoder.conv_out.bias"):
        tensors[name] = torch.cat([tensors[name]] * 2)
    tensors["decoder.conv_in.weight"] = torch.cat([tensors["decoder.conv_in.weight"]] * 2, dim=1)
    save_file(tensors, at / "vae" / WEIGHTS)
    return at


def two_models(at: Path) -> Path:
    write(at / "lineardit.json", {})
    return at


def missing_shard(at: Path) -> Path:
    (at / "transformer" / WEIGHTS).unlink()
    names = [f"diffusion_pytorch_model-{number:05}-of-00002.safetensors" for number in (1, 2)]
    save_file({"patch_embed.proj.bias": torch.zeros(20)}, at / "transformer" / names[0])
    index = {"weight_map": {"patch_embed.proj.bias": names[0], "proj_out.bias": names[1]}}
    write(at / "transformer" / f"{WEIGHTS}.index.json", index)
    return at


def other_text(at: Path) -> Path:
    change(at / "text_encoder" / "config.json", hidden_size=56)
    return at


CASES: dict[Callable[[Path], Path | str], str] = {
    truncated: "is cut off or damaged",
    truncated_pickle: "is cut off or damaged, or is no checkpoint of torch",
    flux_file: "looks like FLUX: it holds double_blocks.0.img_attn.qkv.weight",
    flux_part: "holds a FluxTransformer2DModel. What is read here is one of SanaTransformer2DModel",
    sdxl_folder: "is a StableDiffusionXLPipeline. What is read here is one of SanaPipeline",
    sdxl_file: "looks like Stable Diffusion or SDXL",
    mixed: "mixes two models: the autoencoder has 6 latent channels, the transformer takes 3",
    two_models: "holds two models: lineardit.json is ours and model_index.json is of diffusers",
    missing_shard: "lacks 1 of 2 files of its weights: diffusion_pytorch_model-00002-of-00002.safetensors",
    other_text: "its text encoder gives vectors of width 56, the transformer takes width 28",
    lambda _: "nobody/nothing": "could not be fetched",
    lambda at: at / "gone": "is no folder and no file here",
}


@pytest.mark.parametrize(("spoil", "complaint"), CASES.items())
def test_one_line_and_nothing_left(
    published: Path,
    tmp_path: Path,
    spoil: Callable[[Path], Path | str],
    complaint: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = str(spoil(Path(shutil.copytree(published, tmp_path / "copy"))))
    before = sorted(tmp_path.rglob("*"))
    picture, folder = str(tmp_path / "out" / "x.png"), str(tmp_path / "converted")
    for command in (["generate", "a cat", "--model", place, "-o", picture], ["convert", place, folder]):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert complaint in error and error.count("\n") == 1 and error.startswith("error: ")
    assert main(["info", place]) == 2
    assert sorted(tmp_path.rglob("*")) == before


def test_a_lora_for_another_model_gets_one_line(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    factors = {"lora_A.weight": torch.zeros(2, 3072), "lora_B.weight": torch.zeros(3072, 2)}
    lora = tmp_path / "flux_lora.safetensors"
    save_file({f"transformer.single_transformer_blocks.0.attn.to_q.{n}": t for n, t in factors.items()}, lora)
    out = tmp_path / "x.png"
    command = ["generate", "a cat", "--model", str(published), "--device", "cpu", "-o", str(out)]
    assert main([*command, "--lora", f"{lora}:0.5"]) == 2
    error = capsys.readouterr().err
    assert "is a LoRA for another model: this one has no linear layer single_transformer_blocks.0" in error
    assert error.count("\n") == 1 and not out.exists()
