"""Which object each token shows: the classes, the loss, and the head that is not kept."""

import copy
import math

import pytest
import torch
from torch.nn import functional

from lineardit.config.models import TransformerConfig
from lineardit.config.scenes import SceneConfig
from lineardit.data.emoji_scenes import EmojiScenes
from lineardit.data.scene import PlacedObject, Scene
from lineardit.errors import MissingFontError
from lineardit.training.layout import LayoutReader, layout_loss, objects_share, token_objects
from lineardit.transformer.model import Transformer

NAMES = ("cat", "dog", "sun")


@pytest.fixture
def transformer() -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(
        latent_channels=4, depth=4, width=16, head_dim=8, cross_head_dim=8, text_width=12
    )
    model = Transformer(config)
    torch.nn.init.normal_(model.to_velocity.weight)
    return model


def batch() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 3, 5, generator=generator)
    return latents, torch.tensor([0.3, 0.9]), torch.randn(2, 6, 12, generator=generator)


def test_tokens_under_an_object_have_its_class() -> None:
    dog = PlacedObject("dog", "small", 0.25, 0.5, 0.25)
    sun = PlacedObject("sun", "large", 0.75, 0.5, 0.5)
    (classes,) = token_objects([Scene("red", (dog, sun), "pair", "left of")], NAMES, 8, 8).view(1, 8, 8)
    expected = torch.zeros(8, 8)
    expected[3:5, 1:3] = 2
    expected[2:6, 4:8] = 3
    assert torch.equal(classes.float(), expected)


def test_in_drawn_scenes_tokens_without_an_object_have_the_colours_of_the_background() -> None:
    scenes = EmojiScenes(SceneConfig(objects=12), 3)
    drawn = [scenes.scene(index) for index in range(40)]
    try:
        pixels = scenes.draw(drawn)
    except MissingFontError as error:
        pytest.skip(str(error))
    empty = scenes.draw([Scene(scene.background, (), scene.kind) for scene in drawn])
    changed = (pixels - empty).abs().amax(1).unfold(1, 16, 16).unfold(2, 16, 16).mean((-1, -2)).flatten(1)
    shown = token_objects(drawn, scenes.names, 8, 8) > 0
    # Glyphs leave corners free and half-covered tokens count as theirs.
    assert changed[~shown].max() < 0.35 * changed[shown].mean()
    assert (changed[shown] > 0.02).float().mean() > 0.75


def test_an_object_that_is_not_listed_is_refused() -> None:
    moon = PlacedObject("moon", "small", 0.5, 0.5, 0.25)
    with pytest.raises(KeyError, match="moon"):
        token_objects([Scene("red", (moon,), "single")], NAMES, 8, 8)


def test_objects_and_background_weigh_the_same_however_few_their_tokens() -> None:
    classes = torch.tensor([[0, 0, 0, 0, 0, 0, 0, 2]])
    logits = torch.randn(1, 8, 4, generator=torch.Generator().manual_seed(0))
    each = functional.cross_entropy(logits[0], classes[0], reduction="none")
    expected = (each[:7].mean() + each[7]) / 2
    torch.testing.assert_close(layout_loss(logits, classes, objects_share(classes)), expected)
    torch.testing.assert_close(
        layout_loss(torch.zeros(1, 8, 4), classes, objects_share(classes)), torch.tensor(math.log(4))
    )
    nothing = torch.zeros_like(classes)
    assert torch.isfinite(layout_loss(logits, nothing, objects_share(nothing)))


def test_the_head_reads_after_three_quarters_of_the_blocks_and_leaves_the_velocity_alone(
    transformer: Transformer,
) -> None:
    reader = LayoutReader(transformer, len(NAMES))
    velocity, logits = reader(*batch())
    assert torch.equal(velocity, transformer(*batch()))
    assert logits.shape == (2, 15, 4)
    logits.sum().backward()
    learned = [block.attention.to_out.weight.grad is not None for block in transformer.blocks]
    assert learned == [True, True, True, False]


def test_a_copy_reads_its_own_tokens(transformer: Transformer) -> None:
    reader = LayoutReader(transformer, len(NAMES))
    other = copy.deepcopy(reader)
    with torch.no_grad():
        for parameter in other.transformer.parameters():
            parameter.zero_()
    _, logits = other(*batch())
    assert torch.equal(logits, other.head.bias.expand_as(logits))
    assert not any(block._forward_hooks for block in transformer.blocks)
