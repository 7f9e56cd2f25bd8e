"""`lineardit evaluate`: what it prints and writes, and what it refuses before any work."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from lineardit.autoencoder.model import Autoencoder
from lineardit.cli import evaluate as command
from lineardit.cli.app import main
from lineardit.config.models import AutoencoderConfig, StageConfig
from lineardit.config.scenes import SceneConfig
from lineardit.data.emoji_scenes import EmojiScenes
from lineardit.evaluation import scenes
from lineardit.evaluation.detector import SceneDetector
from lineardit.evaluation.scenes import drawn_truth, questions
from lineardit.interop.native import save_autoencoder

STAGES = (StageConfig(width=8, depth=0), StageConfig(width=8, depth=1))


class Truthful:
    """A pipeline that draws the truth of the held-out scenes of one seed, and notes how it was called."""

    def __init__(self, seed: int, count: int) -> None:
        scenes = EmojiScenes(SceneConfig(), seed, "held_out")
        self.asked = questions(scenes, count, seed)
        self.draw = drawn_truth(scenes, self.asked)
        self.calls: list[dict[str, Any]] = []

    def plan(self, prompt: str, **options: Any) -> list[SimpleNamespace]:
        return [SimpleNamespace(**options | {"guidance_scale": 3.5, "height": 128, "width": 128})]

    def __call__(self, prompts: list[str], seed: list[int], **options: Any) -> SimpleNamespace:
        self.calls.append({"prompts": prompts, "seed": seed, **options})
        return SimpleNamespace(images=self.draw(prompts, seed))


def test_scenes_are_asked_of_the_pipeline_and_written(
    font: None,
    bundled: SceneDetector,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pipe = Truthful(7, 10)
    asked_for: list[command.Place] = []
    monkeypatch.setattr(command, "_pipeline", lambda place: asked_for.append(place) or pipe)
    folder = tmp_path / "deep" / "measured"
    options = ["--count", "10", "--seed", "7", "--batch-size", "4", "--num-inference-steps", "9"]
    options += ["--guidance-interval", "0.2,0.9", "--step-cache", "0.1", "--quantize", "int8"]
    assert main(["evaluate", "scenes", *options, "-o", str(folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts == json.loads((folder / "scenes.json").read_text("utf-8"))
    assert facts["split"] == "held_out" and facts["seed"] == 7 and facts["count"] == 10
    assert facts["rates"]["all_right"]["right"] == facts["rates"]["all_right"]["asked"] == 10
    assert facts["settings"]["num_inference_steps"] == 9
    assert facts["settings"]["guidance_scale"] == 3.5
    assert facts["settings"]["guidance_interval"] == [0.2, 0.9] and facts["settings"]["step_cache"] == 0.1
    assert facts["quantize"] == "int8" and [place.quantize for place in asked_for] == ["int8"]
    assert [call["seed"] for call in pipe.calls] == [[7, 8, 9, 10], [11, 12, 13, 14], [15, 16]]
    assert [prompt for call in pipe.calls for prompt in call["prompts"]] == [
        each.prompt for each in pipe.asked
    ]
    assert all(
        call["output_type"] == "pt"
        and call["num_inference_steps"] == 9
        and call["sampler"] is None
        and call["guidance_interval"] == (0.2, 0.9)
        and call["step_cache"] == 0.1
        for call in pipe.calls
    )
    with Image.open(folder / "scenes.png") as sheet:
        assert sheet.width > 6 * 128


def test_an_autoencoder_alone_is_measured(
    font: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)  # the JSON is rounded before it is compared
    config = AutoencoderConfig(latent_channels=2, encoder=STAGES, decoder=STAGES)
    save_autoencoder(tmp_path / "model", Autoencoder(config))
    arguments = ["--model", str(tmp_path / "model"), "--count", "3", "-o", str(tmp_path / "out")]
    assert main(["evaluate", "reconstruction", *arguments]) == 0
    printed = capsys.readouterr().out
    facts = json.loads((tmp_path / "out" / "reconstruction.json").read_text("utf-8"))
    assert f"{facts['psnr_db']:.2f} dB" in printed
    assert facts["count"] == 3 and facts["split"] == "held_out" and facts["ssim"] < 1
    with Image.open(tmp_path / "out" / "reconstruction.png") as sheet:
        assert sheet.size == (3 * 130 - 2, 2 * 130 - 2)


def test_an_autoencoder_is_measured_on_pictures_and_each_number_says_what_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = AutoencoderConfig(latent_channels=2, encoder=STAGES, decoder=STAGES)
    save_autoencoder(tmp_path / "model", Autoencoder(config))
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(3):
        Image.effect_mandelbrot((40, 30), (-2, -1, 1, 1), 10 + number).save(pictures / f"{number}.png")
    arguments = ["--model", str(tmp_path / "model"), "--pictures", str(pictures), "--size", "24"]
    assert main(["evaluate", "reconstruction", *arguments, "-o", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    facts = json.loads((tmp_path / "out" / "reconstruction.json").read_text("utf-8"))
    assert facts["count"] == 3 and facts["size"] == 24 and facts["pictures"] == str(pictures)
    assert facts["filter_distance"] > 0 and facts["frechet_filters"] > 0
    # Without the published weights no number is called LPIPS or FID.
    assert "lpips" not in facts and "rfid" not in facts and "no FID" in " ".join(printed.split())
    with Image.open(tmp_path / "out" / "reconstruction.png") as sheet:
        assert sheet.size == (3 * 26 - 2, 2 * 26 - 2)
    assert main(["evaluate", "latents", *arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["count"] == 3


def test_latents_are_measured_and_an_autoencoder_scaled_by_them_is_written(
    font: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = AutoencoderConfig(latent_channels=2, encoder=STAGES, decoder=STAGES)
    save_autoencoder(tmp_path / "model", Autoencoder(config))
    options = ["--count", "3", "--seed", "5", "--split", "train"]
    measure = ["evaluate", "latents", *options, "--json", "--model"]
    assert main([*measure, str(tmp_path / "model"), "--save", str(tmp_path / "scaled")]) == 0
    before = json.loads(capsys.readouterr().out)
    assert before["mean"] == before["scaled mean"] and before["deviation"] == before["scaled deviation"]
    assert main([*measure, str(tmp_path / "scaled"), "-o", str(tmp_path / "out")]) == 0
    after = json.loads(capsys.readouterr().out)
    assert after["mean"] == pytest.approx(before["mean"], abs=1e-6)
    assert after["scaled mean"] == pytest.approx([0, 0], abs=1e-4)
    assert after["scaled deviation"] == pytest.approx([1, 1], abs=1e-4)
    assert json.loads((tmp_path / "out" / "latents.json").read_text("utf-8")) == after
    assert main(["evaluate", "latents", *options, "--model", str(tmp_path / "model")]) == 0
    assert f"{before['deviation'][1]:.3f}" in capsys.readouterr().out


def test_only_pictures_that_are_shown_stay_in_memory(
    font: None, bundled: SceneDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[tuple[int, ...]] = []
    compare = scenes.compare

    def seen(drawn: EmojiScenes, asked: Any, answered: Any, detector: SceneDetector) -> Any:
        kept.extend(answer.image.untyped_storage().nbytes() for answer in answered)
        return compare(drawn, asked, answered, detector)

    monkeypatch.setattr(scenes, "compare", seen)
    monkeypatch.setattr(command, "SHOWN", 2)
    monkeypatch.setattr(command, "_pipeline", lambda place: Truthful(7, 4))
    assert main(["evaluate", "scenes", "--count", "4", "--seed", "7", "--batch-size", "4"]) == 0
    whole = 4 * 3 * 128 * 128
    assert kept == [whole, whole, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["scenes", "--count", "0"], "count=0: measure at least one scene."),
        (["scenes", "--batch-size", "0"], "batch_size=0"),
        (["scenes", "--objects", "9999"], "objects=9999"),
        (["scenes", "--detector", "nowhere"], "nowhere holds no detector"),
        (["reconstruction", "--model", "nowhere"], "nowhere"),
        (["scenes", "-o", "/proc/measured"], "/proc/measured cannot be written"),
        (["scores"], "'scores' is not one of"),
        (["scenes", "--pictures", "there"], "--pictures goes with reconstruction, not with scenes."),
        (["reconstruction", "--pictures", "/nowhere"], "/nowhere is no folder."),
        (["reconstruction", "--inception", "/nowhere.pth"], "/nowhere.pth"),
        (["reconstruction", "--lpips", "/nowhere.safetensors"], "/nowhere.safetensors"),
        (["scenes", "--save", "there"], "--save goes with latents, not with scenes."),
        (["scenes", "--lpips", "there"], "--lpips goes with reconstruction, not with scenes."),
        (["latents", "--inception", "there"], "--inception goes with reconstruction, not with latents."),
        (["latents", "--guidance-scale", "3"], "--guidance-scale goes with scenes, not with latents."),
        (["latents", "--guidance-scale", "0"], "--guidance-scale goes with scenes, not with latents."),
        (["latents", "--num-inference-steps", "5"], "--num-inference-steps goes with scenes, not with"),
        (["reconstruction", "--sampler", "euler"], "--sampler goes with scenes, not with reconstruction."),
        (["reconstruction", "--detector", "there"], "--detector goes with scenes, not with reconstruction."),
        (["reconstruction", "--lora", "there"], "--lora goes with scenes, not with reconstruction."),
        (["latents", "--step-cache", "0.1"], "--step-cache goes with scenes, not with latents"),
        (["latents", "--quantize", "int8"], "--quantize goes with scenes, not with latents"),
        (["scenes", "--quantize", "int4"], "'int4' is not"),
        (["latents", "--guidance-interval", "0,0.5"], "--guidance-interval goes with scenes, not with"),
        (["scenes", "--guidance-interval", "0.5"], "--guidance-interval 0.5 is not two times. Use 0.1,0.9."),
        (["scenes", "--guidance-interval", "0.9,0.1"], "does not rise within 0 and 1"),
        (["scenes", "--step-cache", "-1"], "step_cache=-1.0 is not 0 or more"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", *arguments]) == 2
    printed = capsys.readouterr()
    assert complaint in printed.err and printed.err.count("\n") == 1 and not printed.out
