"""The convolutional feed-forward against diffusers, and how far it sees."""

import torch
from diffusers.models.transformers.sana_transformer import GLUMBConv as DiffusersGLUMBConv
from torch import Tensor

from lineardit.nn.feed_forward import GLUMBConv


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_it_is_that_of_diffusers() -> None:
    theirs = DiffusersGLUMBConv(7, 7, 2.5, residual_connection=False)
    state = theirs.state_dict()
    ours = GLUMBConv(7, 17)
    ours.load_state_dict(
        {
            "expand.weight": state["conv_inverted.weight"].flatten(1),
            "expand.bias": state["conv_inverted.bias"],
            "depthwise.weight": state["conv_depth.weight"],
            "depthwise.bias": state["conv_depth.bias"],
            "contract.weight": state["conv_point.weight"].flatten(1),
        }
    )
    x = randn(2, 5, 11, 7, seed=1)
    expected = theirs(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(ours(x), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_pixel_reaches_its_eight_neighbours_and_no_further() -> None:
    layer = GLUMBConv(7, 17).double()
    x = randn(1, 5, 11, 7, seed=1).double()
    changed = x.clone()
    changed[0, 2, 3] += 1
    moved = (layer(changed) - layer(x)).abs().amax(-1)[0] > 0
    expected = torch.zeros(5, 11, dtype=torch.bool)
    expected[1:4, 2:5] = True
    assert torch.equal(moved, expected)


@torch.no_grad()
def test_the_second_half_gates_the_first() -> None:
    layer = GLUMBConv(7, 17)
    layer.depthwise.weight[17:] = 0
    layer.depthwise.bias[17:] = -1e4
    assert torch.equal(layer(randn(1, 5, 11, 7, seed=1)), torch.zeros(1, 5, 11, 7))
