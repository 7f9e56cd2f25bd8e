"""The average of the weights, in closed form."""

import pytest
import torch
from torch import nn

from lineardit.training.average import WeightAverage


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
