"""Training a transformer, and the text encoder with it, on scenes that were drawn and encoded once."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lineardit.autoencoder.model import Autoencoder
from lineardit.config.runs import TransformerRun
from lineardit.data.cache import ShardCache
from lineardit.data.emoji_scenes import EmojiScenes
from lineardit.data.scene import Scene
from lineardit.diffusion.guidance import guided, prompt_dropout
from lineardit.diffusion.objective import FlowMatching
from lineardit.diffusion.randomness import seeded_noise
from lineardit.diffusion.samplers import euler
from lineardit.diffusion.times import LogitNormal, flow_times
from lineardit.errors import ConfigError
from lineardit.interop.native import Component, describe_model, load_autoencoder, save_model
from lineardit.interop.scene_text import load_scene_text_encoder, scene_text_component
from lineardit.text.scene_encoder import SceneTextEncoder
from lineardit.training.loop import step_generator, train
from lineardit.transformer.model import Transformer

SHARD = 1024
"""Scenes per shard of the pool."""
ENCODED_AT_ONCE = 64
NO_TOKEN = -1


class PromptedTransformer(nn.Module):
    """The transformer and the text encoder whose words it follows; both are trained, averaged and saved."""

    def __init__(self, transformer: Transformer, text_encoder: SceneTextEncoder) -> None:
        super().__init__()
        self.transformer, self.text_encoder = transformer, text_encoder

    def forward(
        self,
        latents: Float[Tensor, "b c h w"],
        times: Float[Tensor, " b"],
        tokens: Int[Tensor, "b m"],
        mask: Bool[Tensor, "b m"],
    ) -> Float[Tensor, "b c h w"]:
        """The velocity, given the captions' word pieces."""
        velocity: Tensor = self.transformer(latents, times, self.text_encoder(tokens, mask), mask)
        return velocity


class GenerationTask:
    """Flow matching on the pool's latents; each epoch sees every scene once, in a new order and phrasing."""

    def __init__(
        self,
        run: TransformerRun,
        model: PromptedTransformer,
        autoencoder: Autoencoder,
        pool: Mapping[str, Tensor],
    ) -> None:
        self.run, self.autoencoder, self.pool = run, autoencoder, pool
        self.model: nn.Module = model
        self._velocity = torch.compile(model) if run.train.compile else model
        times = run.times
        self._objective = FlowMatching(LogitNormal(times.mean, times.std), times.shift)
        (self._empty,) = model.text_encoder.tokens([""])

    def losses(self, step: int) -> Mapping[str, Tensor]:
        """The flow-matching loss of one batch."""
        generator = step_generator(self.run.train.seed, step)
        latents, tokens = self.batch(step, generator)
        mask = tokens != NO_TOKEN
        device = next(self.model.parameters()).device
        tokens, mask = tokens.clamp_min(0).to(device), mask.to(device)

        def velocity(x: Tensor, times: Tensor) -> Tensor:
            out: Tensor = self._velocity(x, times, tokens, mask)
            return out

        return {"loss": self._objective.loss(velocity, latents.float().to(device), generator).mean()}

    def batch(
        self, step: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "b c h w"], Int[Tensor, "b m"]]:
        """Latents and word pieces of step `step`; some captions are dropped for guidance."""
        count, seed = self.run.train.batch_size, self.run.train.seed
        per_epoch = len(self.pool["latents"]) // count
        order = torch.randperm(
            len(self.pool["latents"]), generator=step_generator(seed, step // per_epoch, "order")
        )
        chosen = order[step % per_epoch * count :][:count]
        phrasing = torch.randint(self.pool["tokens"].shape[1], (count,), generator=generator)
        tokens = self.pool["tokens"][chosen, phrasing].long()
        dropped = prompt_dropout(count, self.run.prompt_dropout, generator)
        empty = torch.full_like(tokens[0], NO_TOKEN)
        empty[: len(self._empty)] = torch.tensor(self._empty)
        tokens = torch.where(dropped[:, None], empty, tokens)
        longest = int((tokens != NO_TOKEN).sum(-1).max())
        return self.pool["latents"][chosen], tokens[:, :longest]

    @torch.no_grad()
    def sample(self, model: nn.Module, step: int) -> Float[Tensor, "b 3 H W"]:
        """The recipe's prompts, always from the same noise."""
        assert isinstance(model, PromptedTransformer)
        sample = self.run.sample
        prompts = list(sample.prompts)
        text, mask = model.text_encoder.encode([""] * len(prompts) + prompts)
        noise = seeded_noise(self.pool["latents"].shape[1:], range(len(prompts)), text.device)

        def pair(x: Tensor, times: Tensor) -> Tensor:
            velocity: Tensor = model.transformer(x.float(), times.float(), text, mask)
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
    """
    autoencoder = load_autoencoder(run.autoencoder).to(device).eval().requires_grad_(False)
    text_encoder = load_scene_text_encoder(run.text_encoder).to(device).train().requires_grad_(True)
    _check_fit(run, autoencoder, text_encoder)
    torch.manual_seed(int(torch.randint(2**31, (), generator=step_generator(run.train.seed, 0, "weights"))))
    model = PromptedTransformer(Transformer(run.model).to(device), text_encoder)
    pool = fill_pool(run, folder / "pool", autoencoder, text_encoder, device)
    outcome = train(GenerationTask(run, model, autoencoder, pool), run.train, folder, resume=resume)
    assert isinstance(outcome.average, PromptedTransformer)
    return save_prompted(folder / "model", outcome.average, autoencoder, run, outcome.step)


def save_prompted(
    folder: Path, model: PromptedTransformer, autoencoder: Autoencoder, run: TransformerRun, step: int
) -> Path:
    """Write transformer, text encoder and autoencoder as one model folder that `Pipeline` reads."""
    text, files = scene_text_component(model.text_encoder)
    components = {
        "transformer": Component("Transformer", run.model, model.transformer.state_dict()),
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
        "recipe": run.model_dump(mode="json", include={"scenes", "times", "prompt_dropout", "pool", "train"}),
    }
    save_model(folder, components, about=about, extra_files=files, dtype="bf16")
    return folder


def pool_key(run: TransformerRun, text_encoder: SceneTextEncoder) -> dict[str, Any]:
    """All that a pool is computed from: other scenes, weights or words need another pool."""
    return {
        "scenes": EmojiScenes(run.scenes, run.train.seed).description(),
        "captions": run.captions_per_scene,
        "autoencoder": describe_model(run.autoencoder)[0]["autoencoder"].written.sha256,
        "vocabulary": hashlib.sha256(text_encoder.tokenizer.to_str().encode()).hexdigest(),
        "max_tokens": text_encoder.config.max_tokens,
    }


def _check_fit(run: TransformerRun, autoencoder: Autoencoder, text_encoder: SceneTextEncoder) -> None:
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


def fill_pool(
    run: TransformerRun,
    folder: Path,
    autoencoder: Autoencoder,
    text_encoder: SceneTextEncoder,
    device: torch.device,
) -> dict[str, Tensor]:
    """Latents (bfloat16) and word pieces of `run.pool` training scenes, computed once and kept in shards."""
    scenes = EmojiScenes(run.scenes, run.train.seed)
    cache = ShardCache(folder, pool_key(run, text_encoder))

    def shard(index: int) -> dict[str, Tensor]:
        indices = range(index * SHARD, (index + 1) * SHARD)
        drawn = [scenes.scene(i) for i in indices]
        latents = [
            _encode(autoencoder, scenes, drawn[start : start + ENCODED_AT_ONCE], device)
            for start in range(0, SHARD, ENCODED_AT_ONCE)
        ]
        captions = [
            caption
            for i, scene in zip(indices, drawn, strict=True)
            for caption in scenes.captions(scene, i, run.captions_per_scene)
        ]
        tokens = torch.full((len(captions), text_encoder.config.max_tokens), NO_TOKEN, dtype=torch.int16)
        for row, pieces in zip(tokens, text_encoder.tokens(captions), strict=True):
            row[: len(pieces)] = torch.tensor(pieces, dtype=torch.int16)
        return {"latents": torch.cat(latents), "tokens": tokens.reshape(SHARD, run.captions_per_scene, -1)}

    shards = -(-run.pool // SHARD)
    cache.fill(shards, shard)
    pool = cache.load(shards)
    longest = int((pool["tokens"] != NO_TOKEN).sum(-1).max())
    return {"latents": pool["latents"], "tokens": pool["tokens"][..., :longest]}


@torch.no_grad()
def _encode(
    autoencoder: Autoencoder, scenes: EmojiScenes, drawn: list[Scene], device: torch.device
) -> Tensor:
    images = scenes.draw(drawn, device=device).contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16):
        return autoencoder.encode(images).bfloat16().cpu()
