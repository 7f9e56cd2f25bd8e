"""The article's SANA: what its formulas say, in float64, and what its faults would have done."""

import pytest
import torch
from torch.nn import functional

from lineardit.config.article import ARTICLES, ArticleConfig
from lineardit.errors import ConfigError, InputError, ShapeError
from lineardit.nn.embedding import sinusoids
from lineardit.transformer.article import ArticleSana, LearnedMapAttention, MixFeedForward
from lineardit.transformer.block import Grid

SMALL = ArticleConfig(
    latent_channels=5,
    patch_size=1,
    width=12,
    depth=9,
    heads=2,
    qk_dim=3,
    feed_forward_ratio=2.0,
    text_width=7,
    cross_attention_every=4,
    position_base=4,
)


def awake(config: ArticleConfig = SMALL) -> ArticleSana:
    """A model in float64 all of whose weights say something."""
    torch.manual_seed(0)
    model = ArticleSana(config).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def inputs(height: int = 4, width: int = 4) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 5, height, width, generator=generator, dtype=torch.float64)
    text = torch.randn(2, 11, 7, generator=generator, dtype=torch.float64)
    mask = torch.arange(11) < torch.tensor([[11], [6]])
    return latents, torch.tensor([3, 998]), text, mask


def test_attention_is_the_quadratic_definition_with_a_learned_feature_map() -> None:
    torch.manual_seed(0)
    layer = LearnedMapAttention(SMALL).double()
    x = torch.randn(2, 13, 12, dtype=torch.float64)
    query, key = (
        layer.to_feature(each(x).unflatten(-1, (2, 3))).relu() for each in (layer.to_query, layer.to_key)
    )
    weights = torch.einsum("bnhd,bmhd->bhnm", query, key)
    value = layer.to_value(x).unflatten(-1, (2, 6))
    mixed = torch.einsum("bhnm,bmhe->bnhe", weights / (weights.sum(-1, keepdim=True) + 1e-15), value)
    torch.testing.assert_close(layer(x), layer.to_out(mixed.flatten(2)), rtol=0.0, atol=1e-12)


def test_mix_ffn_is_linear_then_a_look_at_the_neighbours_then_linear() -> None:
    torch.manual_seed(0)
    layer = MixFeedForward(3, 7).double()
    x = torch.randn(2, 4, 5, 3, dtype=torch.float64)
    padded = functional.pad(layer.expand(x), (0, 0, 1, 1, 1, 1))
    near = layer.depthwise.bias + sum(
        padded[:, i : i + 4, j : j + 5] * layer.depthwise.weight[:, 0, i, j]
        for i in range(3)
        for j in range(3)
    )
    torch.testing.assert_close(layer(x), layer.contract(functional.gelu(near)), rtol=0.0, atol=1e-12)


def test_the_whole_network_is_its_parts_in_the_articles_order() -> None:
    model = awake()
    latents, times, text, mask = inputs()
    x = model.to_tokens(latents.flatten(2).transpose(1, 2)) + model.positions.flatten(2).transpose(1, 2)
    prompt = model.to_prompt(text)
    pooled = torch.stack([prompt[0].mean(0), prompt[1, :6].mean(0)])
    condition = model.time(sinusoids(times.float(), 12).double()) + pooled
    for number, block in enumerate(model.blocks):
        x = block(x, condition, Grid(4, 4))
        if number in (3, 7):
            x = model.prompt_blocks[number // 4](x, prompt, mask)
    right = model.to_noise(model.norm(x)).transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(model(latents, times, text, mask), right, rtol=0.0, atol=1e-12)
    assert len(model.prompt_blocks) == 2


def test_what_the_mask_hides_says_nothing() -> None:
    model = awake()
    latents, times, text, mask = inputs()
    other = torch.where(mask.unsqueeze(-1), text, 100.0)
    assert torch.equal(model(latents, times, text, mask), model(latents, times, other, mask))
    assert not torch.allclose(model(latents, times, text, mask), model(latents, times, text))


def test_a_mask_that_hides_everything_gives_no_nan() -> None:
    model = awake()
    latents, times, text, _ = inputs()
    hidden = torch.zeros(2, 11, dtype=torch.bool)
    right = model(latents, times, text)
    torch.testing.assert_close(model(latents, times, text, hidden), right, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("sides", [(4, 4), (8, 8), (6, 3)])
def test_positions_stretch_to_other_sizes(sides: tuple[int, int]) -> None:
    model = awake()
    assert model(*inputs(*sides)).shape == (2, 5, *sides)
    rows = torch.arange(4, dtype=torch.float64).view(4, 1).expand(1, 12, 4, 4)
    model.positions.data.copy_(rows)
    stretched = model._positions(Grid(8, 8)).unflatten(1, (8, 8))[0, :, 0, 0]
    right = torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3], dtype=torch.float64)
    torch.testing.assert_close(stretched, right)


def test_a_fresh_model_says_zero_and_its_blocks_change_nothing() -> None:
    model = ArticleSana(SMALL).double()
    latents, times, text, mask = inputs()
    assert torch.equal(model(latents, times, text, mask), torch.zeros_like(latents))
    x, condition = torch.randn(2, 16, 12, dtype=torch.float64), torch.randn(2, 12, dtype=torch.float64)
    assert torch.equal(model.blocks[0](x, condition, Grid(4, 4)), x)


def test_patches_come_back_where_they_were() -> None:
    config = SMALL.model_copy(update={"patch_size": 2, "latent_channels": 3, "depth": 0})
    model = ArticleSana(config).double()
    # 3 channels of 2x2 places are 12 numbers: the width. All layers pass them on.
    for layer in (model.to_tokens, model.to_noise):
        torch.nn.init.eye_(layer.weight)
    model.norm = torch.nn.Identity()
    latents = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert torch.equal(model(latents, *inputs()[1:]), latents)


def test_the_preset_is_the_articles_call() -> None:
    with torch.device("meta"):
        model = ArticleSana.build()
    assert model.config == ARTICLES["article-sana"]
    # Per block: attention, its feature map, the Mix-FFN and the table; 7 cross-attentions.
    width, heads = 1152, 16 * 64
    block = 2 * (width + 1) * heads + 2 * (width + 1) * width + 65 * 64
    block += (width + 1) * 4608 + 4608 * 10 + 4609 * width + (width + 1) * 6 * width
    prompt = 2 * width + 4 * (width + 1) * width
    outside = 33 * width + 1024 * width + 2 * (width + 1) * width + 4097 * width + 2 * width + 1153 * 32
    assert sum(parameter.numel() for parameter in model.parameters()) == 28 * block + 7 * prompt + outside


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents": torch.zeros(2, 4, 4, 4)}, "latents have 4 channels, the model takes 5"),
        ({"text": torch.zeros(2, 11, 8)}, "text have 8 channels, the model takes 7"),
        ({"latents": torch.zeros(2, 5, 0, 4)}, "latent height=0 is not a multiple of patch_size=1. Use 1."),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, torch.Tensor], message: str) -> None:
    latents, times, text, _ = inputs()
    given = {"latents": latents, "times": times, "text": text} | change
    with pytest.raises(ShapeError, match=message):
        ArticleSana(SMALL).double()(**given)


def test_a_time_out_of_range_is_refused() -> None:
    latents, _, text, _ = inputs()
    with pytest.raises(InputError, match=r"times \[0, 1000\] do not all lie in 0 <= time < 1000"):
        ArticleSana(SMALL).double()(latents, torch.tensor([0, 1000]), text)


def test_shapes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="width=10 does not split into heads=4. Use width=8 or width=12."):
        ArticleConfig(width=10, heads=4)
    with pytest.raises(ConfigError, match="patch_size=16 pixels must be a multiple of 32"):
        ArticleSana.build(patch_size=16)
