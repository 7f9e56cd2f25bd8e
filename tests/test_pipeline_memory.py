"""Pictures within a bound of memory: the same, in bands that fit, or refused with the least that works."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lineardit.autoencoder.bands import decode_in_bands, encode_in_bands
from lineardit.errors import MemoryLimitError
from lineardit.interop.bound import UNTOLD, Fit, MemoryBound, tallest
from lineardit.kernels import native, prompt
from lineardit.pipeline import Pipeline

CAT = "a red apple left of a cat"
HELD = 1000
SIZE = {"height": 48, "width": 32}


@pytest.fixture
def pipe(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    monkeypatch.setattr("lineardit.interop.bound.resident_bytes", lambda: HELD)
    return Pipeline.from_pretrained(tiny_model, device="cpu")


def picture(colour: str = "red") -> Image.Image:
    image = Image.new("RGB", (32, 48), colour)
    image.paste("blue", (8, 20, 20, 40))
    return image


def exactly(pipe: Pipeline) -> int:
    """The fewest bytes within which the picture can be drawn."""
    bound, config = MemoryBound(HELD, HELD), pipe.autoencoder.config
    height, width = SIZE["height"] // config.stride, SIZE["width"] // config.stride
    fits = [
        bound.denoising(pipe.transformer.config, None, height, width, pipe.dtype, 2),
        bound.encoding(config, **SIZE, dtype=pipe.dtype),
        bound.decoding(config, **SIZE, dtype=pipe.dtype),
    ]
    return math.ceil((HELD + max(fit.needed for fit in fits)) / (1 - UNTOLD))


def least(pipe: Pipeline, **call: Any) -> int:
    """What the message says that works."""
    pipe.limit_memory(HELD)
    with pytest.raises(MemoryLimitError) as refused:
        pipe(CAT, **SIZE, **call)
    found = re.search(r"Allow (\d+) MB, or draw fewer pixels", str(refused.value))
    assert found
    return int(found[1]) * 10**6


def rows_seen(monkeypatch: pytest.MonkeyPatch, pipe: Pipeline) -> dict[str, set[int | None]]:
    """How many rows at a time each part of drawing took."""
    seen: dict[str, set[int | None]] = {"transformer": set(), "encode": set(), "decode": set()}
    forward = type(pipe.transformer).forward

    def watched(self: Any, *given: Any, **more: Any) -> Any:
        if not given[0].is_meta:
            seen["transformer"].add(given[-1])
        return forward(self, *given, **more)

    monkeypatch.setattr(type(pipe.transformer), "forward", watched)
    for name, whole in (("encode", encode_in_bands), ("decode", decode_in_bands)):

        def banded(autoencoder: Any, x: Any, rows: int, name: str = name, whole: Any = whole) -> Any:
            seen[name].add(rows)
            return whole(autoencoder, x, rows)

        monkeypatch.setattr(f"lineardit.pipeline.pipeline.{name}_in_bands", banded)
    return seen


def test_in_bands_the_picture_is_the_same(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    call = {"image": picture(), "strength": 0.7, "output_type": "pt"}
    whole = pipe(CAT, **SIZE, **call).images
    seen = rows_seen(monkeypatch, pipe)
    pipe.limit_memory(10**9)
    with monkeypatch.context() as patched:
        patched.setattr("lineardit.interop.bound.transformer_bytes", lambda *_, **__: 10**12)
        patched.setattr("lineardit.interop.bound.tallest", lambda part, *_: Fit(part, 2, 0))
        torch.testing.assert_close(pipe(CAT, **SIZE, **call).images, whole, rtol=0, atol=1e-5)
    assert seen == {"transformer": {2}, "encode": {2}, "decode": {2}}
    pipe.limit_memory(None)
    assert torch.equal(pipe(CAT, **SIZE, **call).images, whole)


def test_the_least_that_works_works_and_a_byte_less_does_not(pipe: Pipeline) -> None:
    bound = exactly(pipe)
    pipe.limit_memory(bound)
    assert pipe(CAT, **SIZE, image=picture()).images[0].size == (32, 48)
    pipe.limit_memory(bound - 1)
    with pytest.raises(MemoryLimitError, match=r"memory=1 MB is not enough: 1 MB are held"):
        pipe(CAT, **SIZE, image=picture())


def test_all_that_fits_is_done_at_once(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pipe(CAT, **SIZE, output_type="pt").images
    seen = rows_seen(monkeypatch, pipe)
    pipe.limit_memory(10**9)
    assert torch.equal(pipe(CAT, **SIZE, output_type="pt").images, whole)
    assert seen == {"transformer": {None}, "encode": set(), "decode": set()}


def test_within_a_bound_prompts_are_folded_where_there_is_room(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    if native.compiler() is None:
        pytest.skip("there is no C++ compiler here")
    folded: list[int] = []

    def seen(around: prompt.Around, key: torch.Tensor, value: torch.Tensor) -> prompt.FoldedPrompt | None:
        folded.append(key.shape[1])
        return fold(around, key, value)

    fold = prompt.folded
    monkeypatch.setattr(prompt, "folded", seen)
    with native.using("native"):
        whole = pipe(CAT, **SIZE, output_type="pt").images
        assert folded
        folded.clear()
        pipe.limit_memory(10**9)
        assert torch.equal(pipe(CAT, **SIZE, output_type="pt").images, whole)
        assert folded
        folded.clear()
        monkeypatch.setattr(
            "lineardit.interop.bound.transformer_bytes", lambda *_, folds, **__: 10**10 if folds else 10**6
        )
        torch.testing.assert_close(pipe(CAT, **SIZE, output_type="pt").images, whole, rtol=0, atol=1e-4)
        assert not folded


def test_a_bound_below_what_is_held_is_told_the_least_as_well(pipe: Pipeline) -> None:
    assert least(pipe) <= 10 * 10**6
    with pytest.raises(MemoryLimitError, match=r"takes at least \d+ MB more. Allow \d+ MB"):
        pipe.plan(CAT, height=128, width=128)


def test_bands_are_halved_until_they_fit() -> None:
    needed = {None: 100, 16: 60, 8: 40, 4: 30, 2: 25, 1: 26}
    for room, rows, bytes_needed in ((100, None, 100), (99, 16, 60), (30, 4, 30), (29, 2, 25), (3, 2, 25)):
        fit = tallest("decoding", needed.__getitem__, 32, room)
        assert (fit.rows, fit.needed) == (rows, bytes_needed)


def test_what_is_said_suffices() -> None:
    bound = MemoryBound(in_all=2_345_678_901, held=999_000_001)
    fit = tallest("decoding", lambda rows: 1_500_000_001, 1, bound.room)
    with pytest.raises(MemoryLimitError) as refused:
        bound.check([fit], 64, 32)
    assert str(refused.value) == (
        "memory=2.35 GB is not enough: 1000 MB are held, and decoding at 32 x 64 pixels "
        "takes at least 1.51 GB more. Allow 2.58 GB, or draw fewer pixels."
    )


def test_what_steps_need_beside_latents_is_counted(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, bool]] = []

    def counted(*given: Any, caches: bool, **_: Any) -> int:
        seen.append((given[-1], caches))
        return 0

    monkeypatch.setattr("lineardit.interop.bound.transformer_bytes", counted)
    pipe.limit_memory(10**9)
    pipe(CAT, **SIZE, step_cache=0.2)
    assert {caches for _, caches in seen} == {True} and {pictures for pictures, _ in seen} == {2}
    seen.clear()
    pipe(CAT, **SIZE, guidance_scale=1.0)
    assert ((1, False) in seen) and not any(caches for _, caches in seen)
