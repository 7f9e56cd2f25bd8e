"""Files with the tensor names of NVlabs/Sana and efficientvit, which do not say what they are."""

from pathlib import Path

from lineardit.config.models import TransformerConfig
from lineardit.errors import CheckpointError
from lineardit.interop.diffusers_config import PIPELINE_INDEX
from lineardit.interop.native import INDEX
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
from lineardit.interop.place import Network, Place, size_of
from lineardit.interop.schedulers import PUBLISHED_SHIFT, sampling_from_scheduler, sampling_to_scheduler
from lineardit.interop.stored import LazyTensors, open_tensors

CHECKPOINTS = "checkpoints"
"""The folder of an official release that its weights lie in."""

WEIGHT_SUFFIXES = SUFFIXES | {".safetensors"}
"""Of files that may hold networks."""
# Families whose files people have at hand, by a part of a tensor's name.
_STRANGERS = {
    "double_blocks.": "FLUX",
    "joint_blocks.": "Stable Diffusion 3",
    "input_blocks.": "Stable Diffusion or SDXL",
    "down_blocks.0.resnets.": "Stable Diffusion or SDXL",
    "lora_": "a LoRA",
    "adaln_single.": "PixArt",
}
_PREFIXES = ("model.diffusion_model.", "module.", "_orig_mod.")
"""What other programs put before every name of a transformer's or autoencoder's tensors."""


def official_folder(path: Path) -> Place:
    """All networks of the files in a folder.

    Raises:
        CheckpointError: there is no such file, one holds something else, or two hold the same network.
    """
    files = sorted(file for file in path.iterdir() if file.suffix in WEIGHT_SUFFIXES)
    if not files:
        raise CheckpointError(
            f"{path} is a folder without a model: there is no {INDEX}, no {PIPELINE_INDEX} and no "
            "config.json in it, and no file of weights."
        )
    networks: dict[str, Network] = {}
    for file in files:
        found = official_networks(file, open_pickle(file) if file.suffix in SUFFIXES else open_tensors(file))
        for name in found:
            if name in networks:
                raise CheckpointError(
                    f"{path} holds more than one {name}: {networks[name].source} and {file}. Give one file."
                )
        networks |= found
    return official_place(path, networks)


def official_place(path: Path, networks: dict[str, Network]) -> Place:
    """Official files do not say how they are sampled; their authors' configurations do."""
    config = networks["transformer"].config if "transformer" in networks else None
    if not isinstance(config, TransformerConfig):
        return Place(path, "official", networks)
    sampling = sampling_from_scheduler(
        sampling_to_scheduler("scm" if config.guidance_embedding else "dpm++", PUBLISHED_SHIFT), path
    )
    return Place(path, "official", networks, sampling=sampling | size_of(networks))


def official_networks(path: Path, tensors: LazyTensors) -> dict[str, Network]:
    """The network in an official file, or a transformer and its ControlNet.

    Raises:
        CheckpointError: it is of a kind that is not read here.
    """
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


def _without_prefix(tensors: LazyTensors) -> LazyTensors:
    for prefix in _PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            return tensors.renamed({name.removeprefix(prefix): name for name in tensors})
    return tensors
