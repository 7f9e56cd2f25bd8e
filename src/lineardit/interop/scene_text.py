"""The bundled model's text encoder in a folder: its component and, beside it, its vocabulary."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from lineardit.config.models import SceneTextConfig
from lineardit.errors import CheckpointError, ConfigError
from lineardit.interop.native import Component, load_strict, read_model, save_model
from lineardit.text.scene_encoder import SceneTextEncoder

COMPONENT = "text_encoder"
TOKENIZER = "tokenizer.json"


def scene_text_component(encoder: SceneTextEncoder) -> tuple[Component, dict[str, bytes]]:
    """The encoder as a component of a model's folder, and the file that goes along with it."""
    component = Component("SceneTextEncoder", encoder.config, encoder.state_dict())
    return component, {TOKENIZER: encoder.tokenizer.to_str(pretty=True).encode()}


def save_scene_text_encoder(
    folder: Path, encoder: SceneTextEncoder, *, about: Mapping[str, Any] | None = None, dtype: str = "fp32"
) -> None:
    """Write the encoder alone to a folder.

    Raises:
        OutputError: the folder cannot be written, or holds something else.
    """
    component, files = scene_text_component(encoder)
    save_model(folder, {COMPONENT: component}, about=about, extra_files=files, dtype=dtype)


def load_scene_text_encoder(folder: Path) -> SceneTextEncoder:
    """Read the encoder of a folder, alone or in a whole model, in float32 and ready to encode.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    component = read_model(folder).components.get(COMPONENT)
    if component is None or not isinstance(component.config, SceneTextConfig):
        raise CheckpointError(f"{folder} holds no {COMPONENT} of the class SceneTextEncoder.")
    return scene_text_from(component, folder)


def scene_text_from(component: Component, folder: Path) -> SceneTextEncoder:
    """Build the encoder from a component that was already read and from the vocabulary in its folder.

    Raises:
        CheckpointError: the vocabulary is missing or damaged, or the weights do not fit.
    """
    assert isinstance(component.config, SceneTextConfig)
    path = folder / TOKENIZER
    try:
        tokenizer = Tokenizer.from_str(path.read_text("utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}): it is the encoder's vocabulary."
        ) from None
    except Exception as error:  # the library raises nothing more precise
        raise CheckpointError(f"{path} is no vocabulary of the tokenizers library: {error}") from None
    try:
        encoder = SceneTextEncoder(component.config, tokenizer)
    except ConfigError as error:
        raise CheckpointError(f"{path} is of another encoder: {error}") from None
    load_strict(encoder, component.tensors, folder)
    return encoder.eval().requires_grad_(False)
