"""Fine-tuning: the transformer of a model that is there goes on learning, from pictures encoded before."""

import logging
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from lineardit.autoencoder.model import Autoencoder
from lineardit.config.finetune import FinetuneRun
from lineardit.data.batches import BucketBatches
from lineardit.data.buckets import Bucket
from lineardit.data.prepared import PreparedData
from lineardit.diffusion.guidance import guided_apart, prompt_dropout
from lineardit.diffusion.objective import flow_matching
from lineardit.diffusion.paths import Velocity
from lineardit.diffusion.randomness import hashed_seed, seeded_noise
from lineardit.diffusion.samplers import euler
from lineardit.diffusion.times import flow_times, shift_at, shift_times
from lineardit.errors import ConfigError
from lineardit.interop.assembly import assemble_autoencoder, assemble_text_encoder, assemble_transformer
from lineardit.interop.bundled import bundled_folder
from lineardit.interop.export import export
from lineardit.interop.place import Network, Place
from lineardit.interop.places import open_place
from lineardit.interop.stored import LazyTensors, stored_of
from lineardit.text.embedding import TextEmbedding, TextEncoder
from lineardit.training.adapter import Adapter, fresh_adapter, save_adapter
from lineardit.training.loop import step_generator, train
from lineardit.training.prefetch import Prefetch
from lineardit.training.prior import Network as Velocities
from lineardit.training.prior import Prior, draw_prior
from lineardit.training.probe import EMPTY, check_same, probe
from lineardit.training.shares import Share
from lineardit.transformer.model import Transformer

SHOWN = 4
"""Captions that are drawn during training where the recipe gives no prompts."""
DESCRIBED = {"base", "method", "times", "prompt_dropout", "train"}
"""What the finished model's folder says of its recipe."""
HALF_MOST = 65504.0
"""Largest number of float16."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Base:
    """The model that a run starts from, in float32, with nothing but the transformer left to learn."""

    place: Place
    transformer: Transformer
    autoencoder: Autoencoder
    text_encoder: TextEncoder

    @property
    def shift(self) -> float:
        """Flow shift that it is sampled with."""
        return float(self.place.sampling.get("shift", 1.0))

    @property
    def guidance_scale(self) -> float:
        """Guidance that it is sampled with."""
        return float(self.place.sampling.get("guidance_scale", 4.5))

    @property
    def num_inference_steps(self) -> int:
        """Steps that it is sampled with."""
        return int(self.place.sampling.get("num_inference_steps", 20))


class Batch(NamedTuple):
    """What is learned from in one step, or a share of it."""

    bucket: int
    """Number of the bucket that all of it is of."""
    latents: Float[Tensor, "b c h w"]
    noise: Float[Tensor, "b c h w"]
    times: Float[Tensor, " b"]
    text: Float[Tensor, "b m t"]
    mask: Bool[Tensor, "b m"]

    def to(self, device: torch.device) -> "Batch":
        """The same on a device."""
        return Batch(self.bucket, *(each.to(device, non_blocking=True) for each in self[1:]))


class FinetuneTask:
    """Flow matching on prepared pictures, one bucket per step.

    Pictures, captions, times and noise of a step are drawn for all processes together, from (seed, step)
    alone; each takes its rows. Neither an interruption nor the number of processes changes what is learned.
    """

    def __init__(
        self,
        run: FinetuneRun,
        model: nn.Module,
        base: Base,
        data: PreparedData,
        prior: Prior | None = None,
        before: Velocities | None = None,
    ) -> None:
        """`model` is called as a Transformer is; its trainable parameters are what learns.

        The loss of a `prior`, times its weight, is added to that of the pictures; `before` is the model as it
        was, where the prior keeps its velocities.
        """
        self.run, self.model, self.data, self.prior, self._before = run, model, data, prior, before
        self.autoencoder, self._base = base.autoencoder, base
        self.batches = BucketBatches(data.counts, run.train.batch_size, run.train.seed)
        self._network = torch.compile(model) if run.train.compile else model
        times, patch = run.times.resolved(base.shift), base.transformer.config.patch_size
        self._objectives = [
            flow_matching(times, tokens_of(bucket, data.stride, patch)) for bucket in data.buckets
        ]
        self._empty = data.probe()[EMPTY]
        self._prompts = run.sample.prompts or first_captions(data, SHOWN)
        self._text = prompt_pairs(base.text_encoder, self._prompts)
        self._prefetch: Prefetch[Share, Batch] = Prefetch(self.batch)

    def losses(self, step: int) -> Mapping[str, Tensor]:
        """The flow-matching loss of a step."""
        return self.losses_of_share(step, Share())

    def losses_of_share(self, step: int, share: Share) -> Mapping[str, Tensor]:
        """The flow-matching loss of some rows of a step's batch."""
        batch = self._prefetch(step, share).to(next(self.model.parameters()).device)

        def velocity(x: Tensor, times: Tensor) -> Tensor:
            predicted: Tensor = self._network(x, times, batch.text, batch.mask)
            return predicted

        objective = self._objectives[batch.bucket]
        own = objective.loss_at(velocity, batch.latents, batch.noise, batch.times).mean()
        if self.prior is None:
            return {"loss": own}
        kept = self.prior.loss(self._network, step, self.run.train.batch_size, share, self._before)
        return {"loss": own + self.prior.config.weight * kept, "pictures": own, "prior": kept}

    def batch(self, step: int, share: Share) -> Batch:
        """The rows of a share of what step `step` learns from."""
        count, seed = self.run.train.batch_size, self.run.train.seed
        generator = step_generator(seed, step)
        dropped = prompt_dropout(count, self.run.prompt_dropout, generator)
        chance = torch.rand(count, generator=generator, dtype=torch.float64)
        chosen = self.batches.batch(step)
        objective = self._objectives[chosen.bucket]
        times = shift_times(objective.time_distribution.draw(count, generator), objective.shift)
        shape = (self.data.latent_channels, *self._latent_sides(self.data.buckets[chosen.bucket]))
        noise = torch.randn(count, *shape, generator=generator)
        rows = share.rows(count)
        places = range(count)[rows]
        vectors = [
            self._empty if dropped[place] else self._caption(chosen.samples[place], float(chance[place]))
            for place in places
        ]
        text = pad_sequence([each.float() for each in vectors], batch_first=True)
        mask = pad_sequence([torch.ones(len(each), dtype=torch.bool) for each in vectors], batch_first=True)
        latents = torch.stack([self.data.latents(chosen.samples[place]).float() for place in places])
        return Batch(chosen.bucket, latents, noise[rows], times[rows], text, mask)

    def position(self, step: int) -> Mapping[str, object]:
        """Where in the data a step begins, and in which data."""
        return {**self.batches.position(step), "data": self.data.digest}

    @torch.no_grad()
    def sample(self, model: nn.Module, step: int) -> Float[Tensor, "b 3 H W"]:
        """The recipe's prompts, always from the same noise, in the size of the fullest bucket."""
        sample, base = self.run.sample, self._base
        device = next(model.parameters()).device
        guidance = base.guidance_scale if sample.guidance_scale is None else sample.guidance_scale
        steps = sample.num_inference_steps or base.num_inference_steps
        fullest = self.data.counts.index(max(self.data.counts))
        shape = (self.data.latent_channels, *self._latent_sides(self.data.buckets[fullest]))
        times = flow_times(steps, self._objectives[fullest].shift)
        images = []
        for number in range(len(self._prompts)):
            without, with_prompt = (
                _branch(model, self._text.embeddings[[row]].to(device), self._text.mask[[row]].to(device))
                for row in (number, number + len(self._prompts))
            )
            for seed in sample.seeds:
                noise = seeded_noise(shape, [hashed_seed("sample", seed, number)], device)
                latents = noise
                velocity = guided_apart(with_prompt, without, guidance)
                for state in euler(velocity, noise, times):
                    latents = state.latents
                images.append(self.autoencoder.decode(latents.float()))
        return torch.cat(images)

    def _caption(self, number: int, chance: float) -> Float[Tensor, "m t"]:
        """The vectors of one caption of a picture; `chance` in [0, 1) chooses among them by their weights."""
        weights = torch.tensor(
            [caption.weight for caption in self.data.sample(number).captions], dtype=torch.float64
        )
        ends = weights.cumsum(0)
        which = int(torch.searchsorted(ends, chance * ends[-1], right=True))
        return self.data.vectors(number, min(which, len(weights) - 1))

    def _latent_sides(self, bucket: Bucket) -> tuple[int, int]:
        return bucket.height // self.data.stride, bucket.width // self.data.stride


def train_finetune(run: FinetuneRun, folder: Path, *, resume: bool, device: torch.device) -> Path:
    """Train on prepared pictures, and write the whole model, or a LoRA for it, to `folder`/model.

    Raises:
        ConfigError: the data was prepared for another model, or the model cannot learn this way.
        CheckpointError: the model or the data is damaged.
    """
    data = PreparedData(run.data)
    base = open_base(run, device)
    check_fit(run, base, data)
    prior = _prior(run, folder, base, data)
    keeps = run.prior is not None and run.prior.target == "velocity"
    if run.method == "full":
        before = deepcopy(base.transformer).requires_grad_(False) if keeps else None
        task = FinetuneTask(run, base.transformer, base, data, prior, before)
        outcome = train(task, run.train, folder, resume=resume)
        assert isinstance(outcome.average, Transformer)
        return save_finetuned(folder / "model", outcome.average, base, data, run, outcome.step)
    adapter = fresh_adapter(run, base.transformer)
    task = FinetuneTask(run, adapter, base, data, prior, adapter.before if keeps else None)
    outcome = train(task, run.train, folder, resume=resume)
    assert isinstance(outcome.average, Adapter)
    about = {"pictures": len(data), "steps_trained": outcome.step}
    return save_adapter(folder / "model", outcome.average, run, about)


def _prior(run: FinetuneRun, folder: Path, base: Base, data: PreparedData) -> Prior | None:
    """Pictures of the size of the fullest bucket that the base draws before it learns."""
    if run.prior is None:
        return None
    bucket = data.buckets[data.counts.index(max(data.counts))]
    tokens = tokens_of(bucket, data.stride, base.transformer.config.patch_size)
    return draw_prior(
        run.prior,
        folder / "prior",
        base.transformer,
        base.text_encoder,
        flow_matching(run.times.resolved(base.shift), tokens),
        shape=(data.latent_channels, bucket.height // data.stride, bucket.width // data.stride),
        num_inference_steps=base.num_inference_steps,
        guidance_scale=base.guidance_scale,
        seed=run.train.seed,
        device=next(base.transformer.parameters()).device,
        origin={"base": run.base or "bundled", "data": data.digest},
    )


def open_base(run: FinetuneRun, device: torch.device) -> Base:
    """Load the model that a run starts from.

    Raises:
        CheckpointError: there is none, or it is damaged or not whole.
        ConfigError: it was distilled, and flow matching would undo that.
    """
    place = open_place(bundled_folder() if run.base is None else run.base)
    if place.missing:
        raise ConfigError(
            f"base={run.base}: it holds no {', no '.join(place.missing)}. Give the folder of a whole model."
        )
    transformer = assemble_transformer(place, "fp32").to(device)
    if transformer.config.guidance_embedding:
        raise ConfigError(
            f"base={run.base} was distilled to few steps, which fine-tuning would undo. "
            "Fine-tune the model that it was distilled from."
        )
    autoencoder = assemble_autoencoder(place, "fp32").to(device).requires_grad_(False)
    return Base(place, transformer, autoencoder, assemble_text_encoder(place, device))


def check_fit(run: FinetuneRun, base: Base, data: PreparedData) -> None:
    """Find out before any step whether the pictures were prepared for the model.

    Raises:
        ConfigError: they were prepared for another one, or their sizes are no whole tokens of this one.
    """
    name = run.base or "the bundled model"
    config, autoencoder = base.transformer.config, base.autoencoder.config
    facts = (data.latent_channels, data.stride, data.text_width)
    wanted = (config.latent_channels, autoencoder.stride, config.text_width)
    if facts != wanted:
        raise ConfigError(
            f"{run.data} was prepared for another model than {name}: it has {facts[0]} latent channels, "
            f"{facts[1]} pixels per latent and text of width {facts[2]}; the model {wanted[0]}, {wanted[1]} "
            f"and {wanted[2]}. Prepare the pictures again with its --model."
        )
    check_same(probe(base.autoencoder, base.text_encoder), data.probe(), name, str(run.data))
    pixels = autoencoder.stride * config.patch_size
    for bucket in data.buckets:
        if bucket.height % pixels or bucket.width % pixels:
            raise ConfigError(
                f"{run.data} has pictures of {bucket.width} x {bucket.height} pixels, which are no whole "
                f"tokens of {pixels} pixels. Prepare them again with the transformer's model as --model."
            )


def save_finetuned(
    folder: Path, transformer: Transformer, base: Base, data: PreparedData, run: FinetuneRun, step: int
) -> Path:
    """Write the model that `run` made: its transformer, with the autoencoder and text encoder of its base.

    The transformer is stored in the dtype that the base's is stored in.
    """
    kept = base.place.networks["transformer"]
    state = transformer.state_dict()
    tensors = LazyTensors(stored_of(state), state.__getitem__).to(_stored_dtype(kept, state))
    trained = Network("Transformer", transformer.config, tensors, str(folder))
    bucket = data.buckets[data.counts.index(max(data.counts))]
    pixels = data.stride * transformer.config.patch_size
    side = max(pixels, round((bucket.height * bucket.width) ** 0.5 / pixels) * pixels)
    tokens = tokens_of(bucket, data.stride, transformer.config.patch_size)
    sampling = {**base.place.sampling, "shift": shift_at(run.times.resolved(base.shift), tokens)}
    about = {
        "steps_trained": step,
        "pictures": len(data),
        "recipe": run.model_dump(mode="json", include=DESCRIBED),
    }
    place = replace(
        base.place,
        path=folder,
        networks={**base.place.networks, "transformer": trained},
        sampling={**sampling, "size": side},
        about=about,
    )
    export(place, folder, "native", force=True)
    return folder


def tokens_of(bucket: Bucket, stride: int, patch_size: int) -> int:
    """Tokens of a picture."""
    return (bucket.height // stride // patch_size) * (bucket.width // stride // patch_size)


def first_captions(data: PreparedData, count: int) -> tuple[str, ...]:
    """The first caption of each of the first pictures, each text once."""
    found: dict[str, None] = {}
    for number in range(len(data)):
        found[data.sample(number).captions[0].text] = None
        if len(found) == count:
            break
    return tuple(found)


def prompt_pairs(text_encoder: TextEncoder, prompts: tuple[str, ...]) -> TextEmbedding:
    """No words as often as there are prompts, then the prompts, padded to one length, on the CPU."""
    with torch.no_grad():
        parts = [text_encoder.encode_negative([""] * len(prompts)), text_encoder.encode(list(prompts))]
    rows = [row[there].float().cpu() for text, mask in parts for row, there in zip(text, mask, strict=True)]
    mask = [torch.ones(len(row), dtype=torch.bool) for row in rows]
    return TextEmbedding(pad_sequence(rows, batch_first=True), pad_sequence(mask, batch_first=True))


def _branch(model: nn.Module, text: Float[Tensor, "1 m t"], mask: Bool[Tensor, "1 m"]) -> Velocity:
    """The velocity of one prompt, whose padding is cut off."""
    words = text[:, : int(mask.sum())]

    def velocity(x: Tensor, times: Tensor) -> Tensor:
        predicted: Tensor = model(x.float(), times.float(), words, None)
        return predicted

    return velocity


def _stored_dtype(network: Network, state: Mapping[str, Tensor]) -> str:
    """The dtype that a network's weights are stored in, unless it cannot hold the new ones."""
    stored = {each.dtype for each in network.tensors.stored.values()}
    if "BF16" in stored:
        return "bf16"
    if "F16" not in stored:
        return "fp32"
    largest = max(float(tensor.abs().max()) for tensor in state.values() if tensor.is_floating_point())
    if largest > HALF_MOST:
        _log.warning("a weight has become %g, too large for fp16: the model is stored in fp32", largest)
        return "fp32"
    return "fp16"
