"""Names of the models that are served: they tell nothing of where a model lies, and none has two meanings."""

from pathlib import Path

import pytest

from lineardit.config.steps import steps_drawn
from lineardit.errors import InputError
from lineardit.serving.device import model_names


def test_a_model_is_called_by_the_last_part_of_its_place() -> None:
    assert model_names(()) == {"emoji": None}
    assert model_names(("emoji", "/models/cats", "someone/dogs")) == {
        "emoji": None,
        "cats": "/models/cats",
        "dogs": "someone/dogs",
    }


def test_two_of_one_name_are_refused() -> None:
    with pytest.raises(InputError, match="two models are called cats"):
        model_names(("/one/cats", "/other/cats"))


def test_a_folder_of_the_bundled_models_name_is_that_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "emoji").mkdir()
    assert model_names(("emoji",)) == {"emoji": "emoji"}


def test_a_strength_draws_its_share_of_the_steps_and_one_at_least() -> None:
    assert [steps_drawn(100, strength) for strength in (None, 0.29, 0.001, 1.0)] == [100, 29, 1, 100]
