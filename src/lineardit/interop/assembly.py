"""The networks of a place with their weights, read at once or left in their files until they are at work."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from lineardit.autoencoder.model import Autoencoder
from lineardit.config.article import ArticleAutoencoderConfig, ArticleConfig
from lineardit.config.dit import DiTConfig
from lineardit.config.models import AutoencoderConfig, Config, TransformerConfig
from lineardit.errors import CheckpointError
from lineardit.interop.native import load_strict
from lineardit.interop.place import Network, Place
from lineardit.interop.published_text import TEXT_CLASSES, TEXT_STEM, PublishedText
from lineardit.interop.rename import check_fit
from lineardit.interop.shards import open_weights
from lineardit.interop.stored import STORED_DTYPES, LazyTensors
from lineardit.interop.text import text_encoder_from
from lineardit.kernels.select import DTYPES
from lineardit.nn.offload import load_when_called, offload
from lineardit.text.embedding import TextEncoder
from lineardit.text.encoder import GemmaEncoder, PublishedEncoder
from lineardit.transformer.article import ArticleSana
from lineardit.transformer.controlnet import ControlNet
from lineardit.transformer.denoiser import Denoiser
from lineardit.transformer.dit import DiT, dit_of
from lineardit.transformer.model import Transformer

N = TypeVar("N", bound=nn.Module)

CPU = torch.device("cpu")


def assemble_network(
    place: Place, dtype: str, device: torch.device = CPU, *, offloads: bool = False
) -> Denoiser:
    """The network of a place that denoises, SANA or the article's. Raises as `assemble_transformer`."""
    network = place.networks["transformer"]
    if isinstance(network.config, TransformerConfig):
        return assemble_transformer(place, dtype, device, offloads=offloads)
    assert isinstance(network.config, ArticleConfig)
    return _assembled(ArticleSana, network.config, network, dtype, device)


def assemble_transformer(
    place: Place, dtype: str, device: torch.device = CPU, *, offloads: bool = False
) -> Transformer:
    """The transformer of a place, ready to use, its weights read one by one as `dtype` to `device`.

    Where it `offloads`, those of its blocks stay in their file until they run (`nn.offload`).

    Raises:
        CheckpointError: lists every tensor that does not fit, or it is another kind of network.
        InputError: fp16 cannot hold one of its numbers.
    """
    network = place.networks["transformer"]
    if not isinstance(network.config, TransformerConfig):
        raise CheckpointError(
            f"{network.source} holds {network.class_name}, where a Transformer (SANA) is needed."
        )
    return _assembled(Transformer, network.config, network, dtype, device, _blocks if offloads else None)


def assemble_dit(place: Place, dtype: str, device: torch.device = CPU) -> DiT:
    """The class-conditional network of a place. Raises as `assemble_transformer`."""
    network = place.networks["transformer"]
    assert isinstance(network.config, DiTConfig)
    return _assembled(dit_of, network.config, network, dtype, device)


def assemble_controlnet(place: Place, dtype: str, device: torch.device = CPU) -> ControlNet:
    """The ControlNet of a place. Raises as `assemble_transformer`."""
    network = place.networks["controlnet"]
    assert isinstance(network.config, TransformerConfig)
    return _assembled(ControlNet, network.config, network, dtype, device)


def assemble_autoencoder(
    place: Place, dtype: str, device: torch.device = CPU, *, offloads: bool = False
) -> Autoencoder:
    """The autoencoder of a place. Raises as `assemble_transformer`.

    Where it `offloads`, encoder and decoder stay in their file until they run (`nn.offload`).
    """
    network = place.networks["autoencoder"]
    assert isinstance(network.config, AutoencoderConfig | ArticleAutoencoderConfig)
    return _assembled(Autoencoder, network.config, network, dtype, device, _halves if offloads else None)


def assemble_text_encoder(place: Place, device: torch.device, *, offloads: bool = False) -> TextEncoder:
    """The text encoder of a place: ours in float32, a published one in the dtype that it is stored in.

    Where it `offloads`, Gemma's layers stay in their files until they run (`nn.offload`).

    Raises:
        CheckpointError: it is damaged.
        MissingExtraError: transformers is needed and not installed.
    """
    if place.text is None:
        network = place.networks["text_encoder"]
        encoder = text_encoder_from(network.component(), Path(network.source))
        return encoder.to(device)
    assert isinstance(place.text, PublishedText)
    tensors = gemma_tensors(place) if offloads else None
    if tensors is not None:
        return _offloaded_gemma(place.text, tensors, device)
    return read_published_text(place.text, device)


def gemma_tensors(place: Place) -> LazyTensors | None:
    """The weights of a place's Gemma, whichever class of transformers wrote them, or None if it has none."""
    text = place.text
    if not isinstance(text, PublishedText) or TEXT_CLASSES[text.class_name] is not GemmaEncoder:
        return None
    found = open_weights(text.folder, TEXT_STEM, text.variant)
    return found.renamed({name.removeprefix("model."): name for name in found if name != "lm_head.weight"})


def _offloaded_gemma(text: PublishedText, tensors: LazyTensors, device: torch.device) -> PublishedEncoder:
    """Gemma with each of its layers in its file until it is called."""
    stored = STORED_DTYPES[next(iter(tensors.stored.values())).dtype]
    encoder = GemmaEncoder.without_weights(text.folder, text.tokenizer, stored=stored)
    encoder.device = device
    floats = next(encoder.model.parameters()).dtype
    dtype = next(name for name, each in DTYPES.items() if each == floats)
    model = encoder.model
    parts = {name: model.get_submodule(name) for name in ("embed_tokens", "norm")}
    parts |= {f"layers.{name}": layer for name, layer in model.get_submodule("layers").named_children()}
    _leave(model, parts, tensors.to(dtype, device), text.folder, device)
    for part in parts.values():
        load_when_called(part)
    return encoder


def read_published_text(text: PublishedText, device: torch.device) -> PublishedEncoder:
    """A text encoder as transformers stores it, in the dtype that it is stored in. Raises as above."""
    kind = TEXT_CLASSES[text.class_name]
    encoder = kind.from_folder(text.folder, text.tokenizer, dtype="auto", variant=text.variant)
    encoder.model.to(device)
    return encoder


def _assembled(
    kind: Callable[[Any], N],
    config: Config,
    network: Network,
    dtype: str,
    device: torch.device,
    offloads: Callable[[N], Mapping[str, nn.Module]] | None = None,
) -> N:
    """A network with its weights, but for the parts that it `offloads`, by their names."""
    with torch.device("meta"):
        model = kind(config)
    tensors = network.tensors.to(dtype, device)
    if offloads is None:
        load_strict(model, tensors, network.source)
        return model.to(device, DTYPES[dtype]).eval()  # the buffers that no file has
    model.to(DTYPES[dtype])
    _leave(model, offloads(model), tensors, network.source, device)
    return model.eval()


def _leave(
    model: nn.Module,
    parts: Mapping[str, nn.Module],
    tensors: LazyTensors,
    source: object,
    device: torch.device,
) -> None:
    """Leave the weights of some parts of a model where they are, and read the others.

    Raises:
        CheckpointError: lists every tensor that does not fit.
    """
    shapes = {name: wanted.shape for name, wanted in model.state_dict().items()}
    check_fit(type(model).__name__, shapes, tensors.stored, source)
    left = {*tensors}
    for place, part in parts.items():
        own = {name.removeprefix(f"{place}."): name for name in tensors if name.startswith(f"{place}.")}
        offload(part, tensors.renamed(own))
        left -= {*own.values()}
    # Not strict: what stays in its file is missing here, and only that.
    found = model.load_state_dict({name: tensors[name] for name in left}, strict=False, assign=True)
    assert {*found.missing_keys} == {*tensors} - left and not found.unexpected_keys, "checked above"
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if not buffer.is_meta:
                setattr(module, name, buffer.to(device))


def _blocks(transformer: Transformer) -> dict[str, nn.Module]:
    return {f"blocks.{number}": block for number, block in enumerate(transformer.blocks)}


def _halves(autoencoder: Autoencoder) -> dict[str, nn.Module]:
    return {"encoder": autoencoder.encoder, "decoder": autoencoder.decoder}
