"""The comparison with diffusers, on small networks and in this process."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lineardit.bench import peers
from lineardit.bench.peers import CONTENDERS, Contender, Measured, measure_peers, run_contender
from lineardit.bench.peers_report import peers_page
from lineardit.config.models import AutoencoderConfig, StageConfig, TransformerConfig
from lineardit.errors import InputError, LineardiTError
from lineardit.kernels import native

STAGES = tuple(StageConfig(width=width, depth=1) for width in (8, 16, 16, 16, 16, 16))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Networks of a few numbers, and contenders that run here and leave the allocator alone."""
    transformer = TransformerConfig(
        latent_channels=4, depth=2, width=32, head_dim=8, cross_head_dim=8, text_width=12
    )
    autoencoder = AutoencoderConfig(
        latent_channels=4, encoder=STAGES, decoder=STAGES, attention_head_dim=8, upsample="interpolate"
    )
    monkeypatch.setattr(peers, "transformer_preset", lambda _: transformer)
    monkeypatch.setattr(peers, "autoencoder_preset", lambda _: autoencoder)
    monkeypatch.setattr(peers, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(peers, "answer_of", lambda _, given: run_contender(*given))
    yield
    native.use("torch")


def test_every_contender_computes_the_same(tmp_path: Path) -> None:
    names = [name for name, each in CONTENDERS.items() if not each.compiled]
    if native.compiler() is None:
        names = [name for name in names if CONTENDERS[name].passes == "torch"]
    rows = list(measure_peers(names, ("step", "decode"), [64, 96], "fp32", 0.0, 1))
    assert [(row.part, row.pixels) for row in rows[:4]] == [
        ("step", 64), ("step", 96), ("decode", 64), ("decode", 96),
    ]  # fmt: skip
    assert len(rows) == 4 * len(names)
    assert all(row.seconds > 0 and row.calls == 3 for row in rows)
    rounded = {name for name in names if CONTENDERS[name].int8}
    assert all(row.apart < 1e-4 for row in rows if row.contender not in rounded)
    assert all(row.apart < 0.02 for row in rows if row.contender in rounded)
    assert any(row.apart > 0 for row in rows)


def test_no_speed_is_told_of_another_output(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(_: str, given: list[Any]) -> dict[str, Any]:
        answers = run_contender(*given)
        if Contender(*given[0]).package == "lineardit":
            outputs = {key: 1.1 * each for key, each in load_file(given[-1]).items()}
            save_file(outputs, given[-1])
        return answers

    monkeypatch.setattr(peers, "answer_of", wrong)
    rows = measure_peers(["diffusers", "lineardit, torch"], ("step",), [64], "fp32", 0.0, 1)
    assert next(rows).contender == "diffusers"
    with pytest.raises(LineardiTError, match="lineardit, torch is .* from diffusers in step 64 pixels"):
        next(rows)


def test_what_is_unknown_is_refused() -> None:
    with pytest.raises(InputError, match="unknown contender 'dit'. Use some of diffusers; diffusers, memory"):
        next(measure_peers(["dit"], ("step",), [64], "fp32", 0.0, 1))
    with pytest.raises(InputError, match="dtype=fp16 is not compared. Use one of fp32, bf16"):
        next(measure_peers(["diffusers"], ("step",), [64], "fp16", 0.0, 1))


def test_a_picture_is_its_steps_and_its_decoding() -> None:
    rows = [
        Measured("diffusers", "step", 512, 1.0, 3, 2.0, 0.0, 3 * 10**9, 0.0),
        Measured("diffusers", "decode", 512, 5.0, 3, 6.0, 0.0, None, 0.0),
        Measured("lineardit, native", "step", 512, 0.5, 3, 0.6, 1.0, 2 * 10**9, 1e-3),
        Measured("lineardit, native", "decode", 512, 1.5, 3, 2.0, 0.0, 10**9, 2e-3),
    ]
    page = peers_page("A machine.", rows)
    assert "| 512 | lineardit, native | 0.500 | 2.00 | 0.600 | 2.00 | 1.0e-03 |" in page
    assert "| 512 | diffusers | 25.0 | 1.00 |" in page
    assert "| 512 | lineardit, native | 12.5 | 2.00 |" in page
    assert "pictures" not in peers_page("A machine.", rows[:1]) and torch.is_grad_enabled()
