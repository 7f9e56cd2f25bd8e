"""A picture says how it was made, exactly to us and legibly to others, whatever its prompt holds."""

import struct
import time
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lineardit.errors import InputError
from lineardit.interop.png_text import format_parameters, parse_parameters, png_text, read_png_text

SETTINGS = {
    "prompt": "a red apple left of a cat",
    "negative_prompt": "blurry, dark",
    "num_inference_steps": 20,
    "sampler": "dpm++",
    "guidance_scale": 4.5,
    "seed": 7,
    "height": 96,
    "width": 128,
    "model": "emoji, first",
    "version": "0.1.0",
    "dtype": "bf16",
}


def write(path: Path, made_with: dict[str, object]) -> Path:
    Image.new("RGB", (8, 8)).save(path, pnginfo=png_text(made_with))
    return path


def test_settings_come_back_exactly(tmp_path: Path) -> None:
    assert read_png_text(write(tmp_path / "x.png", SETTINGS)).settings == SETTINGS


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=st.text(st.characters(exclude_categories=("Cs",)), max_size=40))
def test_any_prompt_comes_back_exactly(tmp_path: Path, prompt: str) -> None:
    assert read_png_text(write(tmp_path / "x.png", SETTINGS | {"prompt": prompt})).settings == SETTINGS | {
        "prompt": prompt
    }


def test_other_programs_read_the_form_they_know(tmp_path: Path) -> None:
    text = read_png_text(write(tmp_path / "x.png", SETTINGS)).parameters
    assert text == (
        "a red apple left of a cat\n"
        "Negative prompt: blurry, dark\n"
        "Steps: 20, Sampler: dpm++, CFG scale: 4.5, Seed: 7, Size: 128x96, "
        'Model: "emoji, first", Version: 0.1.0'
    )


def test_that_form_is_understood_when_another_program_wrote_it(tmp_path: Path) -> None:
    text = (
        "masterpiece, a cat\nsecond line\nNegative prompt: ugly\nworse\n"
        "Steps: 30, Sampler: Euler a, CFG scale: 7.5, Seed: 123, Size: 512x768, "
        'Model hash: abc, Model: "v1, pruned"'
    )
    assert parse_parameters(text) == {
        "prompt": "masterpiece, a cat\nsecond line",
        "negative_prompt": "ugly\nworse",
        "num_inference_steps": "30",
        "sampler": "Euler a",
        "guidance_scale": "7.5",
        "seed": "123",
        "size": "512x768",
        "Model hash": "abc",
        "model": "v1, pruned",
    }


@settings(deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_parsed_without_an_error(text: str) -> None:
    parse_parameters(text)
    parse_parameters("a cat\nSteps: " + text)


def test_a_long_text_is_parsed_in_no_time() -> None:
    started = time.process_time()
    parse_parameters("a cat\nSteps: 1, " + "a " * 30_000)
    assert time.process_time() - started < 1


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs", "Cc", "Z")), min_size=1, max_size=30))
def test_a_model_name_survives_the_form_of_others(name: str) -> None:
    assert parse_parameters(format_parameters(SETTINGS | {"model": name}))["model"] == name


def test_a_picture_that_says_nothing_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    with pytest.raises(InputError, match="x.png says nothing of how it was made"):
        read_png_text(tmp_path / "x.png")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "it is not one"),
        (b"GIF89a", "it is not one"),
        (b"\x89PNG\r\n\x1a\n\0\0", "cannot be read as a PNG"),
    ],
)
def test_a_file_that_is_no_png_is_refused_in_one_line(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=complaint) as caught:
        read_png_text(path)
    assert "\n" not in str(caught.value)


def test_a_truncated_picture_is_refused_in_one_line_or_read(tmp_path: Path) -> None:
    sound = write(tmp_path / "x.png", SETTINGS).read_bytes()
    for length in range(len(sound)):
        (tmp_path / "short.png").write_bytes(sound[:length])
        try:
            assert read_png_text(tmp_path / "short.png").parameters
        except InputError as error:
            assert "\n" not in str(error)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gone.png does not exist"):
        read_png_text(tmp_path / "gone.png")


def claims(path: Path, width: int, height: int) -> Path:
    """A small picture whose header speaks of more pixels."""
    content = bytearray(write(path, SETTINGS).read_bytes())
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    return path


def test_a_picture_that_claims_to_be_huge_is_refused_in_one_line(tmp_path: Path) -> None:
    path = claims(tmp_path / "x.png", 50_000, 50_000)
    with pytest.raises(InputError, match="cannot be read as a PNG .*: it claims too many pixels") as caught:
        read_png_text(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_large_picture_is_read_without_a_warning(tmp_path: Path) -> None:
    assert read_png_text(claims(tmp_path / "x.png", 10_000, 10_000)).settings == SETTINGS
