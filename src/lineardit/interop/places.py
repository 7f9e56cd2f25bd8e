"""What a folder, a file or a hub id holds, whatever its format; weights stay where they are until asked for.

native      a folder with lineardit.json
diffusers   a pipeline's folder with model_index.json, or the folder of one of its networks
official    a file (or a folder of files) with the tensor names of NVlabs/Sana and efficientvit
"""

from dataclasses import replace
from pathlib import Path

from lineardit.errors import CheckpointError
from lineardit.interop.diffusers import (
    controlnet_renaming,
    from_diffusers_autoencoder,
    from_diffusers_transformer,
)
from lineardit.interop.diffusers_config import (
    AUTOENCODER_CLASS,
    CONTROLNET_CLASS,
    PIPELINE_INDEX,
    TRANSFORMER_CLASS,
    WEIGHTS_STEM,
    autoencoder_config_from_diffusers,
    controlnet_config_from_diffusers,
    transformer_config_from_diffusers,
)
from lineardit.interop.hub import resolve
from lineardit.interop.json_files import read_json
from lineardit.interop.native import INDEX, describe_model
from lineardit.interop.official_files import (
    CHECKPOINTS,
    WEIGHT_SUFFIXES,
    official_folder,
    official_networks,
    official_place,
)
from lineardit.interop.pickles import SUFFIXES, open_pickle
from lineardit.interop.place import NOTHING, SPARE_SUFFIX, Network, Place, check_parts, size_of
from lineardit.interop.published_text import PUBLISHED_TEXT, published_text, text_beside
from lineardit.interop.schedulers import sampling_from_scheduler
from lineardit.interop.shards import open_weights
from lineardit.interop.stored import LazyTensors, open_tensors
from lineardit.interop.text import TOKENIZER

PIPELINES = (
    "SanaPipeline",
    "SanaPAGPipeline",
    "SanaControlNetPipeline",
    "SanaSprintPipeline",
    "SanaSprintImg2ImgPipeline",
)
NETWORK_CLASSES = (TRANSFORMER_CLASS, AUTOENCODER_CLASS, CONTROLNET_CLASS)


def open_place(place: str | Path, *, variant: str | None = None) -> Place:
    """Find out what `place` holds and check that it fits together; no weights are read.

    `variant` (fp16, bf16) chooses among the weights of a diffusers folder.

    Raises:
        CheckpointError: it holds nothing that is read here, is damaged, or its parts are of different models.
        MissingExtraError: it is a hub id, and huggingface_hub is not installed.
    """
    path = resolve(place)
    opened = _opened(path, variant)
    check_parts(opened)
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
    check_parts(place)
    return replace(place, sampling=size_of(place.networks) | place.sampling)


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
    return official_folder(below if below.is_dir() else path)


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
        text = text_beside(path, str(about[PUBLISHED_TEXT]), None)
    sums = {name: summary.written.sha256 for name, summary in summaries.items()}
    vocabulary = path / TOKENIZER
    files = (
        {TOKENIZER: vocabulary.read_bytes()} if "text_encoder" in networks and vocabulary.is_file() else {}
    )
    sampling = about.get("sampling", {})
    if not isinstance(sampling, dict):
        raise CheckpointError(f"{path / INDEX} is damaged: about.sampling is {sampling!r}, no object.")
    return Place(path, "native", networks, text, sampling, about, files, sums)


_PARTS = {"transformer": TRANSFORMER_CLASS, "vae": AUTOENCODER_CLASS, "controlnet": CONTROLNET_CLASS}
"""Folders of a pipeline with the class that belongs into each."""


def _pipeline(path: Path, variant: str | None) -> Place:
    index = read_json(path / PIPELINE_INDEX)
    kind = index.get("_class_name")
    if kind not in PIPELINES:
        raise CheckpointError(f"{path} is a {kind}. What is read here is one of {', '.join(PIPELINES)}.")
    classes = {
        name: str(value[1])
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
        text = text_beside(path, classes["text_encoder"], variant)
    place = path / "scheduler" / "scheduler_config.json"
    sampling = sampling_from_scheduler(read_json(place), place) if "scheduler" in classes else {}
    return Place(path, "diffusers", networks, text, sampling | size_of(networks))


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


def _file(path: Path, variant: str | None) -> Place:
    if path.suffix not in WEIGHT_SUFFIXES:
        raise CheckpointError(
            f"{path} is neither a folder nor a file of weights ({', '.join(sorted(WEIGHT_SUFFIXES))})."
        )
    tensors = open_pickle(path) if path.suffix in SUFFIXES else open_tensors(path)
    if path.suffix == ".safetensors" and _describes_network(path.parent):
        return Place(path, "diffusers", dict([_component(path.parent, variant, tensors)]))
    return official_place(path, official_networks(path, tensors))
