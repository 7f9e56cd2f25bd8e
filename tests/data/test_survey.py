"""Pictures checked before anything is made of them: sorted, counted, remembered, in several processes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lineardit.config.data import BucketConfig, CheckConfig
from lineardit.data import checks
from lineardit.data.checks import CheckLog, Finding, check_source
from lineardit.data.folder import FolderSource
from lineardit.data.survey import Survey, survey
from lineardit.errors import OutputError

BUCKETS = BucketConfig(sizes=(32,), step=8, max_aspect=2.0)


def noise(width: int, height: int, seed: int) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "pictures"
    place.mkdir()
    for number, (width, height) in enumerate([(32, 32), (40, 40), (64, 32), (32, 64), (24, 24)]):
        noise(width, height, number).save(place / f"{number}.png")
        (place / f"{number}.txt").write_text(f"number {number}")
    return place


def look(folder: Path, log: CheckLog | None = None, processes: int = 1, **options: object) -> Survey:
    return survey(FolderSource(folder), BUCKETS, CheckConfig(**options), log=log, processes=processes)


def test_good_pictures_come_into_buckets(folder: Path) -> None:
    found = look(folder)
    assert found.found == 5 and not found.problems
    sizes = {bucket: [entry.key for entry in entries] for bucket, entries in found.buckets().items()}
    assert sizes == {(24, 40): ["2.png"], (40, 24): ["3.png"], (32, 32): ["0.png", "1.png", "4.png"]}
    report = found.report()
    assert [row["enlarged"] for row in report["buckets"]] == [0, 0, 1]
    assert report["captions"] == 5 and report["used"] == 5
    json.dumps(report)


def test_bad_files_are_left_out_counted_and_named(folder: Path) -> None:
    (folder / "0.png").write_bytes((folder / "0.png").read_bytes()[:600])
    (folder / "1.txt").unlink()
    noise(16, 16, 9).save(folder / "4.png")
    (folder / "2.png").write_text("no picture")
    (folder / "6.png").symlink_to("gone.png")
    found = look(folder)
    kinds = {kind: [problem.key for problem in problems] for kind, problems in found.kinds().items()}
    assert kinds == {
        "truncated": ["0.png"],
        "no caption": ["1.png"],
        "too small": ["4.png"],
        "unreadable": ["2.png", "6.png"],
    }
    assert {problem.key: problem.reason for problem in found.problems}["4.png"] == (
        "too small: 16 x 16 would be enlarged 2.00 times to 32 x 32"
    )
    assert found.report()["left_out"] == {"unreadable": 2, "truncated": 1, "no caption": 1, "too small": 1}
    assert [entry.key for entry in found.entries] == ["3.png"]


def test_limits_and_a_caption_for_all_are_the_caller_s(folder: Path) -> None:
    (folder / "1.txt").unlink()
    found = look(folder, caption="a picture", max_pixels=40 * 40, max_enlargement=1.0)
    assert {problem.key: problem.kind for problem in found.problems} == {
        "2.png": "too many pixels", "3.png": "too many pixels", "4.png": "too small"
    }  # fmt: skip
    assert found.given == 1 and found.entries[1].captions == (("a picture", 1.0),)


def test_pictures_that_repeat_are_told_and_used(folder: Path) -> None:
    (folder / "9.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "9.txt").write_text("again")
    found = look(folder)
    assert found.repeats == ["9.png"] and len(found.entries) == 6


def test_what_was_looked_at_is_not_looked_at_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    examine = checks.examine

    def counted(key: str, *rest: object) -> Finding:
        seen.append(key)
        return examine(key, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(checks, "examine", counted)
    log = CheckLog(tmp_path / "out" / "checks.jsonl")
    first = look(folder, log)
    assert len(seen) == 5
    with log.path.open("a") as file:
        file.write("[" * 100_000 + '\n{"key": "cut o')
    assert look(folder, log).report() == first.report() and len(seen) == 5
    noise(32, 32, 77).save(folder / "1.png")
    look(folder, log)
    assert seen[5:] == ["1.png"]
    look(folder, log, max_pixels=1000)
    assert len(seen) == 11


def test_a_stopped_check_goes_on_where_it_was(folder: Path, tmp_path: Path) -> None:
    log = CheckLog(tmp_path / "checks.jsonl")

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        survey(FolderSource(folder), BUCKETS, CheckConfig(), log=log, on_picture=stop)
    assert list(log.read()) == ["0.png"]


def test_a_log_that_cannot_be_written_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="checks.jsonl cannot be"):
        look(folder, CheckLog(tmp_path / "file" / "checks.jsonl"))


def test_several_processes_find_what_one_finds_in_the_same_order(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5, 40):
        noise(32, 32, number).save(folder / f"{number:02d}.png")
    (folder / "07.png").write_text("no picture")
    alone = list(check_source(FolderSource(folder), 10**6))
    monkeypatch.setattr(checks, "WORTH_PROCESSES", 1)
    together = list(check_source(FolderSource(folder), 10**6, processes=2))
    assert together == alone
    assert [checked.record.key for checked in alone] == sorted(checked.record.key for checked in alone)
