"""A pipeline whose steps and decoder are compiled: the same pictures, in one graph each."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lineardit.errors import InputError
from lineardit.kernels import native
from lineardit.pipeline import Pipeline


@pytest.fixture(scope="module")
def facts(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    script = Path(__file__).with_name("compiled_pictures.py")
    words = [sys.executable, str(script), str(tiny_model), str(tmp_path_factory.mktemp("compiled"))]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_pictures_stay_the_same_and_each_size_is_compiled_once(facts: dict[str, Any]) -> None:
    assert facts["before"] == 0, "nothing is compiled before it is needed"
    assert all(facts[name]["apart"] < 1e-5 for name in ("cached", "first", "again", "larger"))
    counts = [facts[name]["graphs"] for name in ("cached", "first", "again", "larger")]
    # With a step cache the decoder alone; then a step; of another size one with guidance, one without, and
    # the decoder.
    assert counts == [1, 2, 2, 5]


def test_in_half_precision_nothing_breaks_a_graph_either(facts: dict[str, Any]) -> None:
    assert facts["half"]["apart"] < 0.05 and facts["half"]["graphs"] == facts["larger"]["graphs"] + 2


def test_a_layer_that_is_not_finite_is_named_all_the_same(facts: dict[str, Any]) -> None:
    assert "layer transformer.blocks.0.feed_forward" in facts["named"]


def test_the_command_line_compiles(facts: dict[str, Any]) -> None:
    codes, graphs, same = facts["command"]
    assert codes == [0, 0] and graphs == 2 and same


def test_what_is_not_compiled_says_why(tiny_model: Path) -> None:
    offloaded = Pipeline.from_pretrained(tiny_model, device="cpu", offload=True)
    with pytest.raises(InputError, match="wait in their files are not compiled"):
        offloaded.compile()
    if native.compiler() is not None:
        pipe = Pipeline.from_pretrained(tiny_model, device="cpu")
        with native.using("native"), pytest.raises(InputError, match="cannot look into the C"):
            pipe.compile()
