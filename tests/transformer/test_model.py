"""The SANA transformer: its published sizes, what its inputs may change, and what they must not."""

import pytest
import torch
from torch import Tensor, nn

from lineardit.config.models import TransformerConfig
from lineardit.config.presets import TRANSFORMERS, differing
from lineardit.errors import InputError, ShapeError
from lineardit.transformer.block import Block, Grid, Modulation
from lineardit.transformer.model import Transformer

SMALL = TransformerConfig(
    latent_channels=3, depth=2, width=60, head_dim=12, cross_head_dim=20, text_width=11, position_base=5
)
EQUAL = {"rtol": 0.0, "atol": 1e-5}


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def model(config: TransformerConfig = SMALL, *, trained: bool = True) -> Transformer:
    """With `trained`, nothing is zero any more."""
    torch.manual_seed(0)
    transformer = Transformer(config).eval()
    if trained:
        for number, parameter in enumerate(transformer.parameters()):
            parameter.data += 0.1 * randn(*parameter.shape, seed=number)
    return transformer


LATENTS, TEXT = randn(2, 3, 5, 7, seed=1), randn(2, 13, 11, seed=2)
TIMES = torch.tensor([0.25, 0.75])
MASK = torch.arange(13) < torch.tensor([[13], [4]])


@pytest.mark.parametrize(
    ("name", "changes", "millions"),
    [
        ("sana-0.6b", {}, "591.75"),
        ("sana-0.6b", {"qk_norm": True}, "591.88"),
        ("sana-sprint-0.6b", {}, "593.50"),
        ("sana-1.6b", {}, "1604.46"),
        ("sana-1.5-1.6b", {}, "1604.64"),
        ("sana-sprint-1.6b", {}, "1610.24"),
        ("sana-1.5-4.8b", {"qk_norm": False}, "4721.3"),
        ("sana-1.5-4.8b", {}, "4721.8"),
    ],
)
def test_a_published_size_has_the_published_count(name: str, changes: dict[str, bool], millions: str) -> None:
    with torch.device("meta"):
        transformer = Transformer(differing(TRANSFORMERS[name], **changes))
    assert all(parameter.is_meta for parameter in transformer.parameters())
    count = sum(parameter.numel() for parameter in transformer.parameters())
    assert f"{count / 1e6:.{len(millions.partition('.')[2])}f}" == millions


def test_the_meta_device_is_not_initialised(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(Transformer, "initialise", lambda self: calls.append(self))
    with torch.device("meta"):
        Transformer(SMALL)
    assert not calls
    Transformer(SMALL)
    assert len(calls) == 1


def test_the_first_velocity_is_zero_and_its_gradient_is_not() -> None:
    transformer = model(trained=False)
    velocity = transformer(LATENTS, TIMES, TEXT, MASK)
    assert torch.equal(velocity, torch.zeros_like(LATENTS))
    (velocity - LATENTS).square().mean().backward()
    assert transformer.to_velocity.weight.grad.abs().max() > 0


def test_initial_weights_have_the_scales_they_are_said_to_have() -> None:
    transformer = model(differing(SMALL, width=240, guidance_embedding=True), trained=False)
    block = transformer.blocks[0]
    spreads = {
        block.attention.to_out.weight: (2 / 480) ** 0.5,
        block.feed_forward.depthwise.weight: (1 / 27) ** 0.5,
        transformer.conditioning.time.first.weight: 0.02,
        transformer.conditioning.to_table.weight: 0.02,
        transformer.prompt_projection.second.weight: 0.02,
        block.offset: 240**-0.5,
    }
    for weight, spread in spreads.items():
        assert weight.std().item() == pytest.approx(spread, rel=0.1)
    assert (transformer.prompt_projection.norm.weight == 0.01).all()
    assert not transformer.conditioning.guidance.second.weight.any()
    biases = (parameter for name, parameter in transformer.named_parameters() if name.endswith("bias"))
    assert not any(bias.any() for bias in biases)


@pytest.mark.parametrize("changes", [{}, {"qk_norm": True, "guidance_embedding": True, "position": "sincos"}])
def test_gradients_reach_every_weight(changes: dict[str, object]) -> None:
    transformer = model(differing(SMALL, **changes))
    guidance = torch.tensor([1.0, 4.5]) if transformer.config.guidance_embedding else None
    transformer(LATENTS, TIMES, TEXT, MASK, guidance).square().mean().backward()
    still = [name for name, p in transformer.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still


@torch.no_grad()
def test_tokens_behind_the_mask_change_nothing() -> None:
    transformer = model()
    short = transformer(LATENTS[1:], TIMES[1:], TEXT[1:, :4])
    noisy = TEXT.clone()
    noisy[1, 4:] = 1e3
    torch.testing.assert_close(transformer(LATENTS, TIMES, noisy, MASK)[1:], short, **EQUAL)


@torch.no_grad()
def test_tokens_before_the_mask_do_change_it() -> None:
    transformer, other = model(), TEXT.clone()
    other[1, 3] += 1
    moved = (transformer(LATENTS, TIMES, other, MASK) - transformer(LATENTS, TIMES, TEXT, MASK)).abs()
    assert moved[0].max() == 0 and moved[1].max() > 1e-3


@torch.no_grad()
def test_a_prompt_that_says_nothing_gives_no_nan() -> None:
    velocity = model()(LATENTS, TIMES, TEXT, torch.zeros(2, 13, dtype=torch.bool))
    assert velocity.isfinite().all()


@torch.no_grad()
def test_a_picture_is_what_it_is_alone_whatever_its_batch() -> None:
    transformer = model(differing(SMALL, qk_norm=True))
    together = transformer(LATENTS, TIMES, TEXT, MASK)
    for i in (0, 1):
        alone = transformer(LATENTS[i : i + 1], TIMES[i : i + 1], TEXT[i : i + 1], MASK[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, **EQUAL)


@pytest.mark.parametrize("position", ["none", "sincos"])
@pytest.mark.parametrize("patch_size", [1, 2])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 11), (5, 5), (7, 3)])
@torch.no_grad()
def test_any_size_that_the_patch_divides_goes_in_and_comes_out(
    position: str, patch_size: int, rows: int, columns: int
) -> None:
    transformer = model(differing(SMALL, position=position, patch_size=patch_size))
    latents = randn(2, 3, rows * patch_size, columns * patch_size, seed=1)
    velocity = transformer(latents, TIMES, TEXT)
    assert velocity.shape == latents.shape and velocity.isfinite().all()


@torch.no_grad()
def test_without_positions_tokens_know_only_their_neighbours() -> None:
    # So a flat picture stays flat everywhere but at the border, which the padded convolutions see.
    transformer = model(differing(SMALL, depth=1))
    velocity = transformer(torch.ones(1, 3, 7, 9), TIMES[:1], TEXT[:1])
    inside = velocity[:, :, 1:-1, 1:-1]
    torch.testing.assert_close(inside, inside[:, :, :1, :1].expand_as(inside), **EQUAL)
    placed = model(differing(SMALL, depth=1, position="sincos"))
    inside = placed(torch.ones(1, 3, 7, 9), TIMES[:1], TEXT[:1])[:, :, 1:-1, 1:-1]
    assert (inside - inside[:, :, :1, :1]).abs().max() > 1e-2


@torch.no_grad()
def test_patches_go_back_to_where_they_came_from() -> None:
    transformer = model(differing(SMALL, patch_size=2, depth=1))
    # Everything off but the way through: tokens are patches, and the velocity is read off them.
    for parameter in transformer.parameters():
        nn.init.zeros_(parameter)
    for corner in range(4):
        p, q = divmod(corner, 2)
        for channel in range(3):
            slot = corner * 3 + channel
            transformer.patchify.weight[slot, channel, p, q] = 1
            transformer.to_velocity.weight[slot, slot] = 1
    latents = randn(1, 3, 6, 10, seed=1)
    tokens = transformer.patchify(latents).flatten(2).transpose(1, 2)
    normed = nn.functional.layer_norm(tokens, (60,), eps=1e-6)
    velocity = transformer(latents, TIMES[:1], TEXT[:1])
    token = normed[0, 1 * 5 + 2]
    expected = token[:12].view(2, 2, 3).permute(2, 0, 1)
    torch.testing.assert_close(velocity[0, :, 2:4, 4:6], expected)


@torch.no_grad()
def test_the_network_sees_the_time_at_its_scale() -> None:
    per_mille, plain = model(), model(differing(SMALL, time_scale=1.0))
    out = per_mille(LATENTS, TIMES, TEXT)
    torch.testing.assert_close(out, plain(LATENTS, 1000 * TIMES, TEXT), **EQUAL)
    assert (out - per_mille(LATENTS, TIMES.flip(0), TEXT)).abs().max() > 1e-2


@torch.no_grad()
def test_guidance_is_embedded_at_its_scale() -> None:
    config = differing(SMALL, guidance_embedding=True)
    tenth, plain = model(config), model(differing(config, guidance_embedding_scale=1.0))
    scales = torch.tensor([1.0, 4.5])
    out = tenth(LATENTS, TIMES, TEXT, MASK, scales)
    torch.testing.assert_close(out, plain(LATENTS, TIMES, TEXT, MASK, 0.1 * scales), **EQUAL)
    assert (out - tenth(LATENTS, TIMES, TEXT, MASK, 2 * scales)).abs().max() > 1e-3


@torch.no_grad()
def test_bfloat16_weights_take_float32_latents_and_stay_close() -> None:
    transformer = model()
    expected = transformer(LATENTS, TIMES, TEXT, MASK)
    half = transformer.bfloat16()(LATENTS, TIMES, TEXT, MASK)
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).norm() < 0.05 * expected.norm()


@torch.no_grad()
def test_a_block_is_its_three_branches() -> None:
    block = model().blocks[0]
    x, prompt, table = randn(2, 35, 60, seed=3), randn(2, 13, 60, seed=4), randn(2, 6, 60, seed=5)
    shift, scale, gate, last_shift, last_scale, last_gate = (block.offset + table).split(1, dim=1)

    def normed(y: Tensor) -> Tensor:
        return (y - y.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()

    expected = x + gate * block.attention(normed(x) * (1 + scale) + shift)
    expected = expected + block.cross_attention(expected, prompt, MASK)
    steered = (normed(expected) * (1 + last_scale) + last_shift).view(2, 5, 7, 60)
    expected = expected + last_gate * block.feed_forward(steered).view(2, 35, 60)
    torch.testing.assert_close(block(x, prompt, MASK, table, Grid(5, 7)), expected, **EQUAL)


def test_a_table_of_six_rows_is_two_modulations() -> None:
    table = randn(2, 6, 60, seed=1)
    first, last = Modulation.pair(table)
    rows = [*first, *last]
    assert all(torch.equal(row, table[:, i : i + 1]) for i, row in enumerate(rows))
    x = randn(2, 35, 60, seed=2)
    assert torch.equal(last.steer(x), x * (1 + table[:, 4:5]) + table[:, 3:4])


def test_blocks_have_the_shapes_of_their_configuration() -> None:
    block = Block(differing(SMALL, feed_forward_ratio=3.0))
    assert block.attention.head_dim == 12 and block.cross_attention.head_dim == 20
    assert block.feed_forward.depthwise.weight.shape == (360, 1, 3, 3)


@pytest.mark.parametrize(
    ("height", "width", "complaint"),
    [
        (7, 6, "latent height=7 is not a multiple of patch_size=4. Use 4 or 8."),
        (8, 3, "latent width=3 is not a multiple of patch_size=4. Use 4."),
        (0, 8, "latent height=0 is not a multiple of patch_size=4. Use 4."),
    ],
)
def test_a_size_that_the_patch_does_not_divide_is_refused(height: int, width: int, complaint: str) -> None:
    transformer = model(differing(SMALL, patch_size=4))
    with pytest.raises(ShapeError) as caught:
        transformer(torch.zeros(2, 3, height, width), TIMES, TEXT)
    assert str(caught.value) == complaint


def test_text_of_another_encoder_is_refused() -> None:
    with pytest.raises(ShapeError, match="text embeddings have width 12, the model takes text_width=11"):
        model()(LATENTS, TIMES, torch.zeros(2, 13, 12))


def test_guidance_goes_to_models_that_take_it_and_to_no_others() -> None:
    with pytest.raises(InputError, match="guidance is given to a model without guidance_embedding"):
        model()(LATENTS, TIMES, TEXT, guidance=torch.ones(2))
    with pytest.raises(InputError, match="guidance is missing: a model with guidance_embedding needs"):
        model(differing(SMALL, guidance_embedding=True))(LATENTS, TIMES, TEXT)
