"""The average of the weights, in closed form."""

import pytest
import torch
from torch import nn

from lineardit.errors import InputError
from lineardit.training.average import WeightAverage, exponent_of


def scalar(value: float) -> nn.Linear:
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(value)
    return model.double()


def test_after_the_half_life_the_old_weights_count_half() -> None:
    model = scalar(1.0)
    average = WeightAverage(model, half_life=7.0)
    with torch.no_grad():
        model.weight.fill_(0.0)
    for step in range(1000, 1014):
        average.update(model, step)
        left = 0.5 ** ((step - 999) / 7)
        assert average.model.weight.item() == pytest.approx(left, rel=1e-12)


def test_the_random_start_is_forgotten_early() -> None:
    model = scalar(1.0)
    average = WeightAverage(model, half_life=1e9)
    with torch.no_grad():
        model.weight.fill_(0.0)
    left = 1.0
    for step in range(100):
        average.update(model, step)
        left *= 0.5 ** (10 / (step + 1))
        assert average.model.weight.item() == pytest.approx(left, rel=1e-9)
    assert left < 1e-15


def test_buffers_are_copied_and_the_average_is_never_trained() -> None:
    model = nn.BatchNorm1d(3)
    average = WeightAverage(model, half_life=100.0)
    model.running_mean.fill_(5.0)
    model.num_batches_tracked.fill_(4)
    average.update(model, 500)
    assert average.model.running_mean.tolist() == [5.0] * 3
    assert int(average.model.num_batches_tracked) == 4
    assert not average.model.training and model.training
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
    assert average.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("width", [0.05, 0.1, 0.2])
def test_a_power_function_average_has_the_width_that_was_asked_for(width: float) -> None:
    steps = 2000
    average = WeightAverage(scalar(0.0), half_life=1.0, width=width)
    shares = [average.share(step) for step in range(steps)]
    weights = torch.ones(steps, dtype=torch.float64)
    for step, share in enumerate(shares):
        weights[:step] *= 1 - share
        weights[step] *= share
    assert weights.sum().item() == pytest.approx(1, rel=1e-12)
    times = torch.arange(1, steps + 1, dtype=torch.float64)
    mean = (weights * times).sum()
    deviation = (weights * (times - mean).square()).sum().sqrt()
    assert (deviation / steps).item() == pytest.approx(width, rel=0.01)
    # Weights of the paper's profile: step s counts as s^gamma.
    gamma = exponent_of(width)
    profile = times**gamma / (times**gamma).sum()
    torch.testing.assert_close(weights[200:], profile[200:], rtol=0.05, atol=0)


def test_a_power_function_average_follows_its_shares() -> None:
    model = scalar(1.0)
    average = WeightAverage(model, half_life=1.0, width=0.1)
    expected = 1.0
    for step in range(5):
        with torch.no_grad():
            model.weight.fill_(float(step))
        average.update(model, step)
        expected += (step - expected) * average.share(step)
        assert average.model.weight.item() == pytest.approx(expected, rel=1e-12)
    assert average.share(0) == 1


def test_the_exponents_of_the_paper_are_found() -> None:
    # Table 2 of arXiv:2312.02696 pairs gamma = 6.94 with 0.10, and 16.97 with 0.05.
    assert exponent_of(0.10) == pytest.approx(6.94, abs=0.005)
    assert exponent_of(0.05) == pytest.approx(16.97, abs=0.005)
    with pytest.raises(InputError, match=r"width=0.5 lies outside 0 .. 0.289"):
        exponent_of(0.5)
