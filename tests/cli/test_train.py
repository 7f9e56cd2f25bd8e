"""`lineardit train`: a recipe explained, run, or refused."""

import os
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from lineardit.cli.app import main
from lineardit.data.emoji_atlas import Atlas
from lineardit.interop.native import load_autoencoder
from lineardit.training import autoencoder

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
    monkeypatch.setattr(autoencoder, "MEASURED_PICTURES", 4)


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


def together(arguments: list[str], folder: Path) -> tuple[list[int], list[str]]:
    """Exit codes and errors of two processes that torchrun would have started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            os.environ |= told | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            with (folder / f"errors{rank}").open("w") as errors:
                sys.stdout, sys.stderr = errors, errors
                main(arguments)
            os._exit(99)  # under torchrun the command itself ends the process
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return codes, [(folder / f"errors{rank}").read_text() for rank in range(2)]


def test_under_torchrun_processes_train_together_and_one_exports(
    recipe: str, tmp_path: Path, small: None
) -> None:
    place = tmp_path / "run"
    arguments = ["train", recipe, "train.batch_size=4", "-o", str(place), "--device", "cpu"]
    codes, said = together(arguments, tmp_path)
    assert codes == [0, 0], said
    assert said[0].endswith(f"written: {place / 'model'}\n") and not said[1]
    assert load_autoencoder(place / "model").config.stride == 4
    codes, said = together(arguments, tmp_path)
    assert codes == [2, 2]
    for rank in range(2):
        assert f"error: process {rank + 1} of 2: {place} holds a run at step 2: add --resume" in said[rank]


def test_a_plan_starts_nothing(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", recipe, "train.batch_size=24", "-o", str(tmp_path / "run"), "--plan"]
    assert (
        main([*arguments, "--nodes", "2", "--gpus", "3", "train.parallel=fsdp", "train.shard_within=3"]) == 0
    )
    out = capsys.readouterr().out
    assert "6 processes on 2 machines with 3 GPUs each: fsdp, each holds 1/3 of every tensor, 2 copies" in out
    assert "batch of 24 = 6 processes x 1 parts one after the other x 4 samples at once" in out
    assert out.split().count("total") == 1 and "fits a GPU of 12 GB" in out
    assert not (tmp_path / "run").exists()
    assert main([*arguments, "--gpus", "5"]) == 2
    assert "batch_size=24 does not divide among 5 processes" in capsys.readouterr().err


def test_info_tells_what_training_a_published_model_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "sana-0.6b", "--train", "--batch", "1", "--height", "64", "--width", "64"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    # 592 million weights: 16 bytes each with adamw and an average, and 4 more while it updates.
    assert ["1,", "adamw", "2.37", "2.37", "4.73", "2.37", "2.37", "14.20"] in rows
    assert main(["info", "sana-9b", "--train"]) == 2
    assert "sana-9b" in capsys.readouterr().err


def test_the_package_runs_as_a_module() -> None:
    code = (
        "import runpy, sys; sys.argv[1:] = ['--version']; runpy.run_module('lineardit', run_name='__main__')"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
