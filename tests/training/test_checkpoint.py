"""Checkpoints come back exactly or are recognised as damaged, whatever happens to disk or process."""

import json
import logging
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lineardit.errors import CheckpointError, InputError, OutputError
from lineardit.training import checkpoint


def tensors_of(step: int) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(step)
    return {
        "model": {
            "weight": torch.randn(3, 5, generator=generator),
            "half": torch.randn(7, generator=generator).bfloat16(),
        },
        "optimizer": {"weight.moment": torch.randn(3, 5, generator=generator), "step": torch.tensor(step)},
    }


def state_of(step: int) -> dict[str, object]:
    return {"step": step, "loss": 1 / (step + 1), "recipe": {"name": "emoji", "betas": [0.9, 0.95]}}


def save(folder: Path, step: int, keep: int = 3) -> Path:
    return checkpoint.save(folder, step, tensors_of(step), state_of(step), keep)


def assert_is_step(loaded: checkpoint.Loaded | None, step: int) -> None:
    assert loaded is not None and loaded.step == step
    assert loaded.state == state_of(step)
    expected = tensors_of(step)
    assert loaded.tensors.keys() == expected.keys()
    for stem, state_dict in expected.items():
        assert loaded.tensors[stem].keys() == state_dict.keys()
        for name, tensor in state_dict.items():
            found = loaded.tensors[stem][name]
            assert found.dtype == tensor.dtype and torch.equal(found, tensor)


def test_what_was_saved_comes_back_exactly(tmp_path: Path) -> None:
    path = save(tmp_path, 7)
    assert path == tmp_path / "step-00000007"
    assert_is_step(checkpoint.load(path), 7)
    assert_is_step(checkpoint.load_newest(tmp_path), 7)


def test_nothing_is_pickled(tmp_path: Path) -> None:
    path = save(tmp_path, 7)
    assert sorted(file.name for file in path.iterdir()) == [
        "manifest.json",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]


def test_a_folder_without_checkpoints_has_no_newest(tmp_path: Path) -> None:
    assert checkpoint.load_newest(tmp_path) is None
    assert checkpoint.load_newest(tmp_path / "not there") is None


def test_only_the_newest_are_kept_and_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "step-notes.txt").write_text("mine")
    for step in (2, 3, 5, 11):
        save(tmp_path, step, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000005",
        "step-00000011",
        "step-notes.txt",
    ]


def test_tied_and_strided_tensors_are_saved_apart(tmp_path: Path) -> None:
    weight = torch.arange(15.0).reshape(3, 5)
    path = checkpoint.save(tmp_path, 1, {"model": {"a": weight, "b": weight, "c": weight.T}}, {}, keep=1)
    model = checkpoint.load(path).tensors["model"]
    assert (
        torch.equal(model["a"], weight)
        and torch.equal(model["b"], weight)
        and torch.equal(model["c"], weight.T)
    )


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_anywhere_is_noticed_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "step-00000007"
    if not path.exists():
        save(tmp_path, 7)
    file = data.draw(st.sampled_from(sorted(path.iterdir())))
    sound = file.read_bytes()
    position = data.draw(st.integers(0, len(sound) - 1))
    flipped = bytearray(sound)
    flipped[position] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(flipped)
    try:
        loaded = checkpoint.load(path)
    except CheckpointError:
        pass
    else:
        assert file.name == "manifest.json", "only the layout of the manifest may change unnoticed"
        assert_is_step(loaded, 7)
    finally:
        file.write_bytes(sound)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]
)
@pytest.mark.parametrize("damage", ["truncated", "missing", "empty", "longer", "deep"])
def test_a_damaged_file_makes_loading_step_back_and_say_so(
    tmp_path: Path, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 5)
    file = save(tmp_path, 11) / name
    sound = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        written = {"truncated": sound[:-3], "empty": b"", "longer": sound + b"}", "deep": b"[" * 100_000}
        file.write_bytes(written[damage])
    with caplog.at_level(logging.WARNING):
        assert_is_step(checkpoint.load_newest(tmp_path), 5)
    assert "step-00000011" in caplog.text and name in caplog.text and "step-00000005" in caplog.text


def test_nothing_is_logged_when_the_newest_is_sound(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, 5)
    checkpoint.load_newest(tmp_path)
    assert not caplog.records


def test_when_all_are_damaged_training_does_not_silently_start_anew(tmp_path: Path) -> None:
    for step in (5, 11):
        (save(tmp_path, step) / "state.json").unlink()
    with pytest.raises(CheckpointError, match="every checkpoint .* is damaged .step-00000011, step-00000005"):
        checkpoint.load_newest(tmp_path)


def test_a_checkpoint_renamed_to_another_step_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 5)
    path.rename(tmp_path / "step-00000006")
    with pytest.raises(CheckpointError, match="belongs to another"):
        checkpoint.load(tmp_path / "step-00000006")


def test_a_manifest_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    path = save(tmp_path, 5)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["../secret.safetensors"] = manifest["files"]["model.safetensors"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="foreign file"):
        checkpoint.load(path)


def test_after_stepping_back_the_same_step_can_be_saved_again(tmp_path: Path) -> None:
    save(tmp_path, 5)
    (save(tmp_path, 11) / "model.safetensors").write_bytes(b"damaged")
    again = save(tmp_path, 7, keep=1)
    assert again.is_dir(), "a later, damaged one must not push out the one just written"
    assert_is_step(checkpoint.load_newest(tmp_path), 7)
    save(tmp_path, 11, keep=1)
    assert_is_step(checkpoint.load_newest(tmp_path), 11)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000011-2"]


def test_a_full_disk_leaves_the_older_checkpoint_and_no_rubbish(tmp_path: Path) -> None:
    save(tmp_path, 5, keep=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    large = {"model": {"weight": torch.zeros(100_000)}}
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OutputError, match="checkpoint 11 was not written"):
            checkpoint.save(tmp_path, 11, large, {}, keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]
    assert_is_step(checkpoint.load_newest(tmp_path), 5)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="file/runs"):
        save(tmp_path / "file" / "runs", 1)


@pytest.mark.parametrize("state", [{"loss": float("nan")}, {"path": Path("x")}])
def test_a_state_that_json_cannot_hold_is_refused_before_anything_is_written(
    tmp_path: Path, state: dict[str, object]
) -> None:
    with pytest.raises(InputError, match="must be JSON"):
        checkpoint.save(tmp_path, 1, tensors_of(1), state, keep=1)
    assert not list(tmp_path.iterdir())


def test_a_stem_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="file stem"):
        checkpoint.save(tmp_path, 1, {"../model": {}}, {}, keep=1)


# Every call that changes the disk is a place to be killed at; a child process is killed at each in turn.
KILLED_EVERYWHERE = """
import os, shutil, signal, sys
from pathlib import Path
import torch
from lineardit.training import checkpoint

folder = Path(sys.argv[1])

def save(step):
    weight = torch.full((40_000,), float(step))
    checkpoint.save(folder, step, {"model": {"w": weight}, "ema": {"w": -weight}}, {"step": step}, keep=2)

def killed_at(moment):
    calls = 0
    def watched(function):
        def call(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)
        return call
    for module, name in ((os, "fsync"), (os, "rename"), (os, "unlink"), (os, "rmdir"), (os, "mkdir")):
        setattr(module, name, watched(getattr(module, name)))
    checkpoint.write_tensors = watched(checkpoint.write_tensors)

save(1); save(2)
last, moment, survived = 2, 1, False
while not survived:
    child = os.fork()
    if child == 0:
        killed_at(moment)
        save(last + 1)
        os._exit(0)
    survived = os.waitpid(child, 0)[1] == 0
    loaded = checkpoint.load_newest(folder)
    assert loaded.step in (last, last + 1), (moment, loaded.step, last)
    assert loaded.state == {"step": loaded.step}
    assert (loaded.tensors["model"]["w"] == loaded.step).all()
    assert (loaded.tensors["ema"]["w"] == -loaded.step).all()
    intact = [path for path in folder.glob("step-*") if checkpoint.load(path)]
    assert len(intact) >= 2, moment
    last, moment = loaded.step, moment + 1
save(last + 1)
assert sorted(path.name for path in folder.iterdir()) == [f"step-{last:08d}", f"step-{last + 1:08d}"]
sys.stdout.write(f"{moment - 2} moments")
"""


def test_a_save_killed_at_any_moment_leaves_a_sound_checkpoint(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED_EVERYWHERE, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.split()[0]) >= 10, "a save has at least ten moments to be killed at"
