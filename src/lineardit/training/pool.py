"""Latents and captions of training scenes, drawn and encoded once and then used again and again."""

from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lineardit.autoencoder.model import Autoencoder
from lineardit.config.runs import LoopConfig, PoolRun
from lineardit.config.scenes import SceneConfig
from lineardit.data.cache import ShardCache
from lineardit.data.emoji_scenes import EmojiScenes
from lineardit.data.scene import Scene
from lineardit.interop.bundled import folder_named
from lineardit.interop.native import describe_model
from lineardit.interop.text import text_fingerprint
from lineardit.kernels.select import autocast
from lineardit.text.embedding import TextEncoder
from lineardit.text.offline import OfflineEncoder

SHARD = 1024
"""Scenes per shard of the pool."""
ENCODED_AT_ONCE = 64


@runtime_checkable
class PooledScenes(Protocol):
    """What a run says of scenes that are encoded once."""

    @property
    def scenes(self) -> SceneConfig:
        """Which scenes."""
        ...

    @property
    def pool(self) -> int:
        """How many at least: shards are full."""
        ...

    @property
    def autoencoder(self) -> Path:
        """Folder of what encodes them."""
        ...

    @property
    def train(self) -> LoopConfig:
        """Whose seed the scenes follow from."""
        ...


class CaptionPool:
    """The text encoder's vectors of every caption, one after the other, and where each caption starts."""

    def __init__(self, vectors: Float[Tensor, "total c"], lengths: Int[Tensor, "scenes phrasings"]) -> None:
        self.vectors, self.lengths = vectors, lengths
        ends = lengths.flatten().long().cumsum(0)
        self._starts = (ends - lengths.flatten()).reshape(lengths.shape)

    def row(self, scene: int, phrasing: int) -> Float[Tensor, "m c"]:
        """The vectors of one caption."""
        start = int(self._starts[scene, phrasing])
        return self.vectors[start : start + int(self.lengths[scene, phrasing])]


def pool_latents(run: PooledScenes, folder: Path, autoencoder: Autoencoder) -> Float[Tensor, "n c h w"]:
    """Latents (bfloat16) of `run.pool` training scenes, computed once and kept in shards below `folder`."""
    scenes = EmojiScenes(run.scenes, run.train.seed)
    written = describe_model(folder_named(run.autoencoder))[0]["autoencoder"].written
    cache = ShardCache(folder, {"scenes": scenes.description(), "autoencoder": written.sha256})

    def shard(index: int) -> dict[str, Tensor]:
        drawn = [scenes.scene(number) for number in _numbers(index)]
        parts = [drawn[start : start + ENCODED_AT_ONCE] for start in range(0, SHARD, ENCODED_AT_ONCE)]
        return {"latents": torch.cat([_latents(autoencoder, scenes, part) for part in parts])}

    cache.fill(_shards(run), shard)
    return cache.load(_shards(run))["latents"]


def pool_captions(run: PoolRun, folder: Path, text_encoder: TextEncoder) -> CaptionPool:
    """Embeddings (bfloat16) of the captions of the same scenes, computed once and kept as the latents are."""
    scenes = EmojiScenes(run.scenes, run.train.seed)
    key = {
        "scenes": scenes.description(),
        "captions": run.captions_per_scene,
        "text_encoder": text_fingerprint(folder_named(run.text_encoder)),
    }
    cache = ShardCache(folder, key)

    def shard(index: int) -> dict[str, Tensor]:
        captions = [
            caption
            for number in _numbers(index)
            for caption in scenes.captions(scenes.scene(number), number, run.captions_per_scene)
        ]
        rows = _embedded(text_encoder, captions)
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int16)
        return {"vectors": torch.cat(rows), "lengths": lengths.reshape(SHARD, -1)}

    cache.fill(_shards(run), shard)
    return CaptionPool(**cache.load(_shards(run)))


def pooled_scenes(run: PooledScenes) -> int:
    """Scenes of the whole pool: shards are full."""
    return _shards(run) * SHARD


def _shards(run: PooledScenes) -> int:
    return -(-run.pool // SHARD)


def _numbers(shard: int) -> range:
    return range(shard * SHARD, (shard + 1) * SHARD)


@torch.no_grad()
def _latents(autoencoder: Autoencoder, scenes: EmojiScenes, drawn: list[Scene]) -> Tensor:
    device = next(autoencoder.parameters()).device
    images = scenes.draw(drawn, device=device).contiguous(memory_format=torch.channels_last)
    with autocast(device):
        return autoencoder.encode(images).bfloat16().cpu()


@torch.no_grad()
def _embedded(text_encoder: TextEncoder, captions: list[str]) -> list[Float[Tensor, "m c"]]:
    """Each caption's vectors; captions of like length are encoded together."""
    if not isinstance(text_encoder, OfflineEncoder):
        return _published(text_encoder, captions)
    device = next(text_encoder.parameters()).device
    tokens = [torch.tensor(each, device=device) for each in text_encoder.tokens(captions)]
    order = sorted(range(len(tokens)), key=lambda place: len(tokens[place]))
    rows: dict[int, Tensor] = {}
    for start in range(0, len(order), ENCODED_AT_ONCE):
        places = order[start : start + ENCODED_AT_ONCE]
        together = [tokens[place] for place in places]
        mask = pad_sequence([torch.ones_like(each, dtype=torch.bool) for each in together], batch_first=True)
        with autocast(device):
            vectors = text_encoder(pad_sequence(together, batch_first=True), mask)
        for place, row, there in zip(places, vectors.bfloat16().cpu(), mask.cpu(), strict=True):
            rows[place] = row[there]
    return [rows[place] for place in range(len(tokens))]


def _published(text_encoder: TextEncoder, captions: list[str]) -> list[Float[Tensor, "m c"]]:
    order = sorted(range(len(captions)), key=lambda place: len(captions[place]))
    rows: dict[int, Tensor] = {}
    for start in range(0, len(order), ENCODED_AT_ONCE):
        places = order[start : start + ENCODED_AT_ONCE]
        vectors, mask = text_encoder.encode([captions[place] for place in places])
        for place, row, there in zip(places, vectors.bfloat16().cpu(), mask.cpu(), strict=True):
            rows[place] = row[there]
    return [rows[place] for place in range(len(captions))]
