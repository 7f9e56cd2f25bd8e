"""`lineardit prepare`: a table, a report, and a folder of training data."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lineardit.cli.app import main
from lineardit.data.prepared import PreparedData


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(6):
        sides = (24, 24) if number < 4 else (16, 32)
        levels = np.random.default_rng(number).integers(0, 256, (*sides, 3), dtype=np.uint8)
        Image.fromarray(levels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a cat")
    (folder / "bad [red].png").write_text("no picture")
    return folder


def test_pictures_are_prepared_and_those_that_are_bad_are_listed(
    pictures: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["prepare", str(pictures), "-o", str(out), "--model", str(tiny_model), "--device", "cpu"]
    assert main([*arguments, "--processes", "1"]) == 0
    written, shown = capsys.readouterr()
    assert written == f"written: {out} (6 pictures in 2 shards)\n"
    assert "6 of 7 can be used" in shown and "left out: unreadable" in shown and "bad [red].png" in shown
    report = json.loads((out / "report.json").read_text())
    assert report["left_out"] == {"unreadable": 1} and report["used"] == 6
    assert report["files_left_out"][0]["file"] == "bad [red].png"
    assert PreparedData(out).counts == (2, 4)

    capsys.readouterr()
    assert main([*arguments, "--processes", "1"]) == 0
    assert "2 of them as they were" in capsys.readouterr().out
    assert main([*arguments, "--size", "32"]) == 2
    assert "prepared with other settings (buckets)" in capsys.readouterr().err


def test_without_an_output_pictures_are_only_checked(
    pictures: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(pictures.iterdir())
    report = tmp_path / "report.json"
    arguments = ["prepare", str(pictures), "--model", str(tiny_model), "--report", str(report)]
    assert main([*arguments, "--caption", "a picture"]) == 0
    out, shown = capsys.readouterr()
    assert not out and "6 of 7 can be used" in shown
    assert json.loads(report.read_text())["found"] == 7
    assert sorted(pictures.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone"], "gone does not exist"),
        (["pictures", "--size", "20"], "size=20 is no multiple of step=8. Use 16 or 24"),
        (["pictures", "--step", "6"], "step=6 is no multiple of 8, the pixels per token"),
        (["pictures", "--processes", "0"], "processes=0 is not a positive number"),
        (["pictures", "--caption-column", "text=much"], "'much' is no weight. Use text=0.5"),
        (["pictures", "--max-aspect", "0"], "max_aspect"),
        (["pictures", "-o", "pictures"], "pictures holds something else"),
        (["pictures", "--model", "nowhere"], "nowhere"),
    ],
)
def test_what_is_wrong_gets_one_line_and_writes_nothing(
    pictures: Path,
    tiny_model: Path,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    model = [] if "--model" in arguments else ["--model", str(tiny_model)]
    assert main(["prepare", *arguments, *model, "--device", "cpu"]) == 2
    out, error = capsys.readouterr()
    assert not out and error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert sorted(tmp_path.rglob("*")) == before


def test_help_imports_no_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys\nfrom lineardit.cli.app import main\nmain(['prepare', '--help'])\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
