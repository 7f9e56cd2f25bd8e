import importlib.util
import json
import logging
import sys

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="the extra [hub] is not installed")

from tokenizers import Tokenizer, models, pre_tokenizers, processors  # noqa: E402

from lineardit.errors import CheckpointError, MissingExtraError  # noqa: E402
from lineardit.text.encoder import GemmaEncoder, T5Encoder  # noqa: E402
from lineardit.text.prompt import sana_instruction  # noqa: E402

PROMPTS = ["A cat left of a Dog ", "a cat", ""]


def tiny_tokenizer():
    words = dict.fromkeys(["<pad>", "<eos>", "<bos>", "<unk>"])
    splitter = pre_tokenizers.Whitespace()
    for text in (sana_instruction(), "a cat left of a dog"):
        words.update(dict.fromkeys(word for word, _ in splitter.pre_tokenize_str(text)))
    numbered = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(numbered, unk_token="<unk>"))
    tokenizer.pre_tokenizer = splitter
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>"
    )


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def gemma():
    torch.manual_seed(0)
    config = transformers.Gemma2Config(
        vocab_size=300,
        hidden_size=28,
        intermediate_size=44,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=14,
        query_pre_attn_scalar=14,
        sliding_window=512,
    )
    return transformers.Gemma2Model(config).eval()


@pytest.fixture(scope="module")
def published(gemma, tokenizer):
    """What diffusers makes of the same model: embeddings and masks of prompts and negative prompts."""
    diffusers = pytest.importorskip("diffusers")
    pipeline = diffusers.SanaPipeline(
        tokenizer=tokenizer, text_encoder=gemma, vae=None, transformer=None, scheduler=None
    )

    def encode(max_tokens):
        with torch.no_grad():
            return pipeline.encode_prompt(
                PROMPTS,
                negative_prompt=["A cat", "", "dog"],
                device=torch.device("cpu"),
                max_sequence_length=max_tokens,
                complex_human_instruction=sana_instruction().split("\n"),
            )

    return encode


def assert_same_where_there_is_a_token(ours, embeddings, mask):
    length = ours.mask.shape[1]
    assert torch.equal(ours.mask, mask[:, :length].bool())
    assert not mask[:, length:].any()
    torch.testing.assert_close(
        ours.embeddings[ours.mask], embeddings[:, :length][ours.mask], atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("max_tokens", [300, 5])
def test_gemma_keeps_the_tokens_that_diffusers_keeps(gemma, tokenizer, published, max_tokens):
    encoder = GemmaEncoder(gemma, tokenizer, max_tokens=max_tokens)
    embeddings, mask, negative_embeddings, negative_mask = published(max_tokens)
    assert_same_where_there_is_a_token(encoder.encode(PROMPTS), embeddings, mask)
    assert_same_where_there_is_a_token(
        encoder.encode_negative(["A cat", "", "dog"]), negative_embeddings, negative_mask
    )
    assert encoder.width == 28


def test_the_instruction_changes_a_prompt_but_not_a_negative_one(gemma, tokenizer):
    with_it, without = GemmaEncoder(gemma, tokenizer), GemmaEncoder(gemma, tokenizer, instruction="")
    assert not torch.allclose(
        with_it.encode(["a cat"]).embeddings[:, -1], without.encode(["a cat"]).embeddings[:, -1]
    )
    assert torch.equal(
        with_it.encode_negative(["a cat"]).embeddings, without.encode_negative(["a cat"]).embeddings
    )


def test_words_beyond_the_budget_are_named_and_the_instruction_is_not(gemma, tokenizer, caplog):
    encoder = GemmaEncoder(gemma, tokenizer, max_tokens=5)
    with caplog.at_level(logging.WARNING):
        encoder.encode(["a cat", "a cat left of a dog"])
    assert caplog.messages == [
        "the prompt is longer than 5 tokens; cut off, and not in the picture: of a dog"
    ]


def test_t5_gives_the_last_hidden_state_whatever_else_is_in_the_batch(tokenizer):
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=300, d_model=22, d_kv=11, d_ff=34, num_layers=2, num_heads=2, dropout_rate=0.5
    )
    model = transformers.T5EncoderModel(config)
    encoder = T5Encoder(model, tokenizer)
    together = encoder.encode(PROMPTS)
    assert encoder.width == 22
    assert together.mask.sum(1).tolist() == [7, 3, 1]
    for row, prompt in enumerate(["a cat left of a dog", "a cat", ""]):
        alone = model(
            **tokenizer([prompt], return_tensors="pt", return_token_type_ids=False)
        ).last_hidden_state
        torch.testing.assert_close(together.embeddings[row][together.mask[row]], alone[0], atol=1e-5, rtol=0)


def test_an_encoder_is_read_from_a_local_folder(tmp_path, gemma, tokenizer):
    gemma.save_pretrained(tmp_path / "text_encoder")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    read = GemmaEncoder.from_folder(tmp_path / "text_encoder", tmp_path / "tokenizer")
    want = GemmaEncoder(gemma, tokenizer).encode(PROMPTS)
    assert torch.equal(read.encode(PROMPTS).embeddings, want.embeddings)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="holds no T5EncoderModel with its tokenizer"):
        T5Encoder.from_folder(tmp_path)


def test_without_transformers_the_error_has_the_line_that_installs_it(tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        sys.modules[GemmaEncoder.__module__],
        "find_spec",
        lambda name: None if name == "transformers" else find_spec(name),
    )
    with pytest.raises(MissingExtraError, match=r"pip install 'lineardit\[hub\]'"):
        GemmaEncoder.from_folder(tmp_path)


def bring_code(folder, file, **values):
    """Let a folder of transformers speak of code that lies in it; the path at which it leaves a trace."""
    described, trace = folder / file, folder / "trace"
    described.write_text(json.dumps(json.loads(described.read_text()) | values))
    (folder / "evil.py").write_text(
        f"from pathlib import Path\n\nPath({str(trace)!r}).touch()\n\n\nclass Evil:\n    pass\n"
    )
    return trace


@pytest.fixture
def answered_yes(monkeypatch):
    """Someone at a terminal who lets everything be run, and what was asked."""
    asked = []

    def answer(question=""):
        asked.append(question)
        return "y"

    monkeypatch.setattr("builtins.input", answer)
    return asked


@pytest.fixture
def folders(tmp_path, gemma, tokenizer):
    gemma.save_pretrained(tmp_path / "text_encoder")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "text_encoder", tmp_path / "tokenizer"


def refused_unasked(asked, trace, read):
    with pytest.raises(CheckpointError, match="holds no Gemma2Model with its tokenizer: ") as caught:
        read()
    assert "\n" not in str(caught.value) and not asked and not trace.exists()


def test_code_beside_a_tokenizer_is_neither_run_nor_asked_about(folders, answered_yes):
    trace = bring_code(
        folders[1],
        "tokenizer_config.json",
        tokenizer_class="Evil",
        auto_map={"AutoTokenizer": [None, "evil.Evil"]},
    )
    refused_unasked(answered_yes, trace, lambda: GemmaEncoder.from_folder(*folders))
    refused_unasked(answered_yes, trace, lambda: GemmaEncoder.without_weights(*folders, stored=torch.float32))


def test_code_beside_a_configuration_is_neither_run_nor_asked_about(folders, answered_yes):
    trace = bring_code(folders[0], "config.json", model_type="evil", auto_map={"AutoConfig": "evil.Evil"})
    refused_unasked(answered_yes, trace, lambda: GemmaEncoder.without_weights(*folders, stored=torch.float32))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": 3}', pytest.param("[" * 100_000, id="deep")])
def test_a_tokenizer_that_is_none_gets_one_line(folders, content):
    (folders[1] / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match="holds no Gemma2Model with its tokenizer: .") as caught:
        GemmaEncoder.from_folder(*folders)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["{", "[]", pytest.param("[" * 100_000, id="deep")])
def test_options_of_a_tokenizer_that_are_none_get_one_line(folders, content):
    (folders[1] / "tokenizer_config.json").write_text(content)
    with pytest.raises(CheckpointError, match="holds no Gemma2Model with its tokenizer: .") as caught:
        GemmaEncoder.from_folder(*folders)
    assert "\n" not in str(caught.value)


def test_weights_of_another_shape_are_named_and_nothing_else_is_said(folders, capfd):
    described = folders[0] / "config.json"
    described.write_text(json.dumps(json.loads(described.read_text()) | {"hidden_size": 30}))
    capfd.readouterr()
    with pytest.raises(CheckpointError, match="does not fit Gemma2Model: .* 24 tensors, such as embed"):
        GemmaEncoder.from_folder(*folders)
    assert capfd.readouterr() == ("", "")
