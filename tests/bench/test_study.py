"""The study benchmarks/linear_against_softmax.py: equal networks, equal data, and verdicts that follow."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from lineardit.config.models import TransformerConfig
from lineardit.config.runs import LoopConfig

CONFIG = TransformerConfig(
    latent_channels=4, depth=2, width=64, head_dim=32, cross_head_dim=32, text_width=12, position="sincos"
)


@pytest.fixture(scope="module")
def study(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("linear_against_softmax")


def size(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_all_variants_have_the_same_number_of_parameters(study: ModuleType) -> None:
    sizes = {variant.name: size(study.build(variant, CONFIG)) for variant in study.VARIANTS}
    largest, smallest = max(sizes.values()), min(sizes.values())
    assert largest < 1.003 * smallest and sizes[study.REFERENCE.name] == size(study.Transformer(CONFIG))


def test_every_variant_computes_something_else(study: ModuleType) -> None:
    x, times, text = torch.randn(1, 4, 3, 3), torch.tensor([0.5]), torch.randn(1, 5, 12)
    answers = []
    for variant in study.VARIANTS[:-1]:
        torch.manual_seed(0)
        model = study.build(variant, CONFIG)
        for parameter in model.parameters():
            torch.nn.init.constant_(parameter, 0.05)
            parameter.data.view(-1)[::2] = -0.1
        answers.append(model(x, times, text))
    assert all(answer.isfinite().all() for answer in answers)
    different = {tuple(answer.flatten().tolist()) for answer in answers}
    assert len(different) == len(study.VARIANTS) - 1


class Watched(torch.nn.Module):
    """Says nothing and notes what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, ...]] = []

    def forward(self, *shown: Tensor) -> Tensor:
        self.seen.append(shown)
        return torch.zeros_like(shown[0])


def test_two_variants_of_a_seed_see_the_same(study: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    captions = [torch.randn(3 + n, 12, generator=generator) for n in range(5)]
    pool = study.Pool(torch.randn(5, 4, 3, 3, generator=generator), captions, torch.zeros(2, 12))
    loop = LoopConfig(steps=9, batch_size=2, seed=3)
    models = [Watched(), Watched(), Watched()]
    for model, variant in zip(models, (study.REFERENCE, study.SOFTMAX, study.DDPM), strict=True):
        task = study.StudyTask(model, variant, pool, loop)
        for step in range(4):
            task.losses(step)
    for one, other in zip(models[0].seen, models[1].seen, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    times = torch.cat([shown[1] for shown in models[2].seen])
    assert ((times >= 0) & (times < 1)).all() and times.max() > 0.1
    assert not torch.equal(models[0].seen[0][0], models[0].seen[2][0])


def result(name: str, seed: int, share: float) -> dict[str, Any]:
    shares = {"single object": share, "count": None, "all right": share / 2}
    return {
        "variant": name,
        "seed": seed,
        "parameters": 2_000_000,
        "made_with": {"steps": 100, "max_objects": 2},
        "minutes": 3.0,
        "curve": [[step, 1 / step] for step in range(2, 100, 2)],
        "held_out": 0.5 + 0.1 * seed,
        "scores": {"DPM-Solver++, 20 steps": shares, "Euler, 50 steps": shares},
    }


@pytest.mark.parametrize(
    ("shares", "verdict"),
    [
        ((0.5, 0.502), "-29.9, beyond twice its standard error of 0.2."),
        ((0.5, 0.9), "-10.0, within twice its standard error of 20.0."),
    ],
)
def test_a_verdict_says_whether_seeds_explain_the_difference(
    study: ModuleType, shares: tuple[float, float], verdict: str
) -> None:
    results = [result(study.REFERENCE.name, seed, share) for seed, share in enumerate(shares)]
    results += [result(study.SOFTMAX.name, seed, share) for seed, share in enumerate((0.798, 0.802))]
    text = study.page(results, "A machine")
    assert (
        "`python benchmarks/linear_against_softmax.py FOLDER --steps 100 --max-objects 2`; A machine" in text
    )
    assert (
        f"- linear ReLU, GLUMBConv against softmax, GLUMBConv, mean of measures in points: {verdict}" in text
    )
    assert "against softmax, GLUMBConv, held-out loss: +0.0000, within twice its standard error" in text
    assert "| softmax, GLUMBConv | 2 | 2.00 | 0.550 +- 0.071 | 40.0 +- 0.14 | 80.0 +- 0.28 |" in text
    assert "DPM-Solver++, 20 steps against Euler, 50 steps, mean of measures in points: +0.0, within" in text


def test_one_seed_proves_nothing(study: ModuleType) -> None:
    results = [result(study.REFERENCE.name, 0, 0.5), result(study.SOFTMAX.name, 0, 0.8)]
    assert "-30.0; one seed has no spread to hold that against." in study.page(results, "A machine")


def test_the_plot_has_a_curve_for_each_variant_but_ddpm(study: ModuleType) -> None:
    results = [result(name, 0, 0.5) for name in (study.REFERENCE.name, study.SOFTMAX.name, study.DDPM.name)]
    assert study.curves(results).count("<polyline") == 2
