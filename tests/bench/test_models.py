"""`lineardit bench models`: counts that are known, and times only of what was run."""

from typing import Any

import pytest
import torch
from diffusers import PixArtTransformer2DModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lineardit.bench import models
from lineardit.bench.models import (
    SUBJECTS,
    Counted,
    Decoder,
    Row,
    Subject,
    Timed,
    count,
    measure_models,
    time_network,
)
from lineardit.bench.models_report import HEADER, models_page
from lineardit.bench.pixart import PixArtLike
from lineardit.errors import InputError, LineardiTError

CPU = torch.device("cpu")
WIDTH = 6


class Network(nn.Module):
    """One linear over the pixels, which is easy to count."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("variance", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) / self.variance


def subject(build: Any = Network) -> Subject:
    decoder = Decoder(lambda: nn.Conv2d(2, 3, 1), channels=2, stride=4)
    return Subject(build, lambda batch, side: {"x": torch.randn(batch, side, WIDTH)}, decoder, 7, (32, 64), 2)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "SUBJECTS", {"tiny": subject()})
    monkeypatch.setattr(models, "answer_of", lambda code, arguments: time_network(*arguments))


def test_operations_are_counted_twice_per_multiply_add(tiny: None) -> None:
    counted = count("tiny", 64)
    # 16 latents a side; the decoder multiplies 2 channels into 3 at each of 256 places.
    assert counted == Counted("tiny", 64, 7, 64, 42, 2 * 16 * WIDTH**2, 2 * 256 * 6)
    assert counted.image_flops == 7 * 2 * 2 * 16 * WIDTH**2 + 2 * 256 * 6


def test_dit_and_sana_come_out_as_published() -> None:
    # 118.64 billion multiply-adds at 256 px (arXiv:2212.09748, table 4), where it counts none of attention.
    dit = count("dit-xl/2", 256)
    assert dit.parameters == pytest.approx(675e6, rel=1e-3)
    assert dit.forward_flops == pytest.approx(2 * 118.64e9, rel=1e-3)
    sana = count("sana-0.6b", 512)
    assert sana.parameters == 591_747_872 and sana.tokens == 256


def test_sdxl_has_the_size_of_its_weights() -> None:
    with torch.device("meta"):
        network = SUBJECTS["sdxl-unet"].build()
    assert sum(parameter.numel() for parameter in network.parameters()) == 2_567_463_684


def test_the_pixart_like_network_is_diffusers_pixart_in_size_and_operations() -> None:
    ours = PixArtLike(depth=3, width=24, head_dim=12, text_width=20, patch=2)
    theirs = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=8,
        num_layers=3,
        cross_attention_dim=24,
        sample_size=8,
        patch_size=2,
        caption_channels=20,
        use_additional_conditions=False,
    )
    latents, text, times = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 20), torch.tensor([3.0])
    with FlopCounterMode(display=False) as here:
        noise = ours(latents, times, text)
    with FlopCounterMode(display=False) as there:
        other = theirs(
            latents, text, timestep=times, added_cond_kwargs={"resolution": None, "aspect_ratio": None}
        )
    assert noise.shape == other.sample.shape
    assert here.get_total_flops() == there.get_total_flops()
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


def test_a_network_is_timed_with_finite_random_weights(tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Watched(Network):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(super().forward(x))
            return seen[-1]

    monkeypatch.setattr(models, "SUBJECTS", {"tiny": subject(Watched)})
    answer = time_network("tiny", 64, "cpu", "fp32", 0.01, 1, True)
    assert answer["step_seconds"] > 0 and answer["decode_seconds"] > 0 and "left_out" not in answer
    # A step is guided: two pictures at once.
    assert seen[0].shape == (2, 16, WIDTH) and seen[0].isfinite().all() and seen[0].std() > 0


def test_every_row_is_counted_and_timed(tiny: None) -> None:
    rows = list(measure_models(["tiny"], None, CPU, "fp32", 0.05))
    assert [row.counted.pixels for row in rows] == [32, 64]
    assert all(row.timed.step_seconds and row.timed.decode_seconds for row in rows)
    assert all(row.timed.left_out == "" for row in rows)


def test_a_budget_of_nothing_only_counts(tiny: None) -> None:
    (row,) = measure_models(["tiny"], [64], CPU, "fp32", 0.0)
    assert row.timed == Timed(left_out="counted only")


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("operations_per_second", 1.0, "a step would take 2,304 s, over 5 s"),
        ("available_memory", 100.0, "weights of 0.0 GB, free are 0.0 GB"),
        ("answer_of", LineardiTError("the measured process failed: exit code -9"), "no more memory"),
    ],
)
def test_what_does_not_fit_is_left_out_with_the_reason(
    tiny: None, monkeypatch: pytest.MonkeyPatch, name: str, value: Any, reason: str
) -> None:
    def answer(*_: Any) -> float:
        if isinstance(value, Exception):
            raise value
        return value

    monkeypatch.setattr(models, name, answer)
    (row,) = measure_models(["tiny"], [64], CPU, "fp32", 5.0)
    assert row.counted.forward_flops == 2 * 16 * WIDTH**2 and row.timed.step_seconds is None
    assert reason in row.timed.left_out


def test_a_decoder_that_would_take_too_long_is_left_out(tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "operations_per_second", lambda *_: 500.0)
    (row,) = measure_models(["tiny"], [64], CPU, "fp32", 5.0)
    assert row.timed.step_seconds is not None and row.timed.decode_seconds is None
    assert row.timed.left_out == "decoding would take 6 s, over 5 s"


def test_a_network_that_finds_no_memory_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Greedy(Network):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    class Broken(Network):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("shapes differ")

    monkeypatch.setattr(models, "SUBJECTS", {"greedy": subject(Greedy), "broken": subject(Broken)})
    answer = time_network("greedy", 64, "cpu", "fp32", 0.01, 1, True)
    assert answer == {"left_out": "a step does not fit the memory"}
    with pytest.raises(RuntimeError, match="shapes differ"):
        time_network("broken", 64, "cpu", "fp32", 0.01, 1, True)


def test_the_page_adds_up_an_image() -> None:
    counted = Counted("tiny", 64, 7, 64, 42_000_000, 5 * 10**9, 10**12)
    text = models_page("A machine", [Row(counted, Timed(2.0, 3 * 10**9, 0.5, 10**9))])
    row = dict(zip(HEADER, text.split("\n")[6].strip("| ").split(" | "), strict=True))
    assert row["s an image"] == "14.5" and row["TFLOP an image"] == "1.07" and row["parameters, M"] == "42.0"
    assert row["GB a step"] == "3.00" and row["left out"] == "-"
    untimed = models_page("A machine", [Row(counted._replace(decoder_flops=None), Timed(2.0))])
    assert "| - | - | 2.00 | - | - | - | - |" in untimed


def test_an_unknown_network_is_answered_with_those_there_are() -> None:
    with pytest.raises(InputError, match="unknown network 'sdxl'. Use one of dit-xl/2, .*sana-1.6b"):
        next(measure_models(["sdxl"], None, CPU, "fp32", 0.0))
