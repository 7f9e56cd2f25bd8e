"""`lineardit generate`: pictures with their settings inside, or one line that says what is wrong."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lineardit.cli.app import main
from lineardit.cli.generate import weighted_lora
from lineardit.errors import InputError

CAT = "a red apple left of a cat"


@pytest.fixture
def model(tiny_model: Path) -> list[str]:
    return ["--model", str(tiny_model), "--device", "cpu"]


def settings_of(path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    capsys.readouterr()
    assert main(["info", str(path), "--json"]) == 0
    settings: dict[str, object] = json.loads(capsys.readouterr().out)["lineardit"]
    return settings


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_pictures_are_named_after_prompt_and_seed(
    model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--seed", "6", "--num-images", "2", "--num-inference-steps", "1"]
    assert main(["generate", CAT, "Two DOGS!", *model, "-o", str(tmp_path / "new"), *arguments]) == 0
    name = "a-red-apple-left-of-a-cat"
    expected = [f"{name}-6.png", f"{name}-7.png", "two-dogs-8.png", "two-dogs-9.png"]
    assert files(tmp_path / "new") == expected
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"{tmp_path / 'new' / each}  seed {6 + index}" for index, each in enumerate(expected)]


def test_a_picture_tells_how_it_was_made_and_can_be_made_again(
    model: list[str], tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "cat.png", tmp_path / "other" / "cat.PNG"
    chosen = ["--height", "16", "--width", "40", "--guidance-scale", "2.5", "--sampler", "euler"]
    chosen += ["--negative-prompt", 'fog, "rain"', "--seed", "11", "--num-inference-steps", "2"]
    assert main(["generate", CAT, *model, "-o", str(first), *chosen]) == 0
    settings = settings_of(first, capsys)
    assert settings.pop("version")
    assert settings == {
        "prompt": CAT,
        "negative_prompt": 'fog, "rain"',
        "height": 16,
        "width": 40,
        "num_inference_steps": 2,
        "guidance_scale": 2.5,
        "sampler": "euler",
        "seed": 11,
        "model": str(tiny_model),
        "strength": None,
        "controlnet_conditioning_scale": None,
        "guidance_interval": [0.0, 1.0],
        "step_cache": 0.0,
    }
    assert main(["generate", CAT, *model, "-o", str(second), *chosen]) == 0
    assert second.read_bytes() == first.read_bytes()
    with Image.open(first) as picture:
        assert picture.size == (40, 16) and "Steps: 2, Sampler: euler" in picture.info["parameters"]


def test_a_quantized_model_draws_nearly_the_same_and_its_pictures_say_so(
    model: list[str], tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exact, rounded = tmp_path / "exact.png", tmp_path / "rounded.png"
    assert main(["generate", CAT, *model, "-o", str(exact)]) == 0
    assert main(["generate", CAT, *model, "-o", str(rounded), "--quantize", "int8"]) == 0
    assert settings_of(rounded, capsys)["model"] == f"{tiny_model}, int8"
    one, two = (np.array(Image.open(place)).astype(int) for place in (exact, rounded))
    assert 0 < np.abs(one - two).mean() < 5


def test_each_picture_of_several_is_the_one_made_alone(model: list[str], tmp_path: Path) -> None:
    assert main(["generate", CAT, "two dogs", *model, "-o", str(tmp_path), "--num-images", "2"]) == 0
    assert main(["generate", "two dogs", *model, "-o", str(tmp_path / "alone.png"), "--seed", "3"]) == 0
    assert (tmp_path / "alone.png").read_bytes() == (tmp_path / "two-dogs-3.png").read_bytes()


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("ein großer Baum 🌳", "ein-großer-baum-0.png"),
        ("一只红苹果", "一只红苹果-0.png"),
        ("🐈", "picture-0.png"),
        ("../../etc/passwd", "etc-passwd-0.png"),
        ("--", "picture-0.png"),
        ("[/bold] of [red]", "bold-of-red-0.png"),
        ("a cat " * 30, ("a-cat-" * 10)[:60].rstrip("-") + "-0.png"),
        ("𠀀" * 300, "𠀀" * 15 + "-0.png"),
    ],
)
def test_any_prompt_makes_a_plain_file_name(
    model: list[str], tmp_path: Path, prompt: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "[red] :cat: [/x]"
    options = [*model, "-o", str(folder), "--num-inference-steps", "1", "--guidance-scale", "1"]
    assert main(["generate", *options, "--", prompt]) == 0
    assert files(folder) == [name]
    assert capsys.readouterr().err.splitlines()[-1] == f"{folder / name}  seed 0"
    assert settings_of(folder / name, capsys)["prompt"] == prompt


def test_a_picture_that_is_there_is_replaced_by_force_alone(
    model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "cat.png"
    place.write_bytes(b"mine")
    assert main(["generate", CAT, *model, "-o", str(place)]) == 2
    assert f"{place} exists. Add --force" in capsys.readouterr().err
    assert place.read_bytes() == b"mine"
    assert main(["generate", CAT, *model, "-o", str(place), "--force"]) == 0
    assert place.read_bytes().startswith(b"\x89PNG") and files(tmp_path) == ["cat.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([""], "the prompt is empty"),
        ([CAT, "  "], "prompt 2 of 2 is empty"),
        ([CAT, "--height", "20"], "height=20 is not a multiple of 8, the pixels per token. Use 16 or 24."),
        ([CAT, "--num-inference-steps", "-3"], "num_inference_steps=-3 is not a positive whole number"),
        ([CAT, "--num-inference-steps", "2.5"], "Invalid value for '--num-inference-steps'"),
        (
            [CAT, "--sampler", "eular"],
            "unknown sampler 'eular'. Did you mean euler? Use one of euler, heun, dpm++",
        ),
        ([CAT, "--guidance-scale", "nan"], "guidance_scale=nan is not between 0 and 100"),
        ([CAT, "--seed", "-1"], "seed=-1 is not between 0"),
        ([CAT, "--num-images", "0"], "num_images=0 is not a positive number"),
        ([CAT, "--dtype", "int4"], "dtype=int4 is unknown. Use auto or one of fp32"),
        ([CAT, "--device", "tpu"], "device=tpu is not there"),
        ([CAT, "--colour", "red"], "No such option: --colour"),
        ([CAT, "--control-scale", "0.5"], "--control-scale is given without a picture to follow."),
    ],
)
def test_bad_input_gets_one_line_and_writes_nothing(
    tiny_model: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--model", str(tiny_model), "-o", str(tmp_path / "out")]
    assert main(["generate", *where, *arguments]) == 2
    out, error = capsys.readouterr()
    assert not out and error.startswith("error: ") and error.count("\n") == 1
    assert message in error
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [("gone", "gone is no folder and no file here"), (".", "is a folder without a model")],
)
def test_a_model_that_is_none_gets_one_line(
    tmp_path: Path, name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", CAT, "--model", str(tmp_path / name), "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert files(tmp_path) == []


def test_one_file_for_two_pictures_and_other_formats_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", CAT, "two dogs", "-o", str(tmp_path / "cat.png")]) == 2
    assert "is one file for 2 pictures. Give a folder with -o." in capsys.readouterr().err
    assert main(["generate", CAT, "-o", str(tmp_path / "cat.jpg")]) == 2
    assert "has the ending .jpg: pictures are written as .png." in capsys.readouterr().err
    assert files(tmp_path) == []


def test_a_place_that_cannot_be_written_is_found_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    # There is no such model: had it been looked for, the message would say so.
    arguments = ["generate", CAT, "--model", "gone", "-o"]
    for place in (tmp_path / "file" / "pictures", tmp_path / "file" / "cat.png", tmp_path / ("x" * 300)):
        assert main([*arguments, str(place)]) == 2
        error = capsys.readouterr().err
        assert "cannot be written to" in error and error.count("\n") == 1
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert main([*arguments, str(tmp_path / "new")]) == 2
    assert f"{tmp_path} is not a folder you may write in" in capsys.readouterr().err
    assert files(tmp_path) == ["file"]


def test_a_disk_that_fills_up_leaves_no_half_picture(
    model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(image: Image.Image, place: Path, *_: object, **__: object) -> None:
        place.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    assert main(["generate", CAT, *model, "-o", str(tmp_path / "cat.png")]) == 2
    assert (
        capsys.readouterr().err
        == f"error: {tmp_path / 'cat.png'} was not written: No space left on device.\n"
    )
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("lora", "place", "weight"),
    [
        ("hf://name/repo/style.safetensors", "hf://name/repo/style.safetensors", 1.0),
        ("hf://name/repo/style.safetensors:0.5", "hf://name/repo/style.safetensors", 0.5),
        ("style:0.5", "style", 0.5),
        ("name/repo", "name/repo", 1.0),
    ],
)
def test_only_what_follows_the_place_of_a_lora_is_its_weight(lora: str, place: str, weight: float) -> None:
    assert weighted_lora(lora) == (place, weight)
    with pytest.raises(InputError, match="'much' is no number"):
        weighted_lora(f"{place}:much")


def test_a_long_prompt_is_drawn_with_a_warning_that_names_the_rest(
    model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "a red apple left of a cat left of a dogs house of cat"
    assert main(["generate", long, *model, "-o", str(tmp_path), "--num-inference-steps", "1"]) == 0
    warning, place = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: ") and warning.endswith("not in the picture: dogs house of cat")
    assert place.endswith("seed 0")
