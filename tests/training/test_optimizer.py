"""Which parameter follows which optimizer, and the learning rate in closed form."""

import math
from importlib.util import find_spec

import pytest
import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from lineardit.config.runs import LoopConfig
from lineardit.errors import ConfigError, MissingExtraError, NotFiniteError
from lineardit.training import optimizer, optimizer_state
from lineardit.training.came import CAME
from lineardit.training.loss_scale import LossScale
from lineardit.training.muon import Muon
from lineardit.training.optimizer import build_optimizers, learning_rate_at


def loop(**fields: object) -> LoopConfig:
    return LoopConfig(**{"steps": 110, "batch_size": 1, "learning_rate": 2e-3, "warmup_steps": 10, **fields})


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 5)
        self.table = nn.Parameter(torch.ones(2, 5))
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(5, 5), nn.LayerNorm(5), nn.Conv1d(5, 5, 3))])


def named(model: nn.Module, parameters: list[nn.Parameter]) -> set[str]:
    return {name for name, own in model.named_parameters() if any(own is each for each in parameters)}


VECTORS = {"stem.bias", "blocks.0.0.bias", "blocks.0.1.weight", "blocks.0.1.bias", "blocks.0.2.bias"}


def test_adamw_takes_all_and_decays_what_has_two_axes() -> None:
    model = Net()
    (adamw,) = build_optimizers(model, loop(weight_decay=0.3, betas=(0.8, 0.95)))
    assert isinstance(adamw, AdamW)
    decayed, kept = adamw.param_groups
    assert named(model, decayed["params"]) == {
        "stem.weight",
        "table",
        "blocks.0.0.weight",
        "blocks.0.2.weight",
    }
    assert named(model, kept["params"]) == VECTORS
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0.0)
    assert decayed["betas"] == kept["betas"] == (0.8, 0.95)


def test_muon_takes_the_matrices_of_the_blocks_alone() -> None:
    model = Net()
    adamw, muon = build_optimizers(model, loop(optimizer="muon", weight_decay=0.3))
    assert isinstance(adamw, AdamW) and isinstance(muon, Muon)
    assert named(model, muon.param_groups[0]["params"]) == {"blocks.0.0.weight"}
    decayed, kept = adamw.param_groups
    assert named(model, decayed["params"]) == {"stem.weight", "table", "blocks.0.2.weight"}
    assert named(model, kept["params"]) == VECTORS


def test_muon_steps_are_of_the_size_of_adamw_s() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(192, 48, bias=False), nn.Linear(192, 48)])})
    before = model.blocks[0].weight.detach().clone()
    _, muon = build_optimizers(model, loop(optimizer="muon", weight_decay=0.0, learning_rate=1.0))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    muon.step()
    step = (model.blocks[0].weight.detach() - before).square().mean().sqrt()
    assert 0.1 < float(step) < 0.3  # RMS of 0.2, as AdamW's updates have (arXiv:2502.16982, section 2.2)


def test_muon_is_refused_where_it_would_have_nothing_to_do() -> None:
    frozen = Net()
    frozen.blocks.requires_grad_(False)
    for model in (nn.Linear(3, 3), frozen):
        with pytest.raises(ConfigError, match="none learns here: .* Use train.optimizer=adamw or came"):
            build_optimizers(model, loop(optimizer="muon"))


@pytest.mark.parametrize("decay", ["cosine", "constant", "wsd"])
def test_the_rate_rises_in_a_straight_line_to_the_peak(decay: str) -> None:
    rates = [learning_rate_at(step, loop(decay=decay)) for step in range(11)]
    assert rates == pytest.approx([2e-3 * share / 10 for share in range(1, 11)] + [2e-3])


def test_a_cosine_falls_by_half_in_the_middle() -> None:
    config = loop(decay="cosine", final_share=0.1)
    assert learning_rate_at(60, config) == pytest.approx(2e-3 * (0.1 + 0.9 / 2))
    third = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.3))
    assert learning_rate_at(40, config) == pytest.approx(2e-3 * third)
    assert learning_rate_at(110, config) == learning_rate_at(500, config) == pytest.approx(2e-4)


def test_a_constant_rate_stays() -> None:
    assert {learning_rate_at(step, loop(decay="constant")) for step in (10, 60, 109)} == {2e-3}


def test_wsd_is_constant_and_then_a_straight_line() -> None:
    config = loop(decay="wsd", decay_share=0.25, final_share=0.2)
    assert {learning_rate_at(step, config) for step in (10, 50, 85)} == {2e-3}
    falling = [learning_rate_at(step, config) for step in (90, 95, 100, 105, 110)]
    assert falling == pytest.approx([2e-3 * (0.2 + 0.8 * share) for share in (0.8, 0.6, 0.4, 0.2, 0.0)])
    assert learning_rate_at(300, config) == pytest.approx(4e-4)


def test_a_run_without_warm_up_starts_at_the_peak() -> None:
    assert learning_rate_at(0, loop(warmup_steps=0)) == 2e-3
    assert learning_rate_at(5, loop(steps=6, warmup_steps=10)) == pytest.approx(2e-3 * 0.6)


def test_came_takes_all_with_its_three_shares() -> None:
    model = Net()
    (came,) = build_optimizers(model, loop(optimizer="came", weight_decay=0.3, confidence_beta=0.995))
    assert isinstance(came, CAME)
    decayed, kept = came.param_groups
    assert named(model, kept["params"]) == VECTORS
    assert decayed["betas"] == (0.9, 0.99, 0.995)


def test_adamw_goes_on_as_published_from_what_was_kept_whatever_the_layout() -> None:
    def built() -> tuple[nn.Module, list[Optimizer]]:
        torch.manual_seed(0)
        model = nn.Conv2d(6, 5, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model, build_optimizers(model, loop(weight_decay=0.1))

    def learn(model: nn.Module, step: int) -> None:
        model.zero_grad()
        x = torch.randn(2, 6, 5, 5, generator=torch.Generator().manual_seed(step))
        model(x.contiguous(memory_format=torch.channels_last)).square().mean().backward()

    model, first = built()
    learn(model, 1)
    first[0].step()
    kept, options = optimizer_state.moments(first), optimizer_state.groups(first)
    again, second = built()
    again.load_state_dict(model.state_dict())
    stored = {name: each.clone(memory_format=torch.contiguous_format) for name, each in kept.items()}
    optimizer_state.restore(second, stored, options)
    before = [each.detach().clone() for each in again.parameters()]
    learn(again, 2)
    second[0].step()
    decays, (low, high) = (0.1, 0.0), loop().betas
    for index, (parameter, old) in enumerate(zip(again.parameters(), before, strict=True)):
        assert parameter.grad is not None
        mean = low * kept[f"0.{index}.exp_avg"] + (1 - low) * parameter.grad
        square = high * kept[f"0.{index}.exp_avg_sq"] + (1 - high) * parameter.grad.square()
        direction = (mean / (1 - low**2)) / ((square / (1 - high**2)).sqrt() + 1e-8)
        wanted = old * (1 - 2e-3 * decays[index]) - 2e-3 * direction
        torch.testing.assert_close(parameter.detach(), wanted, rtol=1e-6, atol=1e-7)


def test_options_are_of_the_optimizer_that_goes_on_and_only_the_rate_is_of_the_one_before() -> None:
    saved = AdamW([nn.Parameter(torch.ones(2, 3))], lr=0.5, betas=(0.1, 0.2), weight_decay=0.3, fused=True)
    own = AdamW([nn.Parameter(torch.ones(2, 3))], lr=0.1, betas=(0.8, 0.9), weight_decay=0.7)
    optimizer_state.restore([own], {}, optimizer_state.groups([saved]))
    (group,) = own.param_groups
    assert (group["betas"], group["weight_decay"], group["fused"]) == ((0.8, 0.9), 0.7, None)
    assert group["lr"] == 0.5


@pytest.mark.parametrize(("capturable", "device"), [(True, "meta"), (False, "cpu")])
def test_counts_lie_beside_their_parameter_where_the_update_needs_them_there(
    capturable: bool, device: str
) -> None:
    parameter = nn.Parameter(torch.ones(2, 3, device="meta"))
    own = AdamW([parameter], capturable=capturable)
    kept = {"0.0.step": torch.tensor(3.0), "0.0.exp_avg": torch.zeros(2, 3)}
    # Counts of a run on a CPU.
    optimizer_state.restore([own], kept, optimizer_state.groups([AdamW([torch.ones(2, 3)], fused=True)]))
    assert own.state[parameter]["step"].device.type == device
    assert own.state[parameter]["exp_avg"].device.type == "meta"


def test_eight_bits_need_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizer, "find_spec", lambda name: None)
    with pytest.raises(
        MissingExtraError, match="adamw8bit needs the package bitsandbytes: pip install bitsand"
    ):
        build_optimizers(Net(), loop(optimizer="adamw8bit"))


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_eight_bits_go_on_from_what_was_kept() -> None:
    def learn(model: nn.Module, optimizers: list[Optimizer], steps: range) -> None:
        for step in steps:
            for parameter in model.parameters():
                parameter.grad = torch.randn(
                    parameter.shape, generator=torch.Generator().manual_seed(step * 100 + parameter.numel())
                )
            for each in optimizers:
                each.step()

    def built() -> tuple[nn.Module, list[Optimizer]]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(80, 70), nn.Linear(70, 3))
        return model, build_optimizers(model, loop(optimizer="adamw8bit"))

    whole, before = built()
    learn(whole, before, range(4))
    parts, first = built()
    learn(parts, first, range(2))
    kept, options = optimizer_state.moments(first), optimizer_state.groups(first)
    # Moments of 8 bits, where there are many.
    assert {kept[f"0.0.{name}"].dtype for name in ("state1", "state2")} == {torch.uint8}
    again, second = built()
    again.load_state_dict(parts.state_dict())
    optimizer_state.restore(second, kept, options)
    learn(again, second, range(2, 4))
    for one, two in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)


def test_nothing_to_learn_is_said() -> None:
    with pytest.raises(ConfigError, match="all are frozen"):
        build_optimizers(Net().requires_grad_(False), loop())


def test_the_loss_scale_halves_at_an_overflow_and_doubles_after_many_updates() -> None:
    scale = LossScale("fp16")
    assert scale.value == 2.0**16
    scale.after(finite=False)
    for _ in range(1999):
        scale.after(finite=True)
    assert scale.value == 2.0**15
    resumed = LossScale("fp16")
    resumed.restore(scale.state())
    resumed.after(finite=True)
    assert resumed.value == 2.0**16
    with pytest.raises(NotFiniteError, match="overflow in float16 however small"):
        for _ in range(40):
            resumed.after(finite=False)
    still = LossScale("bf16")
    still.after(finite=False)
    assert (still.value, still.state()) == (1.0, {})
