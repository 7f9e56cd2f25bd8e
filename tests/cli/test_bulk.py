"""A file of prompts becomes a folder of pictures: each once, whatever stops it, by any number of ranks."""

import json
from pathlib import Path

import pytest
from PIL import Image

from lineardit.cli.app import main
from lineardit.cli.bulk import KEYS, Share, Task, batches
from lineardit.interop.png_text import read_png_text
from lineardit.kernels import native
from lineardit.pipeline import Pipeline, Settings

LINES = [
    {"prompt": "a red apple left of a cat"},
    {"prompt": "two dogs", "seed": 9, "width": 16},
    {"prompt": "a house", "negative_prompt": "fog", "num_inference_steps": 2, "sampler": "euler"},
    {"prompt": "two dogs"},
]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in LINES) + "\n\n", "utf-8")
    return file


def bulk(prompts: Path, out: Path, model: Path, *more: str) -> int:
    return main(["bulk", str(prompts), "-o", str(out), "--model", str(model), "--device", "cpu", *more])


def pixels(file: Path) -> bytes:
    with Image.open(file) as picture:
        return picture.tobytes()


def test_every_line_becomes_its_picture(prompts: Path, tmp_path: Path, tiny_model: Path) -> None:
    out = tmp_path / "out"
    assert bulk(prompts, out, tiny_model) == 0
    names = sorted(file.name for file in out.iterdir())
    assert names == ["000000-0.png", "000001-9.png", "000002-2.png", "000003-3.png"]
    pipe = Pipeline.from_pretrained(tiny_model, device="cpu")
    for number, line in enumerate(LINES):
        expected = pipe(**{"seed": number, **line})
        file = out / names[number]
        assert pixels(file) == expected.images[0].tobytes()
        settings = read_png_text(file).settings
        assert settings is not None and settings["prompt"] == line["prompt"]


@pytest.mark.parametrize("kernels", ["native", "torch"])
def test_it_draws_what_generate_draws_and_as_fast(
    kernels: str, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernels == "native" and native.compiler() is None:
        pytest.skip("there is no C++ compiler here")
    packed: list[bool] = []
    pack = Pipeline.pack
    monkeypatch.setattr(Pipeline, "pack", lambda pipe: packed.append(pack(pipe) > 0))
    (tmp_path / "prompts.txt").write_text("a house\n", "utf-8")
    same = ["--model", str(tiny_model), "--device", "cpu", "--kernels", kernels]
    assert main(["bulk", str(tmp_path / "prompts.txt"), "-o", str(tmp_path), "--seed", "3", *same]) == 0
    assert packed == [kernels == "native"]
    assert main(["generate", "a house", "-o", str(tmp_path / "one.png"), "--seed", "3", *same]) == 0
    assert pixels(tmp_path / "000000-3.png") == pixels(tmp_path / "one.png")


def test_it_goes_on_where_it_was_and_draws_nothing_twice(
    prompts: Path, tmp_path: Path, tiny_model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert bulk(prompts, out, tiny_model) == 0
    before = {file.name: file.stat().st_mtime_ns for file in out.iterdir()}
    (out / "000002-2.png").unlink()
    (out / ".000002-2.png.part").write_bytes(b"half")  # what a kill leaves behind
    assert bulk(prompts, out, tiny_model) == 0
    assert "rank 0 of 1: 1 drawn, 3 were there" in capfd.readouterr().err
    after = {file.name: file.stat().st_mtime_ns for file in out.iterdir()}
    assert set(after) == set(before)
    assert [name for name in before if before[name] != after[name]] == ["000002-2.png"]


def test_ranks_share_the_lines_and_make_what_one_process_makes(
    prompts: Path, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bulk(prompts, tmp_path / "one", tiny_model) == 0
    for rank in ("0", "1", "2"):
        for name, value in (("RANK", rank), ("WORLD_SIZE", "3"), ("LOCAL_RANK", rank)):
            monkeypatch.setenv(name, value)
        assert bulk(prompts, tmp_path / "three", tiny_model) == 0
        # None takes what another was given, however far that one is.
        assert len(list((tmp_path / "three").glob("*.png"))) == {"0": 2, "1": 3, "2": 4}[rank]
    for file in (tmp_path / "one").iterdir():
        assert pixels(file) == pixels(tmp_path / "three" / file.name)
    assert Share.read({}) == Share(0, 1, 0)


def test_pictures_drawn_otherwise_are_not_taken_for_these(
    prompts: Path, tmp_path: Path, tiny_model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert bulk(prompts, out, tiny_model) == 0
    assert bulk(prompts, out, tiny_model, "--guidance-scale", "2") == 2
    assert "was drawn from another prompt or with other settings" in capfd.readouterr().err
    assert bulk(prompts, out, tiny_model, "--guidance-scale", "2", "--force") == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no lines"),
        ('{"prompt": "a"}\nnot json', ":2 is no JSON object with a prompt"),
        ('{"text": "a"}', ":1 is no JSON object with a prompt"),
        ('{"prompt": "a", "seeed": 1}', f"unknown key seeed. Known are prompt, {', '.join(KEYS)}"),
        ('{"prompt": "a", "width": 13}', "prompt 1: width=13 is not a multiple of 8"),
        ('{"prompt": "a"}\n{"prompt": " "}', "prompt 2: "),
    ],
)
def test_a_mistake_is_found_before_anything_is_drawn(
    text: str, message: str, tmp_path: Path, tiny_model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(text, "utf-8")
    assert bulk(file, tmp_path / "out", tiny_model) == 2
    assert message in capfd.readouterr().err and not (tmp_path / "out").exists()


def test_neighbours_that_fit_together_are_drawn_together() -> None:
    def task(width: int) -> Task:
        return Task(Settings("a", "", 8, width, 3, 3.0, "euler", 0, "m"), Path("x.png"))

    groups = [[each.job.width for each in group] for group in batches([*map(task, (8, 8, 8, 16, 8))], 2)]
    assert groups == [[8, 8], [8], [16], [8]]
