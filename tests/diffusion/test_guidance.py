"""Guidance: its formula, which branches run when, and prompt dropout."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lineardit.diffusion.guidance import Interval, guide, guided, guided_apart, prompt_dropout
from lineardit.diffusion.samplers import euler
from lineardit.diffusion.times import flow_times
from lineardit.errors import InputError


class Counted:
    """A velocity that remembers how many samples each call had."""

    def __init__(self, velocity) -> None:
        self.velocity = velocity
        self.batches: list[int] = []

    def __call__(self, x: Tensor, times: Tensor) -> Tensor:
        self.batches.append(len(x))
        return self.velocity(x, times)


def over(times: Tensor) -> Tensor:
    return times[:, None, None]


def with_prompt(x: Tensor, times: Tensor) -> Tensor:
    return torch.sin(x) + over(times)


def without_prompt(x: Tensor, times: Tensor) -> Tensor:
    return torch.cos(x) * over(times)


def pair(x: Tensor, times: Tensor) -> Tensor:
    half = len(x) // 2
    return torch.cat([without_prompt(x[:half], times[:half]), with_prompt(x[half:], times[half:])])


X = torch.randn(3, 2, 7, generator=torch.Generator().manual_seed(0))
TIMES = torch.tensor([0.2, 0.5, 0.9])


def test_guidance_moves_away_from_the_unconditional_velocity():
    c, u = with_prompt(X, TIMES), without_prompt(X, TIMES)
    torch.testing.assert_close(guide(c, u, 4.5), u + 4.5 * (c - u))


def test_scale_one_is_exactly_the_conditional_velocity():
    c = with_prompt(X, TIMES)
    assert torch.equal(guide(c, without_prompt(X, TIMES), 1.0), c)
    assert torch.equal(guided(pair, 1.0)(X, TIMES), c)
    assert torch.equal(guided_apart(with_prompt, without_prompt, 1.0)(X, TIMES), c)


def test_the_batched_form_calls_the_model_once_with_every_sample_twice():
    model = Counted(pair)
    out = guided(model, 4.5)(X, TIMES)
    assert model.batches == [6]
    torch.testing.assert_close(out, guide(with_prompt(X, TIMES), without_prompt(X, TIMES), 4.5))


def test_both_forms_agree():
    torch.testing.assert_close(
        guided(pair, 4.5)(X, TIMES), guided_apart(with_prompt, without_prompt, 4.5)(X, TIMES)
    )


def test_every_sample_may_have_its_own_scale():
    scales = torch.tensor([1.0, 3.0, 7.5])
    out = guided(pair, scales)(X, TIMES)
    for k, scale in enumerate(scales.tolist()):
        alone = guided(pair, scale)(X[k : k + 1], TIMES[k : k + 1])
        torch.testing.assert_close(out[k : k + 1], alone)


def test_guidance_of_bfloat16_branches_runs_in_float32():
    c, u = with_prompt(X, TIMES).bfloat16(), without_prompt(X, TIMES).bfloat16()
    out = guide(c, u, 4.5)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, c.float() + 3.5 * (c.float() - u.float()))


def test_outside_of_the_interval_only_the_conditional_branch_runs():
    both, alone = Counted(pair), Counted(with_prompt)
    velocity = guided(both, 4.5, alone, Interval(0.25, 0.75))
    for _ in euler(velocity, X, flow_times(10)):
        pass
    # Of the times 1.0, 0.9 ... 0.1, five lie in [0.25, 0.75]: 0.7, 0.6, 0.5, 0.4 and 0.3.
    assert both.batches == [6] * 5
    assert alone.batches == [3] * 5


def test_the_sequential_form_skips_the_unconditional_branch_too():
    conditional, unconditional = Counted(with_prompt), Counted(without_prompt)
    velocity = guided_apart(conditional, unconditional, 4.5, Interval(0.25, 0.75))
    for _ in euler(velocity, X, flow_times(10)):
        pass
    assert len(conditional.batches) == 10
    assert len(unconditional.batches) == 5


def test_at_scale_one_the_second_branch_never_runs():
    both, alone = Counted(pair), Counted(with_prompt)
    guided(both, 1.0, alone)(X, TIMES)
    assert (both.batches, alone.batches) == ([], [3])


def test_samples_of_one_batch_may_lie_on_both_sides_of_the_interval():
    out = guided(pair, 4.5, with_prompt, Interval(0.0, 0.5))(X, TIMES)
    torch.testing.assert_close(out[:2], guided(pair, 4.5)(X, TIMES)[:2])
    assert torch.equal(out[2], with_prompt(X, TIMES)[2])


@pytest.mark.parametrize("interval", [Interval(0.0, 1.0 - 2**-9), Interval(0.0, 0.5), Interval(0.95, 1.0)])
def test_times_are_looked_at_once_a_step_since_that_stalls_a_gpu(interval: Interval):
    looks = []

    class Looks(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            looks.extend([function] * (function.overloadpacket is torch.ops.aten._local_scalar_dense))
            return function(*args, **(kwargs or {}))

    velocity = guided_apart(with_prompt, without_prompt, 4.5, interval)
    with Looks():
        velocity(X, TIMES)
    assert len(looks) == 1


def test_an_interval_without_a_conditional_branch_is_refused():
    with pytest.raises(InputError, match="needs the conditional velocity"):
        guided(pair, 4.5, interval=Interval(0.0, 0.5))


@pytest.mark.parametrize(("lowest", "highest"), [(0.5, 0.5), (0.7, 0.2), (-0.1, 1.0), (0.0, 1.1)])
def test_an_interval_that_does_not_rise_within_0_and_1_is_refused(lowest: float, highest: float):
    with pytest.raises(InputError, match="does not rise within 0 and 1"):
        Interval(lowest, highest)


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf"), torch.tensor([1.0, -2.0])])
def test_a_scale_that_is_no_number_from_0_up_is_refused(scale):
    with pytest.raises(InputError, match="is not 0 or more"):
        guided(pair, scale)


def test_prompts_are_dropped_as_often_as_asked_for():
    generator = torch.Generator().manual_seed(0)
    dropped = prompt_dropout(100_000, 0.1, generator)
    assert dropped.dtype == torch.bool
    # Three standard deviations of 100,000 draws.
    assert abs(dropped.float().mean() - 0.1) < 0.003
    assert not prompt_dropout(1000, 0.0, generator).any()
    assert prompt_dropout(1000, 1.0, generator).all()


def test_dropout_follows_its_generator():
    first, again = (prompt_dropout(64, 0.5, torch.Generator().manual_seed(2)) for _ in range(2))
    assert torch.equal(first, again)


def test_a_dropout_probability_above_one_is_refused():
    with pytest.raises(InputError, match="does not lie in"):
        prompt_dropout(4, 1.5, torch.Generator())
