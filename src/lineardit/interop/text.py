"""Text encoders in folders: ours with their vocabulary beside them, and published ones of the BERT family."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from lineardit.config.models import BertConfig, SceneTextConfig, TextConfig
from lineardit.errors import CheckpointError, ConfigError
from lineardit.interop.durable import fingerprint
from lineardit.interop.native import (
    INDEX,
    Component,
    describe_model,
    load_strict,
    only,
    read_tensors,
    save_model,
)
from lineardit.text.bert import BertEncoder
from lineardit.text.offline import OfflineEncoder
from lineardit.text.scene_encoder import SceneTextEncoder

COMPONENT = "text_encoder"
TOKENIZER = "tokenizer.json"


def text_component(encoder: OfflineEncoder) -> tuple[Component, dict[str, bytes]]:
    """The encoder as a component of a model's folder, and the file that goes along with it."""
    component = Component(type(encoder).__name__, encoder.config, encoder.state_dict())
    return component, {TOKENIZER: encoder.tokenizer.to_str(pretty=True).encode()}


def save_text_encoder(
    folder: Path, encoder: OfflineEncoder, *, about: Mapping[str, Any] | None = None, dtype: str = "fp32"
) -> None:
    """Write the encoder alone to a folder.

    Raises:
        OutputError: the folder cannot be written, or holds something else.
    """
    component, files = text_component(encoder)
    save_model(folder, {COMPONENT: component}, about=about, extra_files=files, dtype=dtype)


def load_text_encoder(folder: Path) -> OfflineEncoder:
    """Read the encoder of a folder, alone or in a whole model, in float32 and ready to encode.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    return text_encoder_from(only(folder, COMPONENT), folder)


def text_fingerprint(folder: Path) -> dict[str, str]:
    """What decides an encoder's embeddings: checksums of its weights and its vocabulary."""
    if not (folder / INDEX).is_file():
        kept = (
            file for file in sorted(folder.iterdir()) if file.suffix in {".safetensors", ".json", ".model"}
        )
        return {file.name: fingerprint(file).sha256 for file in kept}
    summaries, _ = describe_model(folder)
    if COMPONENT not in summaries:
        raise CheckpointError(f"{folder} holds no {COMPONENT}.")
    return {
        "weights": summaries[COMPONENT].written.sha256,
        "vocabulary": fingerprint(folder / TOKENIZER).sha256,
    }


def text_encoder_from(component: Component, folder: Path) -> OfflineEncoder:
    """Build the encoder from a component that was already read and from the vocabulary in its folder.

    Raises:
        CheckpointError: it is no text encoder, or its vocabulary or weights are damaged or of another.
    """
    if not isinstance(component.config, TextConfig):
        raise CheckpointError(f"{folder} holds a {component.class_name} where a text encoder was expected.")
    tokenizer = _read_tokenizer(folder / TOKENIZER)
    try:
        encoder = _build(component.config, tokenizer)
    except ConfigError as error:
        raise CheckpointError(f"{folder / TOKENIZER} is of another encoder: {error}") from None
    load_strict(encoder, component.tensors, folder)
    return encoder.eval().requires_grad_(False)


def read_published_bert(folder: Path, *, max_tokens: int) -> BertEncoder:
    """Read `config.json`, `model.safetensors` and `tokenizer.json` as transformers writes them.

    Raises:
        CheckpointError: a file is missing or damaged, or it is not BERT with absolute positions and GELU.
    """
    options = _read_options(folder / "config.json")
    try:
        config = BertConfig(
            vocabulary=options["vocab_size"],
            width=options["hidden_size"],
            depth=options["num_hidden_layers"],
            head_dim=options["hidden_size"] // options["num_attention_heads"],
            hidden=options["intermediate_size"],
            norm_eps=options["layer_norm_eps"],
            max_tokens=max_tokens,
        )
    except (KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{folder / 'config.json'} does not describe a BERT: {error}.") from None
    kind = options.get("model_type"), options.get("hidden_act"), options.get("position_embedding_type")
    if kind not in {("bert", "gelu", "absolute"), ("bert", "gelu", None)}:
        raise CheckpointError(f"{folder} is {kind}, where BERT with GELU and absolute positions is read.")
    tokenizer = _read_tokenizer(folder / TOKENIZER)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    encoder = BertEncoder(config, tokenizer)
    load_strict(encoder, _renamed(read_tensors(folder / "model.safetensors"), config), folder)
    return encoder.eval().requires_grad_(False)


def _build(config: TextConfig, tokenizer: Tokenizer) -> OfflineEncoder:
    if isinstance(config, BertConfig):
        return BertEncoder(config, tokenizer)
    assert isinstance(config, SceneTextConfig)
    return SceneTextEncoder(config, tokenizer)


def _renamed(published: Mapping[str, Tensor], config: BertConfig) -> dict[str, Tensor]:
    """Published names to ours; the only segment's vector is added to the positions."""
    missing = []

    def take(name: str) -> Tensor:
        if name not in published:
            missing.append(name)
            return torch.empty(0)
        return published[name]

    positions = take("embeddings.position_embeddings.weight")
    segments = take("embeddings.token_type_embeddings.weight")
    ours = {"pieces.weight": take("embeddings.word_embeddings.weight")}
    pairs = {"embeddings.LayerNorm": "norm"}
    for number in range(config.depth):
        layer, block = f"encoder.layer.{number}", f"blocks.{number}"
        pairs |= {
            f"{layer}.attention.output.dense": f"{block}.to_out",
            f"{layer}.attention.output.LayerNorm": f"{block}.attention_norm",
            f"{layer}.intermediate.dense": f"{block}.expand",
            f"{layer}.output.dense": f"{block}.contract",
            f"{layer}.output.LayerNorm": f"{block}.feed_forward_norm",
        }
        for kind in ("weight", "bias"):
            parts = [take(f"{layer}.attention.self.{each}.{kind}") for each in ("query", "key", "value")]
            ours[f"{block}.to_qkv.{kind}"] = torch.cat(parts)
    for theirs, name in pairs.items():
        for kind in ("weight", "bias"):
            ours[f"{name}.{kind}"] = take(f"{theirs}.{kind}")
    if missing:
        raise CheckpointError(f"the weights of a BERT lack {', '.join(missing)}.")
    if len(positions) < config.max_tokens:
        raise CheckpointError(f"max_tokens={config.max_tokens}, but there are {len(positions)} positions.")
    return ours | {"positions": positions[: config.max_tokens] + segments[0]}


def _read_options(path: Path) -> dict[str, Any]:
    try:
        options = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON: {error}.") from None
    if not isinstance(options, dict):
        raise CheckpointError(f"{path} does not hold options.")
    return options


def _read_tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_str(path.read_text("utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}): it is the encoder's vocabulary."
        ) from None
    except Exception as error:  # the library raises nothing more precise
        raise CheckpointError(f"{path} is no vocabulary of the tokenizers library: {error}") from None
