import logging

import pytest
import torch
from torch.nn import functional

from lineardit.config.models import SceneTextConfig
from lineardit.errors import ConfigError
from lineardit.text.scene_encoder import SceneTextEncoder
from lineardit.text.word_pieces import build_tokenizer

TEXTS = ["a red apple left of a cat", "two cats", "a cat on a sky blue background"]


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    tokenizer = build_tokenizer(TEXTS, 211)
    model = SceneTextEncoder(
        SceneTextConfig(vocabulary=211, width=22, depth=2, head_dim=11, max_tokens=13), tokenizer
    )
    # Sizes at which a fault in any layer changes the result.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def by_definition(encoder, tokens):
    """The equations of a pre-norm transformer in float64, one prompt, one head at a time."""
    weights = {name: value.double() for name, value in encoder.state_dict().items()}
    x = weights["pieces.weight"][tokens] + weights["positions"][: len(tokens)]
    for layer in range(encoder.config.depth):
        own = {
            name.removeprefix(f"blocks.{layer}."): value
            for name, value in weights.items()
            if name.startswith(f"blocks.{layer}.")
        }

        def linear(name, y, own=own):
            return y @ own[f"{name}.weight"].T + own[f"{name}.bias"]

        def norm(name, y, own=own):
            centred = y - y.mean(-1, keepdim=True)
            scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
            return scaled * own[f"{name}.weight"] + own[f"{name}.bias"]

        query, key, value = linear("to_qkv", norm("attention_norm", x)).chunk(3, dim=-1)
        heads = []
        for start in range(0, encoder.width, encoder.config.head_dim):
            q, k, v = (each[:, start : start + encoder.config.head_dim] for each in (query, key, value))
            heads.append((q @ k.T / encoder.config.head_dim**0.5).softmax(-1) @ v)
        x = x + linear("to_out", torch.cat(heads, dim=-1))
        hidden = functional.gelu(linear("expand", norm("feed_forward_norm", x)), approximate="tanh")
        x = x + linear("contract", hidden)
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * weights["norm.weight"] + weights["norm.bias"]


def test_the_encoder_is_a_pre_norm_transformer(encoder):
    (tokens,) = encoder.tokens(["a red apple left of a cat"])
    (got,) = encoder.encode(["a red apple left of a cat"]).embeddings
    torch.testing.assert_close(got.double(), by_definition(encoder, tokens), atol=2e-5, rtol=0)


def test_a_prompt_has_the_same_embedding_to_the_bit_in_every_batch(encoder):
    prompts = ["a cat", "a red apple left of a cat", "", "a cat"]
    together = encoder.encode(prompts)
    assert together.mask.sum(1).tolist() == [3, 8, 1, 3]
    for row, prompt in enumerate(prompts):
        alone = encoder.encode([prompt])
        length = alone.mask.shape[1]
        assert torch.equal(together.embeddings[row, :length], alone.embeddings[0])
        assert not together.embeddings[row, length:].any()


def test_what_the_mask_leaves_out_is_not_looked_at(encoder):
    (tokens,) = encoder.tokens(["a cat on a sky"])
    rows = torch.tensor([[*tokens, 7, 9], [*tokens, 1, 2]])
    mask = torch.arange(rows.shape[1]) < len(tokens)
    padded = encoder(rows, mask.expand_as(rows))[:, : len(tokens)]
    torch.testing.assert_close(padded, encoder(torch.tensor([tokens] * 2)), atol=1e-5, rtol=0)


def test_the_order_of_words_matters(encoder):
    embeddings = encoder.encode(["cat red apple", "apple red cat"]).embeddings
    assert not torch.allclose(embeddings[0].flip(0), embeddings[1], atol=1e-2)


def test_a_negative_prompt_is_encoded_like_any_other(encoder):
    assert torch.equal(encoder.encode(["a cat"]).embeddings, encoder.encode_negative(["a cat"]).embeddings)


def test_words_beyond_the_budget_are_cut_and_named(encoder, caplog):
    with caplog.at_level(logging.WARNING):
        embedding = encoder.encode(["a cat a cat a cat a cat a cat a cat a red apple"])
    assert embedding.mask.sum().item() == 13
    assert caplog.messages == [
        "the prompt is longer than 13 tokens; cut off, and not in the picture: a red apple"
    ]


def test_a_prompt_of_exactly_the_budget_is_not_cut(encoder, caplog):
    with caplog.at_level(logging.WARNING):
        assert encoder.encode(["a cat a cat a cat a cat a cat a cat"]).mask.sum().item() == 13
    assert not caplog.messages


def test_a_vocabulary_larger_than_the_table_is_refused():
    tokenizer = build_tokenizer(TEXTS, 211)
    with pytest.raises(ConfigError, match="vocabulary=20 is less than the"):
        SceneTextEncoder(SceneTextConfig(vocabulary=20, width=22, depth=1, head_dim=11), tokenizer)
