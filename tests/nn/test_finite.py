"""The first layer whose output is not finite is named."""

import pytest
import torch
from torch import Tensor, nn

from lineardit.errors import NotFiniteError
from lineardit.nn.finite import check_parameters, finite_outputs


class Inverse(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 1 / x


@pytest.fixture
def model() -> nn.Sequential:
    return nn.Sequential(nn.Identity(), nn.Sequential(nn.ReLU(), Inverse()), nn.Identity())


def test_the_first_layer_that_fails_is_named(model: nn.Sequential) -> None:
    with (
        finite_outputs(model),
        pytest.raises(NotFiniteError, match=r"1\.1 \(Inverse\) .*; its input was finite"),
    ):
        model(torch.tensor([-1.0, 2.0]))


def test_an_input_that_came_broken_is_told_apart(model: nn.Sequential) -> None:
    with (
        finite_outputs(model),
        pytest.raises(NotFiniteError, match=r"0 \(Identity\) .* was already not finite"),
    ):
        model(torch.tensor([torch.nan]))


def test_a_model_that_is_one_layer_is_called_model() -> None:
    with finite_outputs(Inverse()) as nothing:
        assert nothing is None
    layer = Inverse()
    with finite_outputs(layer), pytest.raises(NotFiniteError, match=r"layer model \(Inverse\)"):
        layer(torch.zeros(1))


def test_finite_outputs_pass_and_nothing_is_watched_afterwards(model: nn.Sequential) -> None:
    with finite_outputs(model):
        model(torch.tensor([2.0]))
    assert model(torch.tensor([-1.0])).isinf().all()


def test_the_first_parameter_that_is_not_finite_is_named(model: nn.Sequential) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    check_parameters(model)
    with torch.no_grad():
        model[1].weight[1, 0] = torch.inf
    with pytest.raises(NotFiniteError, match="parameter 1.weight holds NaN or infinity"):
        check_parameters(model)


def test_the_name_of_the_whole_comes_before_and_the_largest_input_is_told(model: nn.Sequential) -> None:
    with (
        finite_outputs(model, "transformer"),
        pytest.raises(NotFiniteError, match=r"layer transformer\.1\.1 \(Inverse\) .*, at most 2\."),
    ):
        model(torch.tensor([-1.0, 2.0]))
    with torch.no_grad():
        linear = nn.Linear(1, 1)
        linear.bias.fill_(torch.nan)
    with pytest.raises(NotFiniteError, match="parameter decoder.bias holds NaN"):
        check_parameters(linear, "decoder")
