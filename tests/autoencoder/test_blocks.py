"""The autoencoder's blocks against diffusers."""

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_dc import ResBlock
from torch import Tensor, nn

from lineardit.autoencoder.blocks import EfficientViTBlock, ResidualBlock, stage_blocks
from lineardit.config.models import StageConfig


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("norm", "activation"), [("rms", "silu"), ("batch", "relu"), ("rms", "relu")])
@pytest.mark.parametrize("training", [False, True])
@torch.no_grad()
def test_a_residual_block_is_that_of_diffusers(norm: str, activation: str, training: bool) -> None:
    theirs = ResBlock(7, 7, norm_type=f"{norm}_norm", act_fn=activation).train(training)
    ours = ResidualBlock(StageConfig(width=7, depth=1, norm=norm, activation=activation)).train(training)
    state = theirs.state_dict()
    for name in state:
        if name.startswith("norm.") and state[name].is_floating_point():
            state[name] = 1 + randn(7, seed=len(name)).abs()
    theirs.load_state_dict(state)
    names = {"conv1": "first", "conv2": "second", "norm": "norm"}
    ours.load_state_dict({f"{names[key.split('.')[0]]}.{key.split('.')[1]}": state[key] for key in state})
    x = randn(2, 7, 5, 11)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-5)
    if norm == "batch":
        torch.testing.assert_close(ours.norm.running_var, theirs.norm.running_var)


def test_a_stage_has_the_blocks_it_says() -> None:
    assert [type(block) for block in stage_blocks(StageConfig(width=7, depth=2), 7)] == [ResidualBlock] * 2
    blocks = stage_blocks(StageConfig(width=14, depth=3, block="efficientvit", kernels=(3, 5)), 7)
    assert [type(block) for block in blocks] == [EfficientViTBlock] * 3
    assert len(blocks[0].attention.scales) == 2
    assert stage_blocks(StageConfig(width=7, depth=0), 7) == []


@torch.no_grad()
def test_an_attentive_block_whose_norms_are_zero_is_the_identity() -> None:
    (block,) = stage_blocks(StageConfig(width=14, depth=1, block="efficientvit", kernels=(5,)), 7)
    x = randn(2, 14, 5, 11)
    assert not torch.allclose(block(x), x)
    for layer in (block.attention.norm, block.feed_forward_norm):
        nn.init.zeros_(layer.weight)
    assert torch.equal(block(x), x)


@torch.no_grad()
def test_an_attentive_block_relates_all_pixels_and_a_residual_one_its_neighbourhood() -> None:
    x = randn(1, 14, 9, 11).double()
    changed = x.clone()
    changed[0, :, 0, 0] += 1
    reached = {}
    for kind in ("residual", "efficientvit"):
        (block,) = (b.double() for b in stage_blocks(StageConfig(width=14, depth=1, block=kind), 7))
        reached[kind] = (block(changed) - block(x)).abs().amax(1)[0] > 1e-12
    assert reached["efficientvit"].all()
    assert reached["residual"][:3, :3].all() and reached["residual"].sum() == 9
