"""What a folder, a file or a hub id holds, whatever its format; weights stay where they are until asked for.

native      a folder with lineardit.json
diffusers   a pipeline's folder with model_index.json, or the folder of one of its networks
official    a file (or a folder of files) with the tensor names of NVlabs/Sana and efficientvit
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from lineardit.config.article import ArticleConfig
from lineardit.config.dit import DiTConfig
from lineardit.config.models import Config, LatentsConfig, TransformerConfig
from lineardit.errors import CheckpointError, InputError, MissingExtraError
from lineardit.interop.diffusers import (
    controlnet_renaming,
    from_diffusers_autoencoder,
    from_diffusers_transformer,
)
from lineardit.interop.diffusers_config import (
    AUTOENCODER_CLASS,
    CONTROLNET_CLASS,
    TRANSFORMER_CLASS,
    autoencoder_config_from_diffusers,
    controlnet_config_from_diffusers,
    transformer_config_from_diffusers,
)
from lineardit.interop.native import INDEX, Component, describe_model
from lineardit.interop.official import (
    AUTOENCODER_MARK,
    CONTROL,
    TRANSFORMER_MARK,
    controlnet_of,
    from_official_autoencoder,
    from_official_transformer,
    guess_autoencoder,
)
from lineardit.interop.pickles import SUFFIXES, open_pickle
from lineardit.interop.schedulers import (
    PUBLISHED_SHIFT,
    sampling_from_scheduler,
    sampling_to_scheduler,
)
from lineardit.interop.shards import choose_variant, find_weights, open_weights
from lineardit.interop.stored import LazyTensors, open_tensors, read_header
from lineardit.interop.text import TOKENIZER
from lineardit.text.encoder import GemmaEncoder, PublishedEncoder, T5Encoder

PIPELINE_INDEX = "model_index.json"
PIPELINES = (
    "SanaPipeline",
    "SanaPAGPipeline",
    "SanaControlNetPipeline",
    "SanaSprintPipeline",
    "SanaSprintImg2ImgPipeline",
)
WEIGHTS_STEM, TEXT_STEM = "diffusion_pytorch_model", "model"
NETWORK_CLASSES = (TRANSFORMER_CLASS, AUTOENCODER_CLASS, CONTROLNET_CLASS)
TEXT_CLASSES: Mapping[str, type[PublishedEncoder]] = {
    "Gemma2Model": GemmaEncoder,
    "Gemma2ForCausalLM": GemmaEncoder,
    "T5EncoderModel": T5Encoder,
}
"""Text encoders of pipelines, by the name that transformers has for them."""
TEXT_FAMILIES: Mapping[str, type[PublishedEncoder]] = {"gemma2": GemmaEncoder, "t5": T5Encoder}
"""Those that lie in a folder of their own, by what its config.json says."""

CHECKPOINTS = "checkpoints"
"""The folder of an official release that its weights lie in."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILE = re.compile(rf"hf://({_HUB_ID.pattern})/(.+)")
_HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", f"{CHECKPOINTS}/*.pth")
_OFFICIAL_SUFFIXES = SUFFIXES | {".safetensors"}
# Families whose files people have at hand, by a part of a tensor's name.
_STRANGERS = {
    "double_blocks.": "FLUX",
    "joint_blocks.": "Stable Diffusion 3",
    "input_blocks.": "Stable Diffusion or SDXL",
    "down_blocks.0.resnets.": "Stable Diffusion or SDXL",
    "lora_": "a LoRA",
    "adaln_single.": "PixArt",
}


NOTHING = LazyTensors({}, dict[str, Tensor]().__getitem__)
SPARE_SUFFIX = ".official.safetensors"
"""Behind a network's name: the file of our folders that its spare tensors lie in."""


@dataclass(frozen=True)
class Network:
    """One network of a place, under our names."""

    class_name: str
    config: Config
    tensors: LazyTensors
    """Read when asked for."""
    source: str
    """What errors call it."""
    spare: LazyTensors = field(default_factory=lambda: NOTHING)
    """Tensors of an official file that drawing has no use for: kept, and given back to official files."""

    def component(self) -> Component:
        """As a component of our own folders."""
        return Component(self.class_name, self.config, self.tensors)


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


@dataclass(frozen=True)
class Place:
    """All that a folder or file holds."""

    path: Path
    format: str
    """native, diffusers or official."""
    networks: dict[str, Network]
    """`transformer`, `autoencoder`, `text_encoder` (only ours) or some of them."""
    text: Text | None = None
    """A published text encoder."""
    sampling: dict[str, Any] = field(default_factory=dict)
    """Fields of the pipeline's `Sampling`."""
    about: dict[str, Any] = field(default_factory=dict)
    """Facts that go along."""
    files: dict[str, bytes] = field(default_factory=dict)
    """The vocabulary of a text encoder of ours."""
    checksums: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each network's file as it was written, where that is known."""

    @property
    def missing(self) -> list[str]:
        """What a pipeline would still need."""
        held = {*self.networks, *(["text_encoder"] if self.text or self.draws_classes else [])}
        return [name for name in ("transformer", "autoencoder", "text_encoder") if name not in held]

    def only(self, part: str) -> "Place":
        """One of its networks alone. Raises `InputError` where there is none of that name."""
        if part not in self.networks:
            raise InputError(f"{self.path} holds no {part}, only {', '.join(self.networks)}.")
        return replace(self, networks={part: self.networks[part]}, text=None, files={})

    @property
    def draws_classes(self) -> bool:
        """Whether its transformer is told a class, and needs no text."""
        return "transformer" in self.networks and isinstance(self.networks["transformer"].config, DiTConfig)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that it draws, by number; the numbers themselves where it names none.

        Raises:
            CheckpointError: it draws no classes, or names another number of them than it has.
        """
        config = self.networks["transformer"].config if "transformer" in self.networks else None
        if not isinstance(config, DiTConfig) or config.num_classes is None:
            raise CheckpointError(f"{self.path} draws no classes.")
        names = self.about.get("classes", [str(number) for number in range(config.num_classes)])
        if not isinstance(names, list) or len(names) != config.num_classes:
            raise CheckpointError(
                f"{self.path / INDEX} is damaged: about.classes does not name {config.num_classes} classes."
            )
        return tuple(map(str, names))


def open_place(place: str | Path, *, variant: str | None = None) -> Place:
    """Find out what `place` holds and check that it fits together; no weights are read.

    `variant` (fp16, bf16) chooses among the weights of a diffusers folder.

    Raises:
        CheckpointError: it holds nothing that is read here, is damaged, or its parts are of different models.
        MissingExtraError: it is a hub id, and huggingface_hub is not installed.
    """
    path = resolve(place)
    opened = _opened(path, variant)
    _check_parts(opened)
    return opened


def with_parts(
    place: Place,
    autoencoder: str | Path | None = None,
    text_encoder: str | Path | None = None,
    *,
    variant: str | None = None,
) -> Place:
    """A place with the autoencoder or the text encoder of other places, as official files need them.

    Raises:
        CheckpointError: there is none in that place, or it is of another model.
        MissingExtraError: as `open_place`.
    """
    if autoencoder is not None:
        other = open_place(autoencoder, variant=variant)
        if "autoencoder" not in other.networks:
            raise CheckpointError(f"{other.path} holds no autoencoder, only {', '.join(other.networks)}.")
        place = replace(place, networks=place.networks | {"autoencoder": other.networks["autoencoder"]})
    if text_encoder is not None:
        place = _with_text(place, resolve(text_encoder), variant)
    _check_parts(place)
    return replace(place, sampling=_size(place.networks) | place.sampling)


def _with_text(place: Place, path: Path, variant: str | None) -> Place:
    kept = {name: each for name, each in place.networks.items() if name != "text_encoder"}
    text = published_text(path, variant=variant)
    if text is not None:
        return replace(place, networks=kept, text=text, files={})
    other = open_place(path, variant=variant)
    if "text_encoder" in other.networks:
        kept["text_encoder"] = other.networks["text_encoder"]
    elif other.text is None:
        raise CheckpointError(f"{path} holds no text encoder, only {', '.join(other.networks)}.")
    return replace(place, networks=kept, text=other.text, files=other.files)


def published_text(path: Path, *, variant: str | None = None) -> PublishedText | None:
    """The text encoder that transformers wrote to a folder with its tokenizer, or None where there is none.

    Raises:
        CheckpointError: its description is damaged.
    """
    described = path / "config.json"
    kind = TEXT_FAMILIES.get(str(read_json(described).get("model_type"))) if described.is_file() else None
    return None if kind is None else _text_in(path, path, kind.model_class, variant)


def resolve(place: str | Path) -> Path:
    """The path itself, or the folder of a hub id: the local copy, and only if there is none a fetched one.

    Raises:
        CheckpointError: there is no such path, and no such id at hand.
        MissingExtraError: it looks like a hub id, and huggingface_hub is not installed.
    """
    path = Path(place)
    if path.exists():
        return path
    if isinstance(place, str) and (named := _HUB_FILE.fullmatch(place)):
        return _fetched(place, named[1], "hf_hub_download", {"filename": named[2]}, {})
    if not isinstance(place, str) or not _HUB_ID.fullmatch(place):
        raise CheckpointError(
            f"{place} is no folder and no file here. Give one, or a hub id such as NAME/MODEL."
        )
    return _fetched(place, place, "snapshot_download", {}, {"allow_patterns": list(_HUB_FILES)})


def _fetched(
    place: str, name: str, function: str, wanted: Mapping[str, Any], when_fetched: Mapping[str, Any]
) -> Path:
    """The local copy of what a hub has under `name`, and only if there is none a fetched one."""
    if find_spec("huggingface_hub") is None:
        raise MissingExtraError("huggingface_hub", "hub", f"{place} is no folder here; a hub id")
    download: Callable[..., str] = getattr(import_module("huggingface_hub"), function)
    try:
        return Path(download(name, **wanted, local_files_only=True))
    except Exception:  # nothing local, whatever the library calls it
        pass
    try:
        return Path(download(name, **wanted, **when_fetched))
    except Exception as error:  # no network, no such model, no permission: many kinds, one meaning
        raise CheckpointError(
            f"{place} is no folder here, not among the models that huggingface_hub has at hand, and could "
            f"not be fetched ({type(error).__name__}). Fetch it where there is a network: hf download {name}"
        ) from None


def _opened(path: Path, variant: str | None) -> Place:
    if not path.is_dir():
        return _file(path, variant)
    ours, theirs = (path / INDEX).is_file(), (path / PIPELINE_INDEX).is_file()
    if ours and theirs:
        raise CheckpointError(
            f"{path} holds two models: {INDEX} is ours and {PIPELINE_INDEX} is of diffusers. Take one away."
        )
    if ours:
        return _native(path)
    if theirs:
        return _pipeline(path, variant)
    if _describes_network(path):
        return Place(path, "diffusers", dict([_component(path, variant)]))
    below = path / CHECKPOINTS
    return _official_folder(below if below.is_dir() else path)


def _describes_network(folder: Path) -> bool:
    """Whether a config.json is there that says of what class the network is; efficientvit's only name it."""
    file = folder / "config.json"
    return file.is_file() and not {*read_json(file)} <= {"model_name"}


def _native(path: Path) -> Place:
    summaries, about = describe_model(path)
    networks = {}
    for name, summary in summaries.items():
        spare = path / f"{name}{SPARE_SUFFIX}"
        kept = open_tensors(spare) if spare.is_file() else NOTHING
        tensors = open_tensors(summary.file)
        networks[name] = Network(summary.class_name, summary.config, tensors, str(path), kept)
    text = None
    if PUBLISHED_TEXT in about:
        text = _published_text(path, str(about[PUBLISHED_TEXT]), None)
    sums = {name: summary.written.sha256 for name, summary in summaries.items()}
    vocabulary = path / TOKENIZER
    files = (
        {TOKENIZER: vocabulary.read_bytes()} if "text_encoder" in networks and vocabulary.is_file() else {}
    )
    sampling = about.get("sampling", {})
    if not isinstance(sampling, dict):
        raise CheckpointError(f"{path / INDEX} is damaged: about.sampling is {sampling!r}, no object.")
    return Place(path, "native", networks, text, sampling, about, files, sums)


PUBLISHED_TEXT = "published_text"
"""In our folders' `about`: the class of a text encoder that lies in them as transformers stores it."""


_PARTS = {"transformer": TRANSFORMER_CLASS, "vae": AUTOENCODER_CLASS, "controlnet": CONTROLNET_CLASS}
"""Folders of a pipeline with the class that belongs into each."""


def _pipeline(path: Path, variant: str | None) -> Place:
    index = read_json(path / PIPELINE_INDEX)
    kind = index.get("_class_name")
    if kind not in PIPELINES:
        raise CheckpointError(f"{path} is a {kind}. What is read here is one of {', '.join(PIPELINES)}.")
    classes = {
        name: value[1]
        for name, value in index.items()
        if isinstance(value, list) and len(value) == 2 and value[1] is not None
    }
    networks = {}
    for folder, expected in _PARTS.items():
        if folder not in classes:
            continue
        if classes[folder] != expected:
            raise CheckpointError(
                f"{path}: {folder} is a {classes[folder]}; what fits into a {kind} is a {expected}."
            )
        name, network = _component(path / folder, variant)
        networks[name] = network
    text = None
    if "text_encoder" in classes:
        text = _published_text(path, classes["text_encoder"], variant)
    place = path / "scheduler" / "scheduler_config.json"
    sampling = sampling_from_scheduler(read_json(place), place) if "scheduler" in classes else {}
    return Place(path, "diffusers", networks, text, sampling | _size(networks))


def _size(networks: Mapping[str, Network]) -> dict[str, Any]:
    """The pixels per side that both networks were made for."""
    found = [networks[name].config for name in ("transformer", "autoencoder") if name in networks]
    match found:
        case [(TransformerConfig() | ArticleConfig()) as transformer, LatentsConfig() as autoencoder]:
            return {"size": transformer.position_base * transformer.patch_size * autoencoder.stride}
    return {}


def _component(folder: Path, variant: str | None, tensors: LazyTensors | None = None) -> tuple[str, Network]:
    """The network in one folder of diffusers, and what it is called here."""
    options = read_json(folder / "config.json")
    kind, source = options.get("_class_name"), str(folder)
    if kind not in NETWORK_CLASSES:
        what = kind or options.get("model_type") or "model of an unknown kind"
        raise CheckpointError(
            f"{folder} holds a {what}. What is read here is one of {', '.join(NETWORK_CLASSES)}."
        )
    stored = open_weights(folder, WEIGHTS_STEM, variant) if tensors is None else tensors
    try:
        if kind == TRANSFORMER_CLASS:
            config = transformer_config_from_diffusers(options)
            own = from_diffusers_transformer(config, stored, source)
            return "transformer", Network("Transformer", config, own, source)
        if kind == CONTROLNET_CLASS:
            config = controlnet_config_from_diffusers(options)
            own = controlnet_renaming(config).to_own(stored, source)
            return "controlnet", Network("ControlNet", config, own, source)
        described = autoencoder_config_from_diffusers(options)
        own = from_diffusers_autoencoder(described, stored, source)
        return "autoencoder", Network("Autoencoder", described, own, source)
    except CheckpointError as error:
        if str(error).startswith(source):
            raise
        raise CheckpointError(f"{folder}: {error}") from None


def _published_text(path: Path, class_name: str, variant: str | None) -> PublishedText:
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


def _file(path: Path, variant: str | None) -> Place:
    if path.suffix not in _OFFICIAL_SUFFIXES:
        raise CheckpointError(
            f"{path} is neither a folder nor a file of weights ({', '.join(sorted(_OFFICIAL_SUFFIXES))})."
        )
    tensors = open_pickle(path) if path.suffix in SUFFIXES else open_tensors(path)
    if path.suffix == ".safetensors" and _describes_network(path.parent):
        return Place(path, "diffusers", dict([_component(path.parent, variant, tensors)]))
    return _official_place(path, _official(path, tensors))


def _official_folder(path: Path) -> Place:
    files = sorted(file for file in path.iterdir() if file.suffix in _OFFICIAL_SUFFIXES)
    if not files:
        raise CheckpointError(
            f"{path} is a folder without a model: there is no {INDEX}, no {PIPELINE_INDEX} and no "
            "config.json in it, and no file of weights."
        )
    networks: dict[str, Network] = {}
    for file in files:
        found = _official(file, open_pickle(file) if file.suffix in SUFFIXES else open_tensors(file))
        for name in found:
            if name in networks:
                raise CheckpointError(
                    f"{path} holds more than one {name}: {networks[name].source} and {file}. Give one file."
                )
        networks |= found
    return _official_place(path, networks)


def _official_place(path: Path, networks: dict[str, Network]) -> Place:
    """Official files do not say how they are sampled; their authors' configurations do."""
    config = networks["transformer"].config if "transformer" in networks else None
    if not isinstance(config, TransformerConfig):
        return Place(path, "official", networks)
    sampling = sampling_from_scheduler(
        sampling_to_scheduler("scm" if config.guidance_embedding else "dpm++", PUBLISHED_SHIFT), path
    )
    return Place(path, "official", networks, sampling=sampling | _size(networks))


def _official(path: Path, tensors: LazyTensors) -> dict[str, Network]:
    """The network in an official file, or a transformer and its ControlNet."""
    tensors = _without_prefix(tensors)
    source = str(path)
    if TRANSFORMER_MARK in tensors:
        plain = tensors.only(name for name in tensors if not name.startswith(CONTROL))
        config, own, spare = from_official_transformer(plain, source)
        networks = {"transformer": Network("Transformer", config, own, source, spare)}
        if len(plain) < len(tensors):
            control, own, _ = controlnet_of(tensors, config, source)
            networks["controlnet"] = Network("ControlNet", control, own, source)
        return networks
    if AUTOENCODER_MARK in tensors:
        beside = path.with_name("config.json")
        hint = source + (beside.read_text("utf-8", "replace") if beside.is_file() else "")
        described = guess_autoencoder(tensors, source, hint)
        own = from_official_autoencoder(described, tensors, source)
        return {"autoencoder": Network("Autoencoder", described, own, source)}
    first = next(iter(tensors), "nothing")
    known = (family for part, family in _STRANGERS.items() if any(part in name for name in tensors))
    family = next(known, None)
    what = f"looks like {family}" if family else "is of a kind that is not known here"
    raise CheckpointError(
        f"{path} {what}: it holds {first} and {len(tensors) - 1} more. What is read here is a SANA "
        "transformer or a DC-AE; a single file of diffusers needs its config.json beside it."
    )


_PREFIXES = ("model.diffusion_model.", "module.", "_orig_mod.")
"""What other programs put before every name of a transformer's or autoencoder's tensors."""


def _without_prefix(tensors: LazyTensors) -> LazyTensors:
    for prefix in _PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            return tensors.renamed({name.removeprefix(prefix): name for name in tensors})
    return tensors


def _check_parts(place: Place) -> None:
    """Parts of different models in one place are found before anything is loaded."""
    configs = {name: network.config for name, network in place.networks.items()}
    transformer, autoencoder = configs.get("transformer"), configs.get("autoencoder")
    if isinstance(transformer, DiTConfig) and isinstance(autoencoder, LatentsConfig):
        wanted = autoencoder.latent_channels * transformer.patch_size**2
        if transformer.input_dim != wanted:
            raise CheckpointError(
                f"{place.path} mixes two models: patches of the autoencoder's {autoencoder.latent_channels} "
                f"latent channels have {wanted} numbers, the transformer takes {transformer.input_dim}."
            )
    if not isinstance(transformer, TransformerConfig | ArticleConfig):
        return
    if isinstance(autoencoder, LatentsConfig) and autoencoder.latent_channels != transformer.latent_channels:
        raise CheckpointError(
            f"{place.path} mixes two models: the autoencoder has {autoencoder.latent_channels} latent "
            f"channels, the transformer takes {transformer.latent_channels}."
        )
    if "controlnet" in place.networks:
        check_control(place, transformer)
    text = configs.get("text_encoder")
    width = place.text.width if place.text else getattr(text, "width", None)
    if width is not None and width != transformer.text_width:
        raise CheckpointError(
            f"{place.path} mixes two models: its text encoder gives vectors of width {width}, the "
            f"transformer takes width {transformer.text_width}."
        )


def check_control(place: Place, transformer: Config) -> None:
    """Find out whether the ControlNet of a place fits a transformer.

    Raises:
        CheckpointError: it does not, or there is none.
    """
    if "controlnet" not in place.networks:
        raise CheckpointError(f"{place.path} holds no ControlNet, only {', '.join(place.networks)}.")
    found, source = place.networks["controlnet"].config, place.networks["controlnet"].source
    assert isinstance(found, TransformerConfig)
    if not isinstance(transformer, TransformerConfig):
        raise CheckpointError(f"{source} is a ControlNet for SANA, which this model is not.")
    for name in ("width", "latent_channels", "patch_size", "text_width"):
        given, wanted = getattr(found, name), getattr(transformer, name)
        if given != wanted:
            raise CheckpointError(
                f"{source} is a ControlNet for another model: it has {name}={given}, the transformer has "
                f"{name}={wanted}."
            )
    if found.depth >= transformer.depth:
        raise CheckpointError(
            f"{source} is a ControlNet of {found.depth} blocks, too many for a transformer of "
            f"{transformer.depth}."
        )


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds a JSON object.

    Raises:
        CheckpointError: it is missing or holds something else.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist.") from None
    except (OSError, ValueError):
        raise CheckpointError(f"{path} is damaged, or is no JSON.") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged: it holds no options.")
    return content
