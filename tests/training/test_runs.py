"""From a recipe to a finished model."""

from pathlib import Path

import pytest
import torch

from lineardit.config.files import parse_run
from lineardit.config.runs import AutoencoderRun, Run
from lineardit.data.emoji_atlas import Atlas
from lineardit.errors import InputError
from lineardit.interop.native import describe_model, load_autoencoder
from lineardit.training import autoencoder
from lineardit.training.checkpoint import load_newest
from lineardit.training.runs import pick_device, start

RECIPE = """
kind = "autoencoder"
crop = 16
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
warmup_steps = 0
learning_rate = 1e-3
"""


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short measurement, and glyphs that need no font."""

    def from_font(names: tuple[str, ...], path: Path | None = None) -> Atlas:
        glyphs = torch.randint(0, 256, (len(names), 4, 8, 8), generator=torch.Generator().manual_seed(0))
        glyphs[:, 3] = 255
        return Atlas(names, glyphs.to(torch.uint8))

    monkeypatch.setattr(Atlas, "from_font", from_font)
    monkeypatch.setattr(autoencoder, "MEASURED_PICTURES", 8)


def recipe(*overrides: str) -> Run:
    return parse_run(RECIPE, overrides)


def test_an_autoencoder_is_trained_measured_and_written(tmp_path: Path) -> None:
    folder = start(recipe(), tmp_path / "run", resume=False, device="cpu")
    assert folder == tmp_path / "run" / "model"
    model, found = load_autoencoder(folder), load_newest(tmp_path / "run")
    assert found is not None and describe_model(folder)[1] == {"steps_trained": 2}
    assert len(model.config.latent_shift) == len(model.config.latent_scale) == 4
    assert min(model.config.latent_scale) > 0 and len(set(model.config.latent_scale)) == 4
    for name, value in model.state_dict().items():
        assert torch.equal(value, found.tensors["ema"][name])


def test_a_run_goes_on_with_resume_and_the_seed_decides_the_weights(tmp_path: Path) -> None:
    torch.manual_seed(1)
    start(recipe("train.steps=1"), tmp_path / "parts", resume=False, device="cpu")
    start(recipe(), tmp_path / "parts", resume=True, device="cpu")
    torch.manual_seed(2)
    start(recipe(), tmp_path / "whole", resume=False, device="cpu")
    # The schedule of a one-step run is another one, but its only step is at the full rate, as here.
    parts, whole = (load_newest(tmp_path / name) for name in ("parts", "whole"))
    assert parts is not None and whole is not None
    for name, value in whole.tensors["model"].items():
        assert torch.equal(value, parts.tensors["model"][name])


def test_a_run_may_start_from_the_weights_of_another(tmp_path: Path) -> None:
    folder = start(recipe(), tmp_path / "first", resume=False, device="cpu")
    second = recipe(f'start="{folder}"', "train.steps=1", "train.learning_rate=1e-9", "train.seed=5")
    assert isinstance(second, AutoencoderRun) and second.start == folder
    start(second, tmp_path / "second", resume=False, device="cpu")
    found = load_newest(tmp_path / "second")
    assert found is not None
    for name, value in load_autoencoder(folder).state_dict().items():
        torch.testing.assert_close(found.tensors["model"][name], value, rtol=0, atol=1e-7)


@pytest.mark.parametrize("device", ["tpu", "cuda:99", "meta", ""])
def test_a_device_that_is_not_here_is_refused(device: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"device={device} is not there. Use auto or one of cpu"):
        start(recipe(), tmp_path / "run", resume=False, device=device)
    assert not (tmp_path / "run").exists()


def test_auto_is_a_device_that_is_here() -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert pick_device("auto").type == expected
    assert pick_device("cpu") == torch.device("cpu")
