"""The comparison with diffusers, on small networks and in this process."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from lineardit.bench import peers
from lineardit.bench.peers import (
    CONTENDERS,
    Contender,
    LeftOut,
    Measured,
    measure_peers,
    operations,
    run_contender,
    write_weights,
)
from lineardit.bench.peers_report import Limit, peers_page
from lineardit.config.models import AutoencoderConfig, StageConfig, TransformerConfig
from lineardit.errors import InputError, LineardiTError
from lineardit.kernels import native

STAGES = tuple(StageConfig(width=width, depth=1) for width in (8, 16, 16, 16, 16, 16))


def here(code: str, given: list[Any]) -> Any:
    """What the child would do, in this process."""
    return (write_weights if "write_weights" in code else run_contender)(*given)


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
    monkeypatch.setattr(peers, "return_freed_memory", lambda: None)
    monkeypatch.setattr(peers, "answer_of", here)
    yield
    native.use("torch")


def test_every_contender_computes_the_same() -> None:
    names = [name for name, each in CONTENDERS.items() if not each.compiled and not each.share]
    if native.compiler() is None:
        names = [name for name in names if CONTENDERS[name].passes == "torch"]
    rows = [*measure_peers(names, ("step", "decode"), [64, 96], "fp32", 0.0, 1)]
    assert [(row.part, row.pixels) for row in rows[:2]] == [("step", 64), ("decode", 64)]
    assert [row.pixels for row in rows] == [64] * 2 * len(names) + [96] * 2 * len(names)
    measured = [row for row in rows if isinstance(row, Measured)]
    assert measured == rows and all(row.seconds > 0 and row.calls >= 0 for row in measured)
    rounded = {name for name in names if CONTENDERS[name].int8}
    assert all(row.apart < 1e-4 for row in measured if row.contender not in rounded)
    assert all(row.apart < 0.02 for row in measured if row.contender in rounded)
    assert any(row.apart > 0 for row in measured)


def test_no_speed_is_told_of_another_output(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(code: str, given: list[Any]) -> Any:
        answers = here(code, given)
        if "run_contender" in code and Contender(*given[0]).package == "lineardit":
            place = Path(given[5]) / "outputs.safetensors"
            save_file({key: 1.1 * each for key, each in load_file(place).items()}, place)
        return answers

    monkeypatch.setattr(peers, "answer_of", wrong)
    rows = measure_peers(["diffusers", "lineardit, torch"], ("step",), [64], "fp32", 0.0, 1)
    assert next(rows).contender == "diffusers"
    with pytest.raises(LineardiTError, match="lineardit, torch is .* from diffusers in step 64 pixels"):
        next(rows)


def test_a_share_of_the_first_ones_memory_is_what_another_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[Any]] = []

    def answer(code: str, arguments: list[Any]) -> Any:
        answers = here(code, arguments)
        if "run_contender" in code:
            given.append(arguments)
            answers["step"] |= {"peak": 10**12}
        return answers

    monkeypatch.setattr(peers, "answer_of", answer)
    name = next(name for name, each in CONTENDERS.items() if each.share)
    monkeypatch.setitem(CONTENDERS, name, CONTENDERS[name]._replace(passes="torch"))
    first, second = measure_peers(["diffusers", name], ("step",), [96], "fp32", 0.0, 1)
    assert [each[4] for each in given] == [0, int(0.6 * 10**12)]
    assert isinstance(first, Measured) and isinstance(second, Measured) and second.apart < 1e-4


def test_what_does_not_fit_is_left_out_with_its_reason(tmp_path: Path) -> None:
    own = Contender("lineardit", share=0.5)
    write_weights(str(tmp_path), "fp32")
    answers = run_contender(own, ["step", "decode"], 64, "fp32", 1000, str(tmp_path), 0.0, 1)
    for part in ("step", "decode"):
        assert "is not enough" in answers[part]["reason"] and "Allow" in answers[part]["reason"]
    assert load_file(tmp_path / "outputs.safetensors") == {}


def test_a_long_call_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_weights(str(tmp_path), "fp32")
    given = (["step"], 64, "fp32", 0, str(tmp_path))
    assert run_contender(CONTENDERS["diffusers"], *given, 1.0, 1)["step"]["calls"] >= 3
    monkeypatch.setattr(peers, "LONG", 0)
    answer = run_contender(CONTENDERS["diffusers"], *given, 1.0, 1)["step"]
    assert answer["calls"] == 0 and answer["seconds"] == answer["first"]


def test_operations_are_those_of_the_tokens_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = operations("step", 64), operations("step", 128)
    monkeypatch.setattr(peers, "TOLD", (2, 120))
    longer = operations("step", 64) - small
    assert 0 < small < large < 4 * small + 1
    # Two blocks, two pictures of 4 tokens: 30 more keys a picture for scores and for sums, 32 channels.
    assert longer == 2 * 2 * 2 * 2 * 4 * 30 * 32
    assert operations("decode", 128) == pytest.approx(4 * operations("decode", 64), rel=0.02)


def test_what_is_unknown_is_refused() -> None:
    with pytest.raises(InputError, match="unknown contender 'dit'. Use some of diffusers; diffusers, memory"):
        next(measure_peers(["dit"], ("step",), [64], "fp32", 0.0, 1))
    with pytest.raises(InputError, match="dtype=fp16 is not compared. Use one of fp32, bf16"):
        next(measure_peers(["diffusers"], ("step",), [64], "fp16", 0.0, 1))


def test_a_picture_is_its_steps_and_its_decoding() -> None:
    giga = 10**9
    rows = [
        Measured("diffusers", "step", 512, 1.0, 3, 2.0, 0.0, giga, 3 * giga, 0.0),
        Measured("diffusers", "decode", 512, 5.0, 3, 6.0, 0.0, giga, 4 * giga, 0.0),
        Measured("lineardit, native", "step", 512, 0.5, 3, 0.6, 1.0, giga, 2 * giga, 1e-3),
        Measured("lineardit, native", "decode", 512, 1.5, 3, 2.0, 0.0, giga, giga, 2e-3),
        Measured("lineardit, int8", "step", 512, 0.25, 3, 0.6, 1.0, giga, 2 * giga, 1e-3),
        LeftOut("diffusers", "decode", 4096, "does not fit the memory"),
    ]
    limit = Limit({("step", 512): 4 * giga, ("decode", 512): 6 * giga}, 10.0 * giga)
    page = peers_page("A machine.", rows, limit)
    assert "| 512 | lineardit, native | 0.500 | 2.00 | 80% | 0.600 | 2.00 | 1.0e-03 |" in page
    assert "| 512 | lineardit, int8 | 0.250 | 4.00 | - | 0.600 | 2.00 | 1.0e-03 |" in page
    assert "| 512 | diffusers | 25.0 | 1.00 | 4.00 | 1.00 |" in page
    assert "| 512 | lineardit, native | 12.5 | 2.00 | 2.00 | 0.50 |" in page
    assert "- diffusers, decode at 4096 pixels: does not fit the memory" in page
    assert "at 10 GFLOP a second" in page
    alone = peers_page("A machine.", rows[:1], limit)
    assert "A picture of" not in alone and "Left out" not in alone
