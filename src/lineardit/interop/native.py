"""Our own model folders: `lineardit.json`, and the tensors of each component in safetensors.

    FOLDER/lineardit.json            format, and per component its class, its configuration, its file
    FOLDER/transformer.safetensors   one file per component
    FOLDER/...                       what goes along with it: a vocabulary, a card

A class name means a class only through the registry here. Nothing in a folder is ever executed.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lineardit.autoencoder.model import Autoencoder
from lineardit.config.article import ArticleAutoencoderConfig, ArticleConfig
from lineardit.config.dit import LinearDiTConfig, SoftmaxDiTConfig
from lineardit.config.models import AutoencoderConfig, BertConfig, Config, SceneTextConfig, TransformerConfig
from lineardit.errors import CheckpointError, ConfigError, InputError, OutputError
from lineardit.interop.durable import Fingerprint, fingerprint, new_folder
from lineardit.interop.rename import check_fit
from lineardit.interop.stored import Stored, converted, read_header, stored_of, why_unreadable
from lineardit.kernels.select import DTYPES
from lineardit.transformer.model import Transformer

FORMAT = 1
INDEX = "lineardit.json"

REGISTRY: Mapping[str, type[Config]] = {
    "Transformer": TransformerConfig,
    "ControlNet": TransformerConfig,
    "ArticleSana": ArticleConfig,
    "LinearDiT": LinearDiTConfig,
    "SoftmaxDiT": SoftmaxDiTConfig,
    "Autoencoder": AutoencoderConfig,
    "ArticleAutoencoder": ArticleAutoencoderConfig,
    "SceneTextEncoder": SceneTextConfig,
    "BertEncoder": BertConfig,
}
"""Class names that a folder may mention, with the configuration each is built from."""

_COMPONENT = re.compile(r"[a-z][a-z0-9_]*")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")


class Component(NamedTuple):
    """One network of a model: the name of its class, what it is built from, its weights."""

    class_name: str
    config: Config
    tensors: Mapping[str, Tensor]


class Model(NamedTuple):
    """What a folder holds."""

    folder: Path
    components: dict[str, Component]
    """`transformer`, `autoencoder`, `text_encoder` or some of them."""
    about: dict[str, Any]
    """Facts that go along: recipe, steps, data."""


class Summary(NamedTuple):
    """One component as described without reading its weights."""

    class_name: str
    config: Config
    file: Path
    written: Fingerprint
    tensors: dict[str, Stored]

    @property
    def parameters(self) -> int:
        """Numbers in all tensors together."""
        return sum(torch.Size(tensor.shape).numel() for tensor in self.tensors.values())


def save_model(
    folder: Path,
    components: Mapping[str, Component],
    *,
    about: Mapping[str, Any] | None = None,
    extra_files: Mapping[str, bytes] | None = None,
    dtype: str | None = "fp32",
    fill: Callable[[Path], None] | None = None,
) -> None:
    """Write a model folder at once: it appears complete, or what was there before stays.

    Floating-point tensors are stored as `dtype`: fp32, bf16 or fp16, or as they are where it is None. `fill`
    adds what is too large for `extra_files` to the new folder.

    Raises:
        InputError: an unknown class or dtype, a name that is no plain file name, a number too large for fp16.
        OutputError: the place cannot be written, or holds something that is no model of ours.
    """
    extras = dict(extra_files or {})
    _check_names(components, extras)
    try:
        about_text = json.dumps(dict(about or {}), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"what is said about a model must be JSON, with finite numbers: {error}") from None
    if folder.exists() and (
        not folder.is_dir() or (any(folder.iterdir()) and not (folder / INDEX).is_file())
    ):
        raise OutputError(f"{folder} holds something that is no model of lineardit. Choose another place.")
    try:
        with new_folder(folder) as place:
            entries = {}
            for name, component in components.items():
                file = place / f"{name}.safetensors"
                write_tensors(file, component.tensors, dtype)
                entries[name] = {
                    "class": component.class_name,
                    "config": component.config.model_dump(mode="json"),
                    **fingerprint(file)._asdict(),
                }
            for name, content in extras.items():
                (place / name).write_bytes(content)
            if fill is not None:
                fill(place)
            index = {"format": FORMAT, "components": entries, "about": json.loads(about_text)}
            (place / INDEX).write_text(json.dumps(index, indent=1, ensure_ascii=False) + "\n", "utf-8")
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"the model was not written to {folder}: {error}.") from error


def read_model(folder: Path) -> Model:
    """Read a model folder with all its weights, on the CPU, in the dtypes they are stored in.

    Raises:
        CheckpointError: there is no model, it is of another format, or a file is missing, short or foreign.
    """
    summaries, about = describe_model(folder)
    components = {
        name: Component(summary.class_name, summary.config, read_tensors(summary.file))
        for name, summary in summaries.items()
    }
    return Model(folder, components, about)


def describe_model(folder: Path) -> tuple[dict[str, Summary], dict[str, Any]]:
    """What the folder says of its components and itself, checked against the headers of the weights only.

    Raises:
        CheckpointError: as `read_model`.
    """
    index = _read_index(folder)
    summaries = {}
    for name, entry in index["components"].items():
        try:
            class_name, options = str(entry["class"]), entry["config"]
            written = Fingerprint(int(entry["size"]), str(entry["sha256"]))
        except (KeyError, TypeError, ValueError, OverflowError):
            raise CheckpointError(f"{folder / INDEX} is damaged at the component {name}.") from None
        if class_name not in REGISTRY:
            known = ", ".join(REGISTRY)
            raise CheckpointError(
                f"{folder}: the class {class_name} of {name} is unknown. Known are {known}."
            )
        if not _COMPONENT.fullmatch(name) or not isinstance(options, dict):
            raise CheckpointError(f"{folder / INDEX} is damaged at the component {name!r}.")
        try:
            config = REGISTRY[class_name](**options)
        except (ConfigError, TypeError) as error:
            raise CheckpointError(f"{folder}: the configuration of {name} does not hold: {error}") from None
        file = folder / f"{name}.safetensors"
        size = file.stat().st_size if file.is_file() else None
        if size is not None and size != written.size:
            raise CheckpointError(
                f"{file} has {size} bytes, {written.size} were written: it is cut off or foreign."
            )
        summaries[name] = Summary(class_name, config, file, written, read_header(file))
    return summaries, index["about"]


def check_files(folder: Path) -> None:
    """Read every weights file once and compare it to what was written.

    Raises:
        CheckpointError: as `read_model`, or a single bit differs.
    """
    for summary in describe_model(folder)[0].values():
        if fingerprint(summary.file) != summary.written:
            raise CheckpointError(f"{summary.file} differs from what was written (sha256).")


def save_autoencoder(
    folder: Path, model: Autoencoder, *, about: Mapping[str, Any] | None = None, dtype: str = "fp32"
) -> Path:
    """Write an autoencoder alone to a folder, and return the folder. Raises as `save_model`."""
    save_model(folder, {"autoencoder": autoencoder_component(model)}, about=about, dtype=dtype)
    return folder


def autoencoder_component(model: Autoencoder) -> Component:
    """An autoencoder as a component of a model's folder."""
    article = isinstance(model.config, ArticleAutoencoderConfig)
    return Component("ArticleAutoencoder" if article else "Autoencoder", model.config, model.state_dict())


def save_transformer(
    folder: Path, model: Transformer, *, about: Mapping[str, Any] | None = None, dtype: str = "fp32"
) -> Path:
    """Write a transformer alone to a folder, and return the folder. Raises as `save_model`."""
    component = Component("Transformer", model.config, model.state_dict())
    save_model(folder, {"transformer": component}, about=about, dtype=dtype)
    return folder


def load_autoencoder(folder: Path) -> Autoencoder:
    """Read the autoencoder of a folder, alone or in a whole model, in float32 and ready to use.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    return autoencoder_from(only(folder, "autoencoder"), folder)


def load_transformer(folder: Path) -> Transformer:
    """Read the transformer of a folder, alone or in a whole model, in float32 and ready to use.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    return transformer_from(only(folder, "transformer"), folder)


def autoencoder_from(component: Component, source: str | Path) -> Autoencoder:
    """Build a component that was read already. Raises `CheckpointError` if the weights do not fit."""
    if not isinstance(component.config, AutoencoderConfig | ArticleAutoencoderConfig):
        raise CheckpointError(f"{source} holds a {component.class_name} where an Autoencoder was expected.")
    model = Autoencoder(component.config)
    load_strict(model, component.tensors, source)
    return model.eval()


def transformer_from(component: Component, source: str | Path) -> Transformer:
    """Build a component that was read already. Raises `CheckpointError` if the weights do not fit."""
    if not isinstance(component.config, TransformerConfig):
        raise CheckpointError(f"{source} holds a {component.class_name} where a Transformer was expected.")
    with torch.device("meta"):
        model = Transformer(component.config)
    load_strict(model, component.tensors, source)
    return model.float().eval()


def load_strict(module: nn.Module, tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Copy weights into a module, exactly: every name and every shape must be the module's.

    The module keeps its dtype. A module on the meta device takes the tensors themselves, and their dtype.

    Raises:
        CheckpointError: lists every missing, unknown and differently shaped tensor.
    """
    expected = module.state_dict()
    shapes = {name: wanted.shape for name, wanted in expected.items()}
    check_fit(type(module).__name__, shapes, stored_of(tensors), source)
    module.load_state_dict(
        dict(tensors), strict=True, assign=any(wanted.is_meta for wanted in expected.values())
    )
    left = [name for name, buffer in module.named_buffers() if buffer.is_meta]
    assert not left, f"buffers that are not in the file cannot be filled on the meta device: {left}"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], dtype: str | None = None) -> None:
    """Write a safetensors file, converting floating-point tensors to `dtype` (fp32, bf16, fp16) if given.

    Raises:
        InputError: the dtype is unknown, or fp16 cannot hold a number.
        OutputError: the file cannot be written.
    """
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"dtype={dtype!r} cannot be stored. Use one of {', '.join(DTYPES)}.")
    stored = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu()
        if dtype is not None and tensor.is_floating_point():
            tensor = converted(name, tensor, dtype)
        tensor = tensor.contiguous()
        # safetensors refuses tensors that share memory, such as tied weights.
        address = tensor.untyped_storage().data_ptr()
        stored[name] = tensor.clone() if address in seen else tensor
        seen.add(address)
    try:
        save_file(stored, path)
    except (SafetensorError, OSError) as error:
        raise OutputError(f"{path} cannot be written: {error}.") from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file to the CPU.

    Raises:
        CheckpointError: there is no such file, or it is truncated or something else.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(why_unreadable(path, error)) from None


def only(folder: Path, name: str) -> Component:
    """One component of a folder; the weights of the others are not read."""
    summary = describe_model(folder)[0].get(name)
    if summary is None:
        raise CheckpointError(f"{folder} holds no {name}.")
    return Component(summary.class_name, summary.config, read_tensors(summary.file))


def _check_names(components: Mapping[str, Component], extras: Mapping[str, bytes]) -> None:
    for name, component in components.items():
        if not _COMPONENT.fullmatch(name):
            raise InputError(f"{name!r} is no name of a component. Use small letters, as in 'text_encoder'.")
        expected = REGISTRY.get(component.class_name)
        if expected is None:
            raise InputError(
                f"the class {component.class_name} is unknown. Use one of {', '.join(REGISTRY)}."
            )
        if not isinstance(component.config, expected):
            raise InputError(
                f"{component.class_name} is built from a {expected.__name__}, "
                f"not from a {type(component.config).__name__}."
            )
    for name in extras:
        if (
            not _PLAIN_NAME.fullmatch(name)
            or name == INDEX
            or name.removesuffix(".safetensors") in components
        ):
            raise InputError(f"{name!r} is no name for a file that goes along with a model.")


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder. Give a folder with a {INDEX}.")
    try:
        index = json.loads(path.read_text("utf-8"))
        version, components, about = index["format"], index["components"], index["about"]
    except FileNotFoundError:
        raise CheckpointError(f"{folder} holds no model: there is no {INDEX} in it.") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise CheckpointError(f"{path} is damaged, or is no description of a model.") from None
    if version != FORMAT:
        raise CheckpointError(f"{folder} has format {version!r}; this version of lineardit reads {FORMAT}.")
    if not isinstance(components, dict) or not isinstance(about, dict):
        raise CheckpointError(f"{path} is damaged, or is no description of a model.")
    return {"components": components, "about": about}
