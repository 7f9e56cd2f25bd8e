"""BERT against transformers on random weights, and a pruned vocabulary against the whole one."""

import json
import logging
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="the extra [hub] is not installed")

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors  # noqa: E402

from lineardit.errors import CheckpointError  # noqa: E402
from lineardit.interop.text import (  # noqa: E402
    load_text_encoder,
    read_published_bert,
    save_text_encoder,
    text_fingerprint,
)
from lineardit.text.bert import BertEncoder, prune  # noqa: E402

SPECIAL = {"[PAD]": 0, "[CLS]": 2, "[SEP]": 3, "[UNK]": 1}
LETTERS = [f"{prefix}{letter}" for letter in "abcdefghijklmnopqrstuvwxyz" for prefix in ("", "##")]
WORDS = ["cat", "left", "of", "red", "apple", "apples", "##s", "über", "dog", "house", "##use", "ho"]
PROMPTS = ["a red Apple left of a cat", "", "zebras, and a house", "über"]


def tokenizer() -> Tokenizer:
    pieces = dict.fromkeys([*sorted(SPECIAL, key=lambda each: SPECIAL[each]), *LETTERS, ",", *WORDS])
    built = Tokenizer(models.WordPiece({each: n for n, each in enumerate(pieces)}, unk_token="[UNK]"))
    built.normalizer = normalizers.Lowercase()
    built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    built.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    built.add_special_tokens(list(SPECIAL))
    # As published: without these two lines every prompt would be padded and cut to 6 tokens.
    built.enable_padding(length=6)
    built.enable_truncation(6)
    return built


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=tokenizer().get_vocab_size(),
        hidden_size=22,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=35,
        max_position_embeddings=40,
        layer_norm_eps=1e-3,
        initializer_range=0.4,
    )
    model = transformers.BertModel(config, add_pooling_layer=True).eval()
    with torch.no_grad():  # biases and norms too: a fault in any of them must show
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.fixture
def folder(theirs, tmp_path: Path) -> Path:
    theirs.save_pretrained(tmp_path / "published")
    (tmp_path / "published" / "tokenizer.json").write_text(tokenizer().to_str())
    return tmp_path / "published"


@pytest.fixture
def encoder(folder: Path) -> BertEncoder:
    return read_published_bert(folder, max_tokens=24)


def test_published_weights_give_what_transformers_gives(theirs, encoder: BertEncoder) -> None:
    embedding = encoder.encode(PROMPTS)
    assert encoder.width == 22
    for row, there, tokens in zip(*embedding, encoder.tokens(PROMPTS), strict=True):
        with torch.no_grad():
            want = theirs(torch.tensor([tokens])).last_hidden_state[0]
        torch.testing.assert_close(row[there], want, atol=1e-5, rtol=0)


def test_padding_is_not_looked_at(encoder: BertEncoder) -> None:
    (tokens,) = encoder.tokens(["a cat left of a dog"])
    rows = torch.tensor([[*tokens, 7, 9], [*tokens, 0, 0]])
    mask = torch.arange(rows.shape[1]) < len(tokens)
    padded = encoder(rows, mask.expand_as(rows))[:, : len(tokens)]
    torch.testing.assert_close(padded, encoder(torch.tensor([tokens] * 2)), atol=1e-5, rtol=0)


def test_a_prompt_that_is_cut_still_ends_as_prompts_do(folder: Path, caplog) -> None:
    encoder = read_published_bert(folder, max_tokens=6)
    with caplog.at_level(logging.WARNING):
        (cut,) = encoder.tokens(["a red apple left of a cat"])
    (short,) = encoder.tokens(["a red apple left"])
    assert cut == short and len(cut) == 6
    assert caplog.messages == [
        "the prompt is longer than 6 tokens; cut off, and not in the picture: of a cat"
    ]


def test_pruning_keeps_what_is_used_and_embeds_it_to_the_bit(encoder: BertEncoder) -> None:
    used = ["a red apple left of a cat, über"]
    pruned = prune(encoder, used, entries=len(SPECIAL) + len(LETTERS) + 1 + 7)
    kept = pruned.tokenizer.get_vocab()
    assert {"cat", "left", "of", "red", "apple", "über", *LETTERS, *SPECIAL, ","} <= set(kept)
    # Of what is not used, the first entry that fits the budget stays, the rest go.
    assert "apples" in kept and not {"dog", "house", "##use"} & set(kept)
    assert sorted(kept.values()) == list(range(len(kept))) and pruned.config.vocabulary == len(kept)
    for prompt in (*used, "a cat of apples", ""):
        assert torch.equal(pruned.encode([prompt]).embeddings, encoder.encode([prompt]).embeddings)
    assert [kept[each] for each in ("d", "##o", "##g")] == pruned.tokens(["dog"])[0][1:-1]


def test_a_pruned_encoder_reads_back_from_a_folder(encoder: BertEncoder, tmp_path: Path) -> None:
    pruned = prune(encoder, PROMPTS, entries=0)
    save_text_encoder(tmp_path / "ours", pruned)
    read = load_text_encoder(tmp_path / "ours")
    assert isinstance(read, BertEncoder) and read.config == pruned.config
    assert torch.equal(read.encode(PROMPTS).embeddings, encoder.encode(PROMPTS).embeddings)


def test_an_encoder_is_told_from_another_by_weights_and_by_vocabulary(
    encoder: BertEncoder, tmp_path: Path
) -> None:
    save_text_encoder(tmp_path / "first", encoder)
    first = text_fingerprint(tmp_path / "first")
    with torch.no_grad():
        encoder.positions.add_(1)
    save_text_encoder(tmp_path / "second", encoder)
    second = text_fingerprint(tmp_path / "second")
    assert first["vocabulary"] == second["vocabulary"] and first["weights"] != second["weights"]
    vocabulary = tmp_path / "second" / "tokenizer.json"
    vocabulary.write_text(vocabulary.read_text() + " ")
    assert text_fingerprint(tmp_path / "second")["vocabulary"] != second["vocabulary"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "relu"}, "where BERT with GELU and absolute positions is read"),
        ({"model_type": "roberta"}, "where BERT with GELU and absolute positions is read"),
        ({"hidden_size": None}, "config.json does not describe a BERT"),
        ({"num_hidden_layers": 3}, "lack encoder.layer.2.attention.self.query.weight"),
    ],
)
def test_what_is_no_such_bert_is_refused(folder: Path, change: dict[str, object], message: str) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        read_published_bert(folder, max_tokens=24)


def test_more_tokens_than_positions_are_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="max_tokens=41, but there are 40 positions"):
        read_published_bert(folder, max_tokens=41)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="config.json cannot be read"):
        read_published_bert(folder, max_tokens=24)
