"""With a ControlNet a pipeline draws what diffusers draws along a control image; folders go both ways."""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from lineardit.cli.app import main
from lineardit.diffusion.randomness import seeded_noise
from lineardit.errors import CheckpointError, InputError
from lineardit.pipeline import Pipeline

PROMPTS = ["a red apple left of a cat", "two dogs"]
SIZE = {"height": 64, "width": 32, "num_inference_steps": 3}


@pytest.fixture(scope="module")
def control() -> Any:
    """Weights that show: published ones start at zero."""
    network = diffusers.SanaControlNetModel(
        in_channels=3, out_channels=3, num_attention_heads=5, attention_head_dim=4, caption_channels=28,
        num_cross_attention_heads=2, cross_attention_head_dim=10, cross_attention_dim=20, num_layers=1,
        sample_size=5,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for tensor in network.state_dict().values():
        tensor.normal_(std=1 / tensor[0].numel() ** 0.5 if tensor.dim() > 1 else 0.3, generator=generator)
    return network.eval()


@pytest.fixture(scope="module")
def steered(published: Path, control: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a SanaControlNetPipeline."""
    folder = tmp_path_factory.mktemp("steered") / "Sana_ControlNet_tiny"
    plain = diffusers.SanaPipeline.from_pretrained(published)
    parts = {name: part for name, part in plain.components.items()}
    diffusers.SanaControlNetPipeline(controlnet=control, **parts).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    edges = np.random.default_rng(0).integers(0, 256, (64, 32, 3), dtype=np.uint8)
    return Image.fromarray(edges)


@pytest.fixture(scope="module")
def wanted(steered: Path, picture: Image.Image) -> np.ndarray:
    return drawn_by_diffusers(steered, picture)


def drawn_by_diffusers(folder: Path, picture: Image.Image) -> np.ndarray:
    pipe = diffusers.SanaControlNetPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    # A list, because diffusers repeats a single picture once too often where it guides.
    return pipe(
        PROMPTS, "a cat", control_image=[picture] * 2, controlnet_conditioning_scale=0.7, output_type="np",
        latents=seeded_noise((3, 8, 4), [7, 8]), use_resolution_binning=False, **SIZE,
    ).images  # fmt: skip


def drawn_by_us(pipe: Pipeline, picture: Image.Image | None, **options: Any) -> np.ndarray:
    images = pipe(PROMPTS, "a cat", seed=7, control_image=picture, output_type="np", **SIZE, **options).images
    assert isinstance(images, np.ndarray)
    return images


def test_the_pictures_are_those_of_diffusers(steered: Path, picture: Image.Image, wanted: np.ndarray) -> None:
    pipe = Pipeline.from_pretrained(steered, device="cpu")
    ours = drawn_by_us(pipe, picture, controlnet_conditioning_scale=0.7, batch_size=2)
    np.testing.assert_allclose(ours, wanted, atol=1e-4)
    assert np.abs(ours - drawn_by_us(pipe, None)).max() > 1e-2
    np.testing.assert_array_equal(
        drawn_by_us(pipe, picture, controlnet_conditioning_scale=0.0), drawn_by_us(pipe, None)
    )
    assert pipe.plan("two dogs", controlnet_conditioning_scale=0.5)[0].controlnet_conditioning_scale == 0.5


@pytest.mark.parametrize("format", ["diffusers", "native"])
def test_its_folder_is_written_as_well(
    steered: Path, picture: Image.Image, wanted: np.ndarray, tmp_path: Path, format: Any
) -> None:
    Pipeline.from_pretrained(steered, device="cpu").save_pretrained(tmp_path / "saved", format=format)
    again = Pipeline.from_pretrained(tmp_path / "saved", device="cpu")
    ours = drawn_by_us(again, picture, controlnet_conditioning_scale=0.7)
    np.testing.assert_allclose(ours, wanted, atol=1e-4)
    if format == "diffusers":
        np.testing.assert_allclose(drawn_by_diffusers(tmp_path / "saved", picture), wanted, atol=1e-6)


def test_one_can_be_loaded_beside_any_transformer_that_it_fits(
    published: Path, steered: Path, sprint: Path, tiny_model: Path, picture: Image.Image, wanted: np.ndarray
) -> None:
    pipe = Pipeline.from_pretrained(published, device="cpu")
    with pytest.raises(InputError, match="has no ControlNet to follow a picture with. Load one"):
        drawn_by_us(pipe, picture)
    with pytest.raises(CheckpointError, match="holds no ControlNet, only transformer, autoencoder"):
        pipe.load_controlnet(sprint)
    pipe.load_controlnet(steered / "controlnet")
    ours = drawn_by_us(pipe, picture, controlnet_conditioning_scale=0.7)
    np.testing.assert_allclose(ours, wanted, atol=1e-4)
    (job,) = pipe.plan("two dogs", controlnet_conditioning_scale=1.0)
    assert job.model == f"{published} + {steered / 'controlnet'}"
    with pytest.raises(InputError, match="controlnet_conditioning_scale=nan is no finite number"):
        drawn_by_us(pipe, picture, controlnet_conditioning_scale=float("nan"))
    with pytest.raises(CheckpointError, match="is a ControlNet for another model: it has width=20"):
        Pipeline.from_pretrained(tiny_model, device="cpu").load_controlnet(steered / "controlnet")


def test_the_command_line_follows_a_picture(
    published: Path, steered: Path, picture: Image.Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture.save(tmp_path / "edges.png")
    options = ["--device", "cpu", "--height", "64", "--width", "32", "--num-inference-steps", "2", "-o"]
    plain = ["generate", "two dogs", "--model", str(published), *options]
    follow = ["--controlnet", str(steered / "controlnet"), "--control-image", str(tmp_path / "edges.png")]
    assert main([*plain, str(tmp_path / "plain.png")]) == 0
    assert main([*plain, str(tmp_path / "off.png"), *follow, "--control-scale", "0"]) == 0
    assert main([*plain, str(tmp_path / "on.png"), *follow, "--debug-nan"]) == 0
    pixels = [Image.open(tmp_path / f"{name}.png").tobytes() for name in ("plain", "off", "on")]
    assert pixels[0] == pixels[1] != pixels[2]
    capsys.readouterr()
    assert main([*plain, str(tmp_path / "x.png"), *follow[:2]]) == 2
    assert "--controlnet is given without a picture to follow" in capsys.readouterr().err
    assert main([*plain, str(tmp_path / "x.png"), *follow[2:]]) == 2
    assert "has no ControlNet to follow a picture with" in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()


def test_the_layer_that_breaks_is_named(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = Pipeline.from_pretrained(published, device="cpu")
    with torch.no_grad():
        pipe.transformer.get_parameter("blocks.1.feed_forward.contract.weight").fill_(3e38)
    pipe.save_pretrained(tmp_path / "broken")
    command = ["generate", "two dogs", "--model", str(tmp_path / "broken"), "--device", "cpu", "-o"]
    assert main([*command, str(tmp_path / "x.png")]) == 3
    assert (
        "gave numbers that are NaN or infinite, computing in torch.float32. --debug"
        in capsys.readouterr().err
    )
    assert main([*command, str(tmp_path / "x.png"), "--debug-nan"]) == 3
    told = capsys.readouterr().err
    assert "layer transformer.blocks.1.feed_forward.contract (Linear) gave NaN or infinity; its input" in told
    assert not (tmp_path / "x.png").exists()
