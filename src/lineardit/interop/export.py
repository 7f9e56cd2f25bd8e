"""Models written in any of the formats that are read: whole or not at all, and never over something else."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor, nn

from lineardit.autoencoder.model import Autoencoder
from lineardit.config.article import ArticleAutoencoderConfig, ArticleConfig
from lineardit.config.dit import DiTConfig
from lineardit.config.models import AutoencoderConfig, Config, TransformerConfig
from lineardit.errors import CheckpointError, InputError, OutputError
from lineardit.interop.diffusers import (
    controlnet_renaming,
    to_diffusers_autoencoder,
    to_diffusers_transformer,
)
from lineardit.interop.diffusers_config import (
    AUTOENCODER_CLASS,
    CONTROLNET_CLASS,
    PIPELINE_INDEX,
    TRANSFORMER_CLASS,
    WEIGHTS_STEM,
    autoencoder_config_to_diffusers,
    controlnet_config_to_diffusers,
    transformer_config_to_diffusers,
)
from lineardit.interop.durable import new_folder, sync
from lineardit.interop.json_files import read_json
from lineardit.interop.lora import loras
from lineardit.interop.native import INDEX, autoencoder_component, save_model
from lineardit.interop.official import (
    to_official_autoencoder,
    to_official_transformer,
    with_controlnet,
)
from lineardit.interop.pickles import SUFFIXES, write_pickle
from lineardit.interop.place import SPARE_SUFFIX, Network, Place
from lineardit.interop.places import NETWORK_CLASSES
from lineardit.interop.published_text import PUBLISHED_TEXT
from lineardit.interop.schedulers import sampling_to_scheduler
from lineardit.interop.shards import write_file, write_weights
from lineardit.interop.stored import LazyTensors, stored_of
from lineardit.interop.text import text_component
from lineardit.text.embedding import TextEncoder
from lineardit.text.encoder import PublishedEncoder
from lineardit.text.offline import OfflineEncoder
from lineardit.transformer.controlnet import ControlNet
from lineardit.transformer.denoiser import Denoiser
from lineardit.transformer.dit import DiT

Format = Literal["native", "diffusers", "official"]

DIFFUSERS = "0.42.1"
"""The version of diffusers whose names and options are written."""

_FOLDERS = {"transformer": "transformer", "autoencoder": "vae", "controlnet": "controlnet"}
_OFFICIAL_FILES = {"transformer": "transformer.pth", "autoencoder": "autoencoder.safetensors"}
_MARKS = (INDEX, PIPELINE_INDEX, *_OFFICIAL_FILES.values())


@dataclass(frozen=True)
class Written:
    """What became of one part."""

    name: str
    class_name: str
    tensors: int
    """How many were written, under the names of the format."""
    left_out: tuple[str, ...]
    """Those of the source that have no place in the format, or the part itself."""


def export(
    place: Place,
    out: Path,
    format: Format,
    *,
    dtype: str | None = None,
    force: bool = False,
    on_tensor: Callable[[str], None] | None = None,
) -> list[Written]:
    """Write what `place` holds to `out`, and say what was written.

    A place with one network becomes one folder (official: one file, .pth or .safetensors), else a whole
    model. Floating-point tensors are stored as `dtype` (fp32, bf16, fp16), or as they are where it is None.
    `on_tensor` hears each name that is done.

    Raises:
        OutputError: `out` exists and `force` is not given, holds something else, or cannot be written.
        ConfigError: the model cannot be told in that format.
        CheckpointError: the source is damaged.
        InputError: the format is unknown, or fp16 cannot hold a number.
    """
    if format not in get_args(Format):
        raise InputError(f"format={format!r} is unknown. Use {', '.join(get_args(Format))}.")
    check_free(out, force)
    networks = {
        name: replace(
            each, tensors=_heard(each.tensors if dtype is None else each.tensors.to(dtype), on_tensor)
        )
        for name, each in place.networks.items()
    }
    writer = {"native": _native, "diffusers": _diffusers, "official": _official}[format]
    try:
        return writer(replace(place, networks=networks), out)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{out} was not written: {error.strerror or error}.") from None


@dataclass(frozen=True)
class LiveText:
    """A text encoder in memory, with its tokenizer, as transformers has them."""

    model: Any
    tokenizer: Any
    width: int

    @classmethod
    def of(cls, encoder: PublishedEncoder) -> "LiveText":
        """What an encoder runs."""
        return cls(encoder.model, encoder.tokenizer, encoder.width)

    @property
    def class_name(self) -> str:
        """What transformers calls it."""
        return type(self.model).__name__

    @property
    def tokenizer_class(self) -> str:
        """What transformers calls its tokenizer."""
        return type(self.tokenizer).__name__

    def write(self, text_encoder: Path, tokenizer: Path) -> None:
        """Fill two new folders with it and its tokenizer."""
        self.model.save_pretrained(text_encoder)
        self.tokenizer.save_pretrained(tokenizer)

    def write_below(self, folder: Path) -> None:
        """Fill the two folders of a model's folder."""
        self.write(folder / "text_encoder", folder / "tokenizer")


def live_place(
    name: str,
    transformer: Denoiser | DiT,
    autoencoder: Autoencoder,
    text_encoder: TextEncoder | None,
    sampling: Mapping[str, Any],
    controlnet: ControlNet | None = None,
    about: Mapping[str, Any] | None = None,
) -> Place:
    """Networks in memory as a place that can be written; what draws classes has no text encoder.

    Raises:
        InputError: LoRAs are loaded, or the text encoder is of a kind that cannot be written.
    """
    if loras(transformer):
        raise InputError(
            f"LoRAs are loaded beside the layers: {', '.join(loras(transformer))}. "
            "Merge or unload them before the model is written."
        )
    networks = {
        "transformer": _live(type(transformer).__name__, transformer.config, transformer, name),
        "autoencoder": _live(
            autoencoder_component(autoencoder).class_name, autoencoder.config, autoencoder, name
        ),
    }
    if controlnet is not None:
        networks["controlnet"] = _live("ControlNet", controlnet.config, controlnet, name)
    place = Place(Path(name), "native", networks, sampling=dict(sampling), about=dict(about or {}))
    if text_encoder is None:
        return place
    if isinstance(text_encoder, PublishedEncoder):
        return replace(place, text=LiveText.of(text_encoder))
    if not isinstance(text_encoder, OfflineEncoder):
        raise InputError(f"a {type(text_encoder).__name__} cannot be written to a model's folder.")
    component, files = text_component(text_encoder)
    networks["text_encoder"] = _live(component.class_name, component.config, text_encoder, name)
    return replace(place, files=files)


def _live(class_name: str, config: Config, module: nn.Module, source: str) -> Network:
    state = module.state_dict()
    return Network(class_name, config, LazyTensors(stored_of(state), state.__getitem__), source)


def check_free(out: Path, force: bool) -> None:
    """Find out before any work whether `out` may be written.

    Raises:
        OutputError: it exists and `force` is not given, or is a folder that holds no model.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not force:
        raise OutputError(f"{out} exists. Add --force to replace it, or choose another place.")
    if out.is_dir() and not any((out / mark).is_file() for mark in _MARKS) and not _is_network(out):
        raise OutputError(f"{out} holds something that is no model. Choose another place.")


def _is_network(folder: Path) -> bool:
    """Whether it is one network as diffusers writes it: many other programs have a config.json, too."""
    try:
        return read_json(folder / "config.json").get("_class_name") in NETWORK_CLASSES
    except CheckpointError:
        return False


def _heard(tensors: LazyTensors, on_tensor: Callable[[str], None] | None) -> LazyTensors:
    """Tensors that tell when they are read for the first time."""
    waiting = set(tensors)

    def read(name: str) -> Tensor:
        tensor = tensors[name]
        if on_tensor is not None and name in waiting:
            waiting.discard(name)
            on_tensor(name)
        return tensor

    return LazyTensors(tensors.stored, read)


def _native(place: Place, out: Path) -> list[Written]:
    about = {key: value for key, value in place.about.items() if key != PUBLISHED_TEXT}
    if place.sampling:
        about["sampling"] = dict(place.sampling)
    written = [
        _summary(name, each, len(each.tensors) + len(each.spare), kept=True)
        for name, each in place.networks.items()
    ]
    text = place.text
    if text is not None:
        about[PUBLISHED_TEXT] = text.class_name
        written.append(Written("text_encoder", text.class_name, 0, ()))

    def fill(folder: Path) -> None:
        if text is not None:
            text.write(folder / "text_encoder", folder / "tokenizer")
        for name, network in place.networks.items():
            if network.spare:
                write_file(folder / f"{name}{SPARE_SUFFIX}", network.spare)

    save_model(
        out,
        {name: each.component() for name, each in place.networks.items()},
        about=about,
        extra_files={**place.files, "README.md": _card(place).encode()},
        dtype=None,
        fill=fill,
    )
    return written


def _diffusers(place: Place, out: Path) -> list[Written]:
    if place.sampling.get("sampler") == "scm" and "controlnet" in place.networks:
        raise InputError(f"{place.path} is a distilled model with a ControlNet, which diffusers has not.")
    if "text_encoder" in place.networks and {*place.networks} != {"text_encoder"}:
        raise InputError(
            f"the text encoder of {place.path} is a {place.networks['text_encoder'].class_name}, which "
            "diffusers does not have. Convert the others alone: --part transformer, --part autoencoder."
        )
    single = len(place.networks) == 1 and place.text is None
    written = []
    with new_folder(out) as folder:
        for name, network in place.networks.items():
            target = folder if single else folder / _FOLDERS[name]
            target.mkdir(exist_ok=True)
            written.append(_summary(name, network, _diffusers_network(target, network)))
        if not single:
            written += _rest_of_pipeline(place, folder)
    return written


def _diffusers_network(folder: Path, network: Network) -> int:
    config = network.config
    if isinstance(config, TransformerConfig) and network.class_name == "ControlNet":
        options = controlnet_config_to_diffusers(config)
        foreign = controlnet_renaming(config).to_foreign(network.tensors, network.source)
    elif isinstance(config, TransformerConfig):
        options = transformer_config_to_diffusers(config)
        foreign = to_diffusers_transformer(config, network.tensors, network.source)
    elif isinstance(config, AutoencoderConfig):
        options = autoencoder_config_to_diffusers(config)
        foreign = to_diffusers_autoencoder(config, network.tensors, network.source)
    else:
        raise InputError(f"{network.class_name} has no counterpart in diffusers.")
    _write_json(folder / "config.json", {**options, "_diffusers_version": DIFFUSERS})
    write_weights(folder, WEIGHTS_STEM, foreign)
    return len(foreign)


def _rest_of_pipeline(place: Place, folder: Path) -> list[Written]:
    sampler = str(place.sampling.get("sampler", "dpm++"))
    scheduler = sampling_to_scheduler(sampler, float(place.sampling.get("shift", 1.0)))
    (folder / "scheduler").mkdir()
    _write_json(
        folder / "scheduler" / "scheduler_config.json", {**scheduler, "_diffusers_version": DIFFUSERS}
    )
    absent = [None, None]
    steered = "controlnet" in place.networks
    plain = "SanaControlNetPipeline" if steered else "SanaPipeline"
    index = {
        "_class_name": "SanaSprintPipeline" if sampler == "scm" else plain,
        "_diffusers_version": DIFFUSERS,
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "text_encoder": absent,
        "tokenizer": absent,
        "transformer": ["diffusers", TRANSFORMER_CLASS] if "transformer" in place.networks else absent,
        "vae": ["diffusers", AUTOENCODER_CLASS] if "autoencoder" in place.networks else absent,
    }
    if steered:
        index["controlnet"] = ["diffusers", CONTROLNET_CLASS]
    written = []
    if place.text is not None:
        place.text.write(folder / "text_encoder", folder / "tokenizer")
        index["text_encoder"] = ["transformers", place.text.class_name]
        index["tokenizer"] = ["transformers", place.text.tokenizer_class]
        written.append(Written("text_encoder", place.text.class_name, 0, ()))
    _write_json(folder / PIPELINE_INDEX, index)
    return written


def _official(place: Place, out: Path) -> list[Written]:
    for network in place.networks.values():
        if isinstance(network.config, ArticleConfig | ArticleAutoencoderConfig | DiTConfig):
            raise InputError(f"{network.class_name} has no counterpart among official files.")
    networks = {name: each for name, each in place.networks.items() if name in _OFFICIAL_FILES}
    if not networks:
        raise InputError(
            f"{place.path} holds no transformer and no autoencoder, which official files are of; "
            "a ControlNet lies in the file of its transformer."
        )
    control = place.networks.get("controlnet") if "transformer" in networks else None
    files = {name: _official_tensors(each, control) for name, each in networks.items()}
    written = [_summary(name, each, len(files[name]), kept=True) for name, each in networks.items()]
    if len(networks) == 1:
        ((name, tensors),) = files.items()
        if out.suffix not in {".pth", ".safetensors"}:
            raise OutputError(f"an official {name} is one file: let {out} end in .pth or .safetensors.")
        _official_file(out, tensors)
    else:
        with new_folder(out) as folder:
            for name, tensors in files.items():
                _official_file(folder / _OFFICIAL_FILES[name], tensors)
    if control is not None:
        written.append(_summary("controlnet", control, len(control.tensors)))
    # The official code reads its text encoder from where it was published.
    told = {each.name for each in written}
    rest = [name for name in place.networks if name not in told] or ["text_encoder"] * (
        place.text is not None
    )
    return written + [Written(name, "", 0, (name,)) for name in rest]


def _official_tensors(network: Network, control: Network | None) -> LazyTensors:
    config = network.config
    if isinstance(config, AutoencoderConfig):
        return to_official_autoencoder(config, network.tensors, network.source)
    assert isinstance(config, TransformerConfig)
    foreign = to_official_transformer(config, network.tensors, network.source, network.spare)
    if control is None:
        return foreign
    assert isinstance(control.config, TransformerConfig)
    return with_controlnet(foreign, control.config, control.tensors, control.source)


def _official_file(path: Path, tensors: LazyTensors) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        (write_pickle if path.suffix in SUFFIXES else write_file)(temporary, tensors)
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _summary(name: str, network: Network, count: int, *, kept: bool = False) -> Written:
    return Written(name, network.class_name, count, () if kept else tuple(network.spare))


def _card(place: Place) -> str:
    written = place.path / "README.md"
    if place.format == "native" and written.is_file():
        return written.read_text("utf-8", "replace")
    held = ", ".join(
        f"{each.class_name} ({sum(_numel(shape.shape) for shape in each.tensors.stored.values()):,} numbers)"
        for each in place.networks.values()
    )
    text = (
        "" if place.text is None else f" Its text encoder is a {place.text.class_name} with its own licence."
    )
    return (
        f"# {place.path.name}\n\nA model folder of lineardit: {held}.{text} It was written from a "
        f"{place.format} checkpoint, whose licence it keeps.\n\n"
        '    lineardit info FOLDER\n    lineardit generate "..." --model FOLDER\n'
    )


def _numel(shape: tuple[int, ...]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
