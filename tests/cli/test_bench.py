"""`lineardit bench image`: where the time of one picture goes."""

import re
from pathlib import Path

import pytest

from lineardit.bench.image import PARTS
from lineardit.bench.stamp import hardware_stamp, stamp_line
from lineardit.cli.app import main


def test_the_parts_are_less_than_the_whole(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lineardit.bench.image.WARM_UPS", 0)
    table = tmp_path / "table.md"
    arguments = ["--model", str(tiny_model), "--runs", "1", "--num-inference-steps", "2", "--threads", "1"]
    assert main(["bench", "image", *arguments, "-o", str(table)]) == 0
    out = capsys.readouterr().out
    assert table.read_text("utf-8").strip() == out.strip()
    rows = dict(re.findall(r"^\| \**([a-z, ]+?)\** \| \**([\d.]+)\** \|$", out, re.MULTILINE))
    whole = float(rows.pop("process, start to end"))
    assert tuple(rows) == PARTS
    parts = {part: float(seconds) for part, seconds in rows.items()}
    # Each is rounded to 0.01.
    assert 0 < sum(parts.values()) < whole + 0.04
    assert parts["import"] > parts["decode"]
    assert "fp32, 2 guided steps, median of 1 processes" in out and "1 of" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["speed"], "unknown measurement 'speed'. Use one of image."),
        (["image", "--runs", "0"], "runs=0 is not a positive number"),
    ],
)
def test_what_cannot_be_measured_gets_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_a_measured_process_that_fails_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "image", "--model", str(tmp_path), "--runs", "1"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "is a folder without a model" in error


def test_the_stamp_says_on_what_was_measured() -> None:
    import torch

    stamp = hardware_stamp()
    line = stamp_line(stamp)
    assert stamp["torch"] == torch.__version__ and stamp["threads"] == torch.get_num_threads()
    assert stamp["processor"] in line and torch.__version__ in line and "\n" not in line
    described = {**stamp, "features": [], "gpu": ["GPU 1"], "threads": 3, "cores": 4}
    assert "(no bf16), 3 of 4 cores, GPU 1; torch" in stamp_line(described)
