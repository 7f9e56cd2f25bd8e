"""Training a transformer on scenes and captions that were drawn and encoded once."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from lineardit.autoencoder.model import Autoencoder
from lineardit.config.runs import ArticleTransformerRun, PoolRun, TransformerRun
from lineardit.data.emoji_scenes import EmojiScenes
from lineardit.diffusion.discrete import ddim, leading_times
from lineardit.diffusion.guidance import guided, prompt_dropout
from lineardit.diffusion.objective import Denoising, Objective, draw_noise, flow_matching
from lineardit.diffusion.paths import Velocity
from lineardit.diffusion.predictions import ddpm_path, ddpm_prediction
from lineardit.diffusion.randomness import seeded_noise
from lineardit.diffusion.samplers import euler
from lineardit.diffusion.states import State
from lineardit.diffusion.times import flow_times
from lineardit.errors import ConfigError, check_multiple
from lineardit.interop.assembly import read_published_text
from lineardit.interop.bundled import folder_named
from lineardit.interop.export import LiveText
from lineardit.interop.native import (
    Component,
    autoencoder_component,
    load_autoencoder,
    load_strict,
    only,
    save_model,
)
from lineardit.interop.published_text import PUBLISHED_TEXT, published_text
from lineardit.interop.text import load_text_encoder, text_component
from lineardit.text.embedding import TextEmbedding, TextEncoder
from lineardit.text.encoder import PublishedEncoder
from lineardit.text.offline import OfflineEncoder
from lineardit.training.finetune import prompt_pairs
from lineardit.training.layout import LayoutReader, layout_loss, objects_share, token_objects
from lineardit.training.loop import step_generator, train
from lineardit.training.pool import CaptionPool, pool_captions, pool_latents, pooled_scenes
from lineardit.training.shares import Share
from lineardit.training.waiting import waiting
from lineardit.transformer.denoiser import Denoiser, denoiser_of

DESCRIBED = {"scenes", "times", "prompt_dropout", "pool", "pair_repeats", "layout_weight", "train"}
"""What a model's folder says of its recipe."""


class Course(NamedTuple):
    """What a network learns along its path, and how the samples of its run are drawn."""

    predicted: str
    """What the network says; its loss is called so where there is another beside it."""
    objective: Objective
    states: Callable[[Velocity, Tensor], Iterator[State]]
    """From noise to latents."""


def course_of(run: PoolRun, tokens: int) -> Course:
    """Flow matching and Euler's steps, or denoising along a DDPM path and DDIM; pictures have `tokens`."""
    steps = run.sample.num_inference_steps
    if isinstance(run, ArticleTransformerRun):
        prediction, path = ddpm_prediction(run.model), ddpm_path(run.model)
        return Course(
            run.model.prediction_type,
            Denoising(prediction),
            lambda model, noise: ddim(model, noise, leading_times(steps, path), prediction),
        )
    assert isinstance(run, TransformerRun)
    times = flow_times(steps, run.times.shift)
    return Course(
        "velocity", flow_matching(run.times, tokens), lambda model, noise: euler(model, noise, times)
    )


class GenerationTask:
    """Denoising the pool's latents; each epoch sees every scene once, in a new order and phrasing."""

    def __init__(
        self,
        run: PoolRun,
        model: Denoiser,
        autoencoder: Autoencoder,
        text_encoder: TextEncoder,
        latents: Float[Tensor, "scenes c h w"],
        captions: CaptionPool,
    ) -> None:
        self.run, self.autoencoder, self.text_encoder = run, autoencoder, text_encoder
        self.latents, self.captions = latents, captions
        scenes = EmojiScenes(run.scenes, run.train.seed)
        self._data = scenes.digest
        drawn = [scenes.scene(number) for number in range(len(latents))]
        self.model: nn.Module = model
        if run.layout_weight:
            self.model = LayoutReader(model, len(scenes.names))
            patch = model.config.patch_size
            height, width = (side // patch for side in latents.shape[-2:])
            self._objects = token_objects(drawn, scenes.names, height, width)
        pairs = torch.tensor([number for number, scene in enumerate(drawn) if scene.kind == "pair"])
        self._shown = torch.cat([torch.arange(len(latents)), pairs.repeat(run.pair_repeats - 1)]).long()
        self._network = torch.compile(self.model) if run.train.compile else self.model
        tokens = latents.shape[-2] * latents.shape[-1] // model.config.patch_size**2
        self._course = course_of(run, tokens)
        empty = text_encoder.encode_negative([""])
        self._empty = empty.embeddings[0][empty.mask[0]].cpu()

    def losses(self, step: int) -> Mapping[str, Tensor]:
        """The loss of one batch, and what naming the objects of its tokens adds to it."""
        return self.losses_of_share(step, Share())

    def losses_of_share(self, step: int, share: Share) -> Mapping[str, Tensor]:
        """The same of some rows of a step's batch."""
        generator = step_generator(self.run.train.seed, step)
        with waiting():
            chosen, text = self.batch(step, generator)
        objective = self._course.objective
        times = objective.draw_times(len(chosen), generator)
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
        return {
            "loss": loss + self.run.layout_weight * layout,
            self._course.predicted: loss,
            "layout": layout,
        }

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

    def position(self, step: int) -> Mapping[str, object]:
        """Where in the pool a step begins, and in which pool."""
        return {
            "step": step,
            "batch_size": self.run.train.batch_size,
            "counts": [len(self.latents)],
            "pair_repeats": self.run.pair_repeats,
            "phrasings": self.captions.lengths.shape[1],
            "data": self._data,
        }

    @torch.no_grad()
    def sample(self, model: nn.Module, step: int) -> Float[Tensor, "b 3 H W"]:
        """The recipe's prompts, always from the same noise."""
        sample = self.run.sample
        device = next(model.parameters()).device
        text, mask = (each.to(device) for each in prompt_pairs(self.text_encoder, sample.prompts))
        noise = seeded_noise(self.latents.shape[1:], range(len(sample.prompts)), device)
        transformer = without_head(model)

        def pair(x: Tensor, times: Tensor) -> Tensor:
            predicted: Tensor = transformer(x, times, text, mask)
            return predicted

        latents = noise
        for state in self._course.states(guided(pair, sample.guidance_scale), noise):
            latents = state.latents
        return self.autoencoder.decode(latents.float())


def train_transformer(run: PoolRun, folder: Path, *, resume: bool, device: torch.device) -> Path:
    """Fill the pool, train on it, and write the whole model (with its autoencoder) to `folder`/model.

    Raises:
        ConfigError: the transformer does not fit the autoencoder or the text encoder, or a batch the pool.
        ShapeError: scenes are no whole number of tokens wide.
        CheckpointError: the transformer to start from has another shape.
    """
    autoencoder = load_autoencoder(folder_named(run.autoencoder)).to(device).eval().requires_grad_(False)
    text_encoder = text_encoder_in(folder_named(run.text_encoder), device)
    _check_fit(run, autoencoder, text_encoder)
    torch.manual_seed(int(torch.randint(2**31, (), generator=step_generator(run.train.seed, 0, "weights"))))
    model = denoiser_of(run.model).to(device)
    if run.start is not None:
        load_strict(model, only(folder_named(run.start), "transformer").tensors, run.start)
    latents = pool_latents(run, folder / "pool" / "latents", autoencoder)
    captions = pool_captions(run, folder / "pool" / "captions", text_encoder)
    task = GenerationTask(run, model, autoencoder, text_encoder, latents, captions)
    outcome = train(task, run.train, folder, resume=resume)
    average = without_head(outcome.average)
    return save_whole(folder / "model", average, autoencoder, text_encoder, run, outcome.step)


def text_encoder_in(folder: Path, device: torch.device) -> TextEncoder:
    """The text encoder of a folder: one of ours, or one that transformers wrote, such as T5.

    Raises:
        CheckpointError: there is none, or it is damaged.
        MissingExtraError: transformers is needed and not installed.
    """
    text = published_text(folder)
    return load_text_encoder(folder).to(device) if text is None else read_published_text(text, device)


def without_head(trained: nn.Module) -> Denoiser:
    """The transformer of what was trained, with or without the head that names objects."""
    transformer = trained.transformer if isinstance(trained, LayoutReader) else trained
    assert isinstance(transformer, Denoiser)
    return transformer


def save_whole(
    folder: Path,
    transformer: Denoiser,
    autoencoder: Autoencoder,
    text_encoder: TextEncoder,
    run: PoolRun,
    step: int,
) -> Path:
    """Write transformer, text encoder and autoencoder as one model folder that `Pipeline` reads."""
    components = {
        "transformer": Component(type(transformer).__name__, run.model, transformer.state_dict()),
        "autoencoder": autoencoder_component(autoencoder),
    }
    path = {"shift": run.times.shift} if isinstance(run, TransformerRun) else {"sampler": "ddim"}
    about: dict[str, Any] = {
        "sampling": {
            **path,
            "guidance_scale": run.sample.guidance_scale,
            "num_inference_steps": run.sample.num_inference_steps,
            "size": run.scenes.size,
        },
        "steps_trained": step,
        "recipe": run.model_dump(mode="json", include=DESCRIBED),
    }
    if isinstance(text_encoder, OfflineEncoder):
        components["text_encoder"], files = text_component(text_encoder)
        save_model(folder, components, about=about, extra_files=files, dtype="fp16")
        return folder
    assert isinstance(text_encoder, PublishedEncoder)
    text = LiveText.of(text_encoder)
    about[PUBLISHED_TEXT] = text.class_name
    save_model(folder, components, about=about, dtype="fp16", fill=text.write_below)
    return folder


def _check_fit(run: PoolRun, autoencoder: Autoencoder, text_encoder: TextEncoder) -> None:
    channels, pooled = autoencoder.config.latent_channels, pooled_scenes(run)
    model = run.model
    if model.latent_channels != channels:
        raise ConfigError(
            f"model.latent_channels={model.latent_channels}, but {run.autoencoder} makes {channels}. "
            f"Use model.latent_channels={channels}."
        )
    if model.text_width != text_encoder.width:
        raise ConfigError(
            f"model.text_width={model.text_width}, but {run.text_encoder} gives {text_encoder.width}. "
            f"Use model.text_width={text_encoder.width}."
        )
    unit = autoencoder.config.stride * model.patch_size
    check_multiple("scenes.size", run.scenes.size, unit, f"{unit}, the pixels per token")
    if run.train.batch_size > pooled:
        raise ConfigError(
            f"train.batch_size={run.train.batch_size} is more than the {pooled} scenes of the pool. "
            f"Use train.batch_size={pooled} or less, or pool={run.train.batch_size}."
        )
