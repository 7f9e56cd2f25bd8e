"""`lineardit train`: a recipe explained, run, or refused."""

import tomllib
from pathlib import Path

import pytest
import torch

from lineardit.cli.app import main
from lineardit.data.emoji_atlas import Atlas
from lineardit.interop.native import load_autoencoder
from lineardit.training import runs

RECIPE = """
kind = "autoencoder"
[model]
latent_channels = 4
encoder = [{ width = 8, depth = 0 }, { width = 8, depth = 1 }, { width = 16, depth = 1 }]
decoder = [{ width = 8, depth = 0 }, { width = 8, depth = 1 }, { width = 16, depth = 1 }]
[scenes]
size = 32
objects = 12
placement_step = 4
[train]
steps = 2
batch_size = 3
dtype = "fp32"
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return str(path)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Glyphs that need no font, and a short measurement."""

    def from_font(names: tuple[str, ...], path: Path | None = None) -> Atlas:
        return Atlas(names, torch.full((len(names), 4, 8, 8), 255, dtype=torch.uint8))

    monkeypatch.setattr(Atlas, "from_font", from_font)
    monkeypatch.setattr(runs, "MEASURED_SCENES", 4)


def test_explain_prints_every_field_and_trains_nothing(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", recipe, "train.steps=7", "--explain", "-o", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "# Steps of the whole run, those before an interruption included.\ntrain.steps = 7\n" in out
    assert tomllib.loads(out)["train"]["batch_size"] == 3
    assert not (tmp_path / "run").exists()


def test_a_recipe_is_run_and_resumed(
    recipe: str, tmp_path: Path, small: None, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "run"
    arguments = ["train", recipe, "-o", str(place), "--device", "cpu"]
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"written: {place / 'model'}\n"
    assert load_autoencoder(place / "model").config.stride == 4
    assert main([*arguments, "train.steps=3"]) == 2
    assert "holds a run at step 2: add --resume" in capsys.readouterr().err
    assert main([*arguments, "train.steps=3", "--resume"]) == 0
    assert (place / "step-00000003").is_dir()


def test_without_an_output_a_run_is_kept_under_its_recipe_s_name(
    recipe: str, tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", recipe, "train.steps=1", "--device", "cpu"]) == 0
    assert (tmp_path / "runs" / "tiny" / "model" / "lineardit.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.learning_rat=1"], "unknown key train.learning_rat; did you mean train.learning_rate?"),
        (["train.steps=0"], "train.steps=0"),
        (["steps"], "'steps' is no override. Write key=value"),
        (["--device", "tpu"], "device=tpu is not there. Use auto or one of cpu"),
    ],
)
def test_what_is_wrong_gets_one_line(
    recipe: str, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", recipe, *arguments, "-o", str(tmp_path / "run")]) == 2
    out, error = capsys.readouterr()
    assert not out and error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not (tmp_path / "run").exists()


def test_a_recipe_that_is_not_there_is_answered_with_those_that_are(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(tmp_path / "other.toml")]) == 2
    error = capsys.readouterr().err
    assert "other.toml cannot be read" in error and f"Recipes there: {recipe}." in error
