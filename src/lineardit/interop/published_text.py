"""Text encoders as transformers stores them, in folders of their own or beside a model's networks."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from lineardit.errors import CheckpointError
from lineardit.interop.json_files import read_json
from lineardit.interop.shards import choose_variant, find_weights
from lineardit.interop.stored import read_header
from lineardit.text.encoder import GemmaEncoder, PublishedEncoder, T5Encoder

TEXT_STEM = "model"
TEXT_CLASSES: Mapping[str, type[PublishedEncoder]] = {
    "Gemma2Model": GemmaEncoder,
    "Gemma2ForCausalLM": GemmaEncoder,
    "T5EncoderModel": T5Encoder,
}
"""Text encoders of pipelines, by the name that transformers has for them."""
TEXT_FAMILIES: Mapping[str, type[PublishedEncoder]] = {"gemma2": GemmaEncoder, "t5": T5Encoder}
"""Those that lie in a folder of their own, by what its config.json says."""
PUBLISHED_TEXT = "published_text"
"""In our folders' `about`: the class of a text encoder that lies in them as transformers stores it."""


@runtime_checkable
class Text(Protocol):
    """A text encoder as transformers stores it, on disk or in memory."""

    @property
    def class_name(self) -> str:
        """What transformers calls it."""
        ...

    @property
    def tokenizer_class(self) -> str:
        """What transformers calls its tokenizer."""
        ...

    @property
    def width(self) -> int:
        """Channels of a token's vector."""
        ...

    def write(self, text_encoder: Path, tokenizer: Path) -> None:
        """Fill two new folders with it and its tokenizer."""
        ...


@dataclass(frozen=True)
class PublishedText:
    """A text encoder in folders as transformers writes them."""

    class_name: str
    folder: Path
    tokenizer: Path
    width: int
    variant: str | None = None

    @property
    def tokenizer_class(self) -> str:
        """What transformers calls its tokenizer."""
        return str(read_json(self.tokenizer / "tokenizer_config.json").get("tokenizer_class"))

    @property
    def size_bytes(self) -> int:
        """What its weights take on disk, and in memory."""
        return sum(file.stat().st_size for file in find_weights(self.folder, TEXT_STEM, self.variant))

    def write(self, text_encoder: Path, tokenizer: Path) -> None:
        """Copy both folders without any code that may lie in them; weights lose the name of their variant."""
        text_encoder.mkdir()
        tokenizer.mkdir()
        weights = find_weights(self.folder, TEXT_STEM, self.variant)
        for file in weights:
            name = f"{TEXT_STEM}.safetensors" if len(weights) == 1 else file.name
            shutil.copyfile(file, text_encoder / name)
        if len(weights) > 1:
            weight_map = {name: file.name for file in weights for name in read_header(file)}
            index = {"metadata": {}, "weight_map": weight_map}
            (text_encoder / f"{TEXT_STEM}.safetensors.index.json").write_text(json.dumps(index), "utf-8")
        for name in ("config.json", "generation_config.json"):
            if (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, text_encoder / name)
        for file in sorted(self.tokenizer.iterdir()):
            if file.is_file() and file.suffix in {".json", ".model", ".txt", ".jinja"}:
                shutil.copyfile(file, tokenizer / file.name)


def published_text(path: Path, *, variant: str | None = None) -> PublishedText | None:
    """The text encoder that transformers wrote to a folder with its tokenizer, or None where there is none.

    Raises:
        CheckpointError: its description is damaged.
    """
    described = path / "config.json"
    kind = TEXT_FAMILIES.get(str(read_json(described).get("model_type"))) if described.is_file() else None
    return None if kind is None else _text_in(path, path, kind.model_class, variant)


def text_beside(path: Path, class_name: str, variant: str | None) -> PublishedText:
    """The text encoder in a folder of a model, which says its class.

    Raises:
        CheckpointError: it is of a class that is not read here, or its tokenizer is missing.
    """
    folder, tokenizer = path / "text_encoder", path / "tokenizer"
    if class_name not in TEXT_CLASSES:
        raise CheckpointError(
            f"{path}: the text encoder is a {class_name}. Read are {', '.join(TEXT_CLASSES)}."
        )
    if not tokenizer.is_dir():
        raise CheckpointError(f"{path} has a text encoder, but no folder {tokenizer.name} beside it.")
    return _text_in(folder, tokenizer, class_name, variant)


def _text_in(folder: Path, tokenizer: Path, class_name: str, variant: str | None) -> PublishedText:
    options = read_json(folder / "config.json")
    width = options.get("hidden_size", options.get("d_model"))  # T5 has its own name for it
    if not isinstance(width, int):
        raise CheckpointError(f"{folder / 'config.json'} has no hidden_size.")
    found = choose_variant(folder, TEXT_STEM, variant)
    return PublishedText(class_name, folder, tokenizer, width, found)
