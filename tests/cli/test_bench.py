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
        (["speed"], "unknown measurement 'speed'. Use one of image, attention, models, step, decode, peers."),
        (["image", "--runs", "0"], "runs=0 is not a number of 1 or more. Use 5."),
        (["attention", "--budget", "-1"], "budget=-1.0 is not a number of 0 or more. Use 10."),
        (["attention", "--budget", "inf"], "budget=inf is not a number of 0 or more. Use 10."),
        (["image", "--threads", "-1"], "threads=-1 is not a number of 0 or more. Use 0."),
        (
            ["attention", "--runs", "3"],
            "--runs belongs to bench image, not to bench attention. Leave it out.",
        ),
        (
            ["image", "--budget", "3"],
            "--budget belongs to bench attention, models, step, decode, peers, not to bench image",
        ),
        (["attention", "--tokens", "256,many"], "tokens='256,many' is no list of positive whole numbers."),
        (
            ["models", "--pixels", "999", "--only", "sdxl-unet"],
            "pixels=999 is no size of sdxl-unet. Use 1024.",
        ),
        (["models", "--only", "dit"], "unknown network 'dit'. Use one of dit-xl/2"),
    ],
)
def test_what_cannot_be_measured_gets_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_a_measured_process_that_fails_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "image", "--model", str(tmp_path), "--runs", "1"]) == 2
    error = capsys.readouterr().err
    assert (
        error.startswith(f"error: {tmp_path} ")
        and error.count("\n") == 1
        and "is a folder without a model" in error
    )


def test_attention_is_measured_into_a_table_and_a_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, plot = tmp_path / "table.md", tmp_path / "plot.svg"
    arguments = ["--tokens", "24,16", "--budget", "5", "--device", "cpu", "--plot", str(plot)]
    assert main(["bench", "attention", *arguments, "-o", str(table)]) == 0
    out = capsys.readouterr().out
    assert table.read_text("utf-8").strip() == out.strip()
    rows = re.findall(r"^\| (\d+) \| ([a-z, ]+) \| [\d.]+ \| [\d.]+ \|", out, re.MULTILINE)
    names = ["softmax, written out", "softmax, fused", "linear, einsum", "linear, as shipped"]
    assert rows == [(tokens, name) for tokens in ("16", "24") for name in names]
    assert plot.read_text("utf-8").count("<polyline") == 4
    assert "on cpu, fp32, at most 5 s a measurement" in out and "The article's shape" not in out


def test_a_page_is_printed_before_a_plot_that_has_nothing_to_show(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lineardit.bench.attention.available_memory", lambda device: 1)
    arguments = ["--tokens", "16", "--device", "cpu"]
    assert main(["bench", "attention", *arguments]) == 0
    assert capsys.readouterr().out.startswith("# Attention, softmax and linear")
    assert main(["bench", "attention", *arguments, "--plot", str(tmp_path / "plot.svg")]) == 2
    printed = capsys.readouterr()
    assert printed.out.startswith("# Attention, softmax and linear") and "no points" in printed.err


def test_networks_can_be_counted_without_being_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "models", "--only", "dit-xl/2", "--pixels", "256", "--budget", "0"]) == 0
    out = capsys.readouterr().out
    assert "| dit-xl/2 | 256 | 256 | 674.8 | 237.2 | 50 | 24.3 | 0.622 |" in out and "counted only" in out


def test_a_table_that_cannot_be_written_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--tokens", "16", "--budget", "0", "-o", str(tmp_path / "nowhere" / "table.md")]
    assert main(["bench", "attention", *arguments]) == 2
    assert "table.md was not written: No such file or directory." in capsys.readouterr().err


def test_the_stamp_says_on_what_was_measured() -> None:
    import torch

    stamp = hardware_stamp()
    line = stamp_line(stamp)
    assert stamp["torch"] == torch.__version__ and stamp["threads"] == torch.get_num_threads()
    assert stamp["processor"] in line and torch.__version__ in line and "\n" not in line
    described = {**stamp, "features": [], "gpu": ["GPU 1"], "threads": 3, "cores": 4}
    assert "(no bf16), 3 of 4 cores, GPU 1; torch" in stamp_line(described)
