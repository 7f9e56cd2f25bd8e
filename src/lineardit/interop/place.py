"""What a place of any format holds, and whether its parts are of one model."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from lineardit.config.article import ArticleConfig
from lineardit.config.dit import DiTConfig
from lineardit.config.models import Config, LatentsConfig, TransformerConfig
from lineardit.errors import CheckpointError, InputError
from lineardit.interop.native import INDEX, Component
from lineardit.interop.published_text import Text
from lineardit.interop.stored import LazyTensors

NOTHING = LazyTensors({}, dict[str, Tensor]().__getitem__)
"""No tensors."""
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
        """One of its networks alone, a text encoder of ours with its vocabulary.

        Raises:
            InputError: there is none of that name.
        """
        if part not in self.networks:
            raise InputError(f"{self.path} holds no {part}, only {', '.join(self.networks)}.")
        files = self.files if part == "text_encoder" else {}
        return replace(self, networks={part: self.networks[part]}, text=None, files=files)

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


def size_of(networks: Mapping[str, Network]) -> dict[str, Any]:
    """The pixels per side that both networks were made for."""
    found = [networks[name].config for name in ("transformer", "autoencoder") if name in networks]
    match found:
        case [(TransformerConfig() | ArticleConfig()) as transformer, LatentsConfig() as autoencoder]:
            return {"size": transformer.position_base * transformer.patch_size * autoencoder.stride}
    return {}


def check_parts(place: Place) -> None:
    """Find out whether the parts of a place are of one model, before anything is loaded.

    Raises:
        CheckpointError: they are not.
    """
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
