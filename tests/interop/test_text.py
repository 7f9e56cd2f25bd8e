"""The text encoder in a folder: written, read, and refused when something is missing or foreign."""

from pathlib import Path

import pytest
import torch

from lineardit.config.models import SceneTextConfig
from lineardit.errors import CheckpointError
from lineardit.interop.native import save_model
from lineardit.interop.text import load_text_encoder, save_text_encoder
from lineardit.text.scene_encoder import SceneTextEncoder
from lineardit.text.word_pieces import build_tokenizer

PROMPTS = ["a cat left of a dog", "", "zebra"]


@pytest.fixture
def encoder() -> SceneTextEncoder:
    torch.manual_seed(0)
    config = SceneTextConfig(vocabulary=211, width=22, depth=2, head_dim=11)
    return SceneTextEncoder(config, build_tokenizer(["a cat left of a dog"], 211))


def test_an_encoder_reads_back_to_the_bit(encoder: SceneTextEncoder, tmp_path: Path) -> None:
    save_text_encoder(tmp_path / "text", encoder, about={"steps": 3})
    read = load_text_encoder(tmp_path / "text")
    want, got = encoder.encode(PROMPTS), read.encode(PROMPTS)
    assert torch.equal(got.embeddings, want.embeddings) and torch.equal(got.mask, want.mask)
    assert not read.training and not any(each.requires_grad for each in read.parameters())


def test_half_precision_in_the_file_is_float32_in_memory(encoder: SceneTextEncoder, tmp_path: Path) -> None:
    save_text_encoder(tmp_path / "text", encoder, dtype="bf16")
    read = load_text_encoder(tmp_path / "text")
    assert {each.dtype for each in read.parameters()} == {torch.float32}
    want = encoder.pieces.weight.detach().bfloat16().float()
    assert torch.equal(read.pieces.weight, want) and not torch.equal(want, encoder.pieces.weight)


def test_a_missing_vocabulary_is_named(encoder: SceneTextEncoder, tmp_path: Path) -> None:
    save_text_encoder(tmp_path / "text", encoder)
    (tmp_path / "text" / "tokenizer.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"tokenizer\.json cannot be read .*: it is the encoder's vocabulary"
    ):
        load_text_encoder(tmp_path / "text")


@pytest.mark.parametrize("content", ["", "{", '{"model": 3}'])
def test_a_damaged_vocabulary_is_refused(encoder: SceneTextEncoder, tmp_path: Path, content: str) -> None:
    save_text_encoder(tmp_path / "text", encoder)
    (tmp_path / "text" / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is no vocabulary of the tokenizers library"):
        load_text_encoder(tmp_path / "text")


def test_a_vocabulary_too_large_for_the_weights_is_refused(encoder: SceneTextEncoder, tmp_path: Path) -> None:
    save_text_encoder(tmp_path / "text", encoder)
    larger = build_tokenizer(["a cat left of a dog"] + [f"w{number}" for number in range(99)], 300)
    (tmp_path / "text" / "tokenizer.json").write_text(larger.to_str())
    with pytest.raises(CheckpointError, match="vocabulary=211 is less than the tokenizer's"):
        load_text_encoder(tmp_path / "text")


def test_a_model_without_a_text_encoder_says_so(tmp_path: Path) -> None:
    save_model(tmp_path / "other", {})
    with pytest.raises(CheckpointError, match="holds no text_encoder"):
        load_text_encoder(tmp_path / "other")
