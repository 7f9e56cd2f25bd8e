"""Training a transformer on scenes and captions that were drawn and encoded once."""

from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from lineardit.autoencoder.model import Autoencoder
from lineardit.config.runs import TransformerRun
from lineardit.data.cache import ShardCache
from lineardit.data.emoji_scenes import EmojiScenes
from lineardit.data.scene import Scene
from lineardit.diffusion.guidance import guided, prompt_dropout
from lineardit.diffusion.objective import draw_noise, flow_matching
from lineardit.diffusion.randomness import seeded_noise
from lineardit.diffusion.samplers import euler
from lineardit.diffusion.times import flow_times, shift_times
from lineardit.errors import ConfigError
from lineardit.interop.native import (
    Component,
    describe_model,
    load_autoencoder,
    load_strict,
    load_transformer,
    save_model,
)
from lineardit.interop.text import load_text_encoder, text_component, text_fingerprint
from lineardit.kernels.select import autocast
from lineardit.text.embedding import TextEmbedding
from lineardit.text.offline import OfflineEncoder
from lineardit.training.layout import LayoutReader, layout_loss, objects_share, token_objects
from lineardit.training.loop import step_generator, train
from lineardit.training.shares import Share
from lineardit.transformer.model import Transformer

SHARD = 1024
"""Scenes per shard of the pool."""
ENCODED_AT_ONCE = 64
DESCRIBED = {"scenes", "times", "prompt_dropout", "pool", "pair_repeats", "layout_weight", "train"}
"""What a model's folder says of its recipe."""


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


class GenerationTask:
    """Flow matching on the pool's latents; each epoch sees every scene once, in a new order and phrasing."""

    def __init__(
        self,
        run: TransformerRun,
        model: Transformer,
        autoencoder: Autoencoder,
        text_encoder: OfflineEncoder,
        latents: Float[Tensor, "scenes c h w"],
        captions: CaptionPool,
    ) -> None:
        self.run, self.autoencoder, self.text_encoder = run, autoencoder, text_encoder
        self.latents, self.captions = latents, captions
        scenes = EmojiScenes(run.scenes, run.train.seed)
        drawn = [scenes.scene(number) for number in range(len(latents))]
        self.model: nn.Module = model
        if run.layout_weight:
            self.model = LayoutReader(model, len(scenes.names))
            patch = run.model.patch_size
            height, width = (side // patch for side in latents.shape[-2:])
            self._objects = token_objects(drawn, scenes.names, height, width)
        pairs = torch.tensor([number for number, scene in enumerate(drawn) if scene.kind == "pair"])
        self._shown = torch.cat([torch.arange(len(latents)), pairs.repeat(run.pair_repeats - 1)]).long()
        self._network = torch.compile(self.model) if run.train.compile else self.model
        tokens = latents.shape[-2] * latents.shape[-1] // run.model.patch_size**2
        self._objective = flow_matching(run.times, tokens)
        self._empty = text_encoder.encode([""]).embeddings[0].cpu()

    def losses(self, step: int) -> Mapping[str, Tensor]:
        """The flow-matching loss of one batch, and what naming the objects of its tokens adds to it."""
        return self.losses_of_share(step, Share())

    def losses_of_share(self, step: int, share: Share) -> Mapping[str, Tensor]:
        """The same of some rows of a step's batch."""
        generator = step_generator(self.run.train.seed, step)
        chosen, text = self.batch(step, generator)
        objective = self._objective
        times = shift_times(objective.time_distribution.draw(len(chosen), generator), objective.shift)
        noise = draw_noise(self.latents[chosen].float(), generator)
        rows, device = share.rows(len(chosen)), next(self.model.parameters()).device
        embeddings, mask = (each[rows].to(device) for each in text)
        read: list[Tensor] = []

        def velocity(x: Tensor, times: Tensor) -> Tensor:
            out = self._network(x, times, embeddings, mask)
            if self.run.layout_weight:
                out, logits = out
                read.append(logits)
            predicted: Tensor = out
            return predicted

        latents = self.latents[chosen[rows]].float().to(device)
        losses = objective.loss_at(velocity, latents, noise[rows].to(device), times[rows].to(device))
        loss = losses.mean()
        if not read:
            return {"loss": loss}
        classes = self._objects[chosen].to(device)
        layout = layout_loss(read[0], classes[rows], objects_share(classes))
        return {"loss": loss + self.run.layout_weight * layout, "velocity": loss, "layout": layout}

    def batch(self, step: int, generator: torch.Generator) -> tuple[Int[Tensor, " b"], TextEmbedding]:
        """Numbers of the scenes of step `step`, and their captions; some are dropped for guidance."""
        count, seed = self.run.train.batch_size, self.run.train.seed
        per_epoch = len(self._shown) // count
        order = torch.randperm(len(self._shown), generator=step_generator(seed, step // per_epoch, "order"))
        chosen = self._shown[order[step % per_epoch * count :][:count]]
        phrasing = torch.randint(self.captions.lengths.shape[1], (count,), generator=generator)
        dropped = prompt_dropout(count, self.run.prompt_dropout, generator)
        rows = [
            self._empty if empty else self.captions.row(scene, which)
            for scene, which, empty in zip(chosen.tolist(), phrasing.tolist(), dropped.tolist(), strict=True)
        ]
        mask = [torch.ones(len(row), dtype=torch.bool) for row in rows]
        embeddings = pad_sequence([row.float() for row in rows], batch_first=True)
        return chosen, TextEmbedding(embeddings, pad_sequence(mask, batch_first=True))

    @torch.no_grad()
    def sample(self, model: nn.Module, step: int) -> Float[Tensor, "b 3 H W"]:
        """The recipe's prompts, always from the same noise."""
        sample = self.run.sample
        prompts = list(sample.prompts)
        text, mask = self.text_encoder.encode([""] * len(prompts) + prompts)
        noise = seeded_noise(self.latents.shape[1:], range(len(prompts)), text.device)
        transformer = without_head(model)

        def pair(x: Tensor, times: Tensor) -> Tensor:
            velocity: Tensor = transformer(x.float(), times.float(), text, mask)
            return velocity

        velocity = guided(pair, sample.guidance_scale)
        latents = noise
        for state in euler(velocity, noise, flow_times(sample.num_inference_steps, self.run.times.shift)):
            latents = state.latents
        return self.autoencoder.decode(latents.float())


def train_transformer(run: TransformerRun, folder: Path, *, resume: bool, device: torch.device) -> Path:
    """Fill the pool, train on it, and write the whole model (with its autoencoder) to `folder`/model.

    Raises:
        ConfigError: the transformer does not fit the autoencoder or the text encoder, or a batch the pool.
        CheckpointError: the transformer to start from has another shape.
    """
    autoencoder = load_autoencoder(run.autoencoder).to(device).eval().requires_grad_(False)
    text_encoder = load_text_encoder(run.text_encoder).to(device)
    _check_fit(run, autoencoder, text_encoder)
    torch.manual_seed(int(torch.randint(2**31, (), generator=step_generator(run.train.seed, 0, "weights"))))
    model = Transformer(run.model).to(device)
    if run.start is not None:
        load_strict(model, load_transformer(run.start).state_dict(), run.start)
    latents = pool_latents(run, folder / "pool" / "latents", autoencoder)
    captions = pool_captions(run, folder / "pool" / "captions", text_encoder)
    task = GenerationTask(run, model, autoencoder, text_encoder, latents, captions)
    outcome = train(task, run.train, folder, resume=resume)
    average = without_head(outcome.average)
    return save_whole(folder / "model", average, autoencoder, text_encoder, run, outcome.step)


def without_head(trained: nn.Module) -> Transformer:
    """The transformer of what was trained, with or without the head that names objects."""
    transformer = trained.transformer if isinstance(trained, LayoutReader) else trained
    assert isinstance(transformer, Transformer)
    return transformer


def save_whole(
    folder: Path,
    transformer: Transformer,
    autoencoder: Autoencoder,
    text_encoder: OfflineEncoder,
    run: TransformerRun,
    step: int,
) -> Path:
    """Write transformer, text encoder and autoencoder as one model folder that `Pipeline` reads."""
    text, files = text_component(text_encoder)
    components = {
        "transformer": Component("Transformer", run.model, transformer.state_dict()),
        "autoencoder": Component("Autoencoder", autoencoder.config, autoencoder.state_dict()),
        "text_encoder": text,
    }
    about = {
        "sampling": {
            "shift": run.times.shift,
            "guidance_scale": run.sample.guidance_scale,
            "num_inference_steps": run.sample.num_inference_steps,
            "size": run.scenes.size,
        },
        "steps_trained": step,
        "recipe": run.model_dump(mode="json", include=DESCRIBED),
    }
    save_model(folder, components, about=about, extra_files=files, dtype="fp16")
    return folder


def _check_fit(run: TransformerRun, autoencoder: Autoencoder, text_encoder: OfflineEncoder) -> None:
    channels, pooled = autoencoder.config.latent_channels, -(-run.pool // SHARD) * SHARD
    if run.model.latent_channels != channels:
        raise ConfigError(
            f"model.latent_channels={run.model.latent_channels}, but {run.autoencoder} makes {channels}. "
            f"Use model.latent_channels={channels}."
        )
    if run.model.text_width != text_encoder.width:
        raise ConfigError(
            f"model.text_width={run.model.text_width}, but {run.text_encoder} gives {text_encoder.width}. "
            f"Use model.text_width={text_encoder.width}."
        )
    if run.train.batch_size > pooled:
        raise ConfigError(
            f"train.batch_size={run.train.batch_size} is more than the {pooled} scenes of the pool. "
            f"Use train.batch_size={pooled} or less, or pool={run.train.batch_size}."
        )


def pool_latents(run: TransformerRun, folder: Path, autoencoder: Autoencoder) -> Float[Tensor, "n c h w"]:
    """Latents (bfloat16) of `run.pool` training scenes, computed once and kept in shards below `folder`."""
    scenes = EmojiScenes(run.scenes, run.train.seed)
    written = describe_model(run.autoencoder)[0]["autoencoder"].written
    cache = ShardCache(folder, {"scenes": scenes.description(), "autoencoder": written.sha256})

    def shard(index: int) -> dict[str, Tensor]:
        drawn = [scenes.scene(number) for number in _numbers(index)]
        parts = [drawn[start : start + ENCODED_AT_ONCE] for start in range(0, SHARD, ENCODED_AT_ONCE)]
        return {"latents": torch.cat([_latents(autoencoder, scenes, part) for part in parts])}

    cache.fill(_shards(run), shard)
    return cache.load(_shards(run))["latents"]


def pool_captions(run: TransformerRun, folder: Path, text_encoder: OfflineEncoder) -> CaptionPool:
    """Embeddings (bfloat16) of the captions of the same scenes, computed once and kept as the latents are."""
    scenes = EmojiScenes(run.scenes, run.train.seed)
    key = {
        "scenes": scenes.description(),
        "captions": run.captions_per_scene,
        "text_encoder": text_fingerprint(run.text_encoder),
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


def _shards(run: TransformerRun) -> int:
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
def _embedded(text_encoder: OfflineEncoder, captions: list[str]) -> list[Float[Tensor, "m c"]]:
    """Each caption's vectors; captions of like length are encoded together."""
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
