"""Prior preservation: what the model drew before it learned is learned along, so that it stays."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lineardit.config.adapter import PriorConfig
from lineardit.data.cache import ShardCache
from lineardit.diffusion.guidance import guided_apart, prompt_dropout
from lineardit.diffusion.objective import FlowMatching, squared_error
from lineardit.diffusion.paths import FlowPath, Velocity
from lineardit.diffusion.randomness import hashed_seed, seeded_noise
from lineardit.diffusion.samplers import euler
from lineardit.diffusion.times import flow_times, shift_times
from lineardit.errors import ConfigError
from lineardit.text.embedding import TextEncoder
from lineardit.training.loop import step_generator
from lineardit.training.shares import Share

DRAWN_AT_ONCE = 8
ENCODED_AT_ONCE = 64
SHARD = 64
"""Pictures that are kept in one file."""

Network = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Latents, times, text and its mask in, a velocity out."""


class Prior:
    """Latents that the model drew, and the vectors of their prompts."""

    def __init__(
        self,
        config: PriorConfig,
        latents: Float[Tensor, "n c h w"],
        words: list[Tensor],
        empty: Tensor,
        objective: FlowMatching,
        seed: int,
    ) -> None:
        """`words` are the vectors (m t) of each prompt; picture i is of prompt i mod their number.

        `empty` are those of no prompt.
        """
        self.config, self.latents, self.words, self.empty = config, latents, words, empty
        self.objective, self.seed = objective, seed

    def loss(
        self, network: Network, step: int, batch_size: int, share: Share, before: Network | None = None
    ) -> Float[Tensor, ""]:
        """How far the network is from the pictures of step `step`, of which the share has some rows.

        It is the flow-matching loss, or with `before` the squared distance to the velocity of that network.
        """
        generator = step_generator(self.seed, step, "prior")
        chosen = torch.randint(len(self.latents), (batch_size,), generator=generator)
        times = shift_times(
            self.objective.time_distribution.draw(batch_size, generator), self.objective.shift
        )
        noise = torch.randn(batch_size, *self.latents.shape[1:], generator=generator)
        rows, device = share.rows(batch_size), self.latents.device
        dropped = prompt_dropout(batch_size, self.config.prompt_dropout, generator)
        text, mask = self._text(chosen[rows], dropped[rows])

        def velocity(x: Tensor, times: Tensor) -> Tensor:
            return network(x, times, text, mask)

        latents = self.latents[chosen[rows].to(device)].float()
        noise, times = noise[rows].to(device), times[rows].to(device)
        if before is None:
            return self.objective.loss_at(velocity, latents, noise, times).mean()
        noised = FlowPath().add_noise(latents, noise, times)
        with torch.no_grad():
            wanted = before(noised, times, text, mask).float()
        return squared_error(velocity(noised, times), wanted).mean()

    def _text(self, chosen: Tensor, dropped: Tensor) -> tuple[Float[Tensor, "b m t"], Bool[Tensor, "b m"]]:
        vectors = [
            self.empty if drop else self.words[number % len(self.words)]
            for number, drop in zip(chosen.tolist(), dropped.tolist(), strict=True)
        ]
        mask = [torch.ones(len(each), dtype=torch.bool, device=each.device) for each in vectors]
        return pad_sequence(vectors, batch_first=True), pad_sequence(mask, batch_first=True)


@torch.no_grad()
def draw_prior(
    config: PriorConfig,
    folder: Path,
    transformer: Network,
    text_encoder: TextEncoder,
    objective: FlowMatching,
    *,
    shape: tuple[int, int, int],
    num_inference_steps: int,
    guidance_scale: float,
    seed: int,
    device: torch.device,
    origin: Mapping[str, Any],
) -> Prior:
    """Draw the prior's latents (c h w), kept below `folder`, so that an interrupted run has the same again.

    `origin` tells which model draws.

    Raises:
        ConfigError: the file of prompts cannot be read, or has none, or more than there are pictures.
    """
    guidance = guidance_scale if config.guidance_scale is None else config.guidance_scale
    prompts = prompts_of(config)
    words = [
        vectors[there].float()
        for start in range(0, len(prompts), ENCODED_AT_ONCE)
        for vectors, there in zip(*text_encoder.encode(prompts[start : start + ENCODED_AT_ONCE]), strict=True)
    ]
    no_words = text_encoder.encode_negative([""])
    empty = no_words.embeddings[0][no_words.mask[0]].float()
    key = {
        "origin": dict(origin),
        "prior": {"prompts": prompts, "count": config.count, "guidance_scale": config.guidance_scale},
        "shape": list(shape),
        "steps": num_inference_steps,
        "shift": objective.shift,
        "guidance": guidance,
        "seed": seed,
    }
    cache = ShardCache(folder, key)

    def branch(text: Tensor) -> Velocity:
        def velocity(x: Tensor, times: Tensor) -> Tensor:
            return transformer(x.float(), times.float(), text.expand(len(x), -1, -1), None)

        return velocity

    def shard(index: int) -> dict[str, Tensor]:
        numbers = range(index * SHARD, min(config.count, (index + 1) * SHARD))
        drawn: dict[int, Tensor] = {}
        for which, text in enumerate(words):
            own = [number for number in numbers if number % len(words) == which]
            for start in range(0, len(own), DRAWN_AT_ONCE):
                part = own[start : start + DRAWN_AT_ONCE]
                noise = seeded_noise(shape, [hashed_seed("prior", seed, number) for number in part], device)
                velocity = guided_apart(branch(text.to(device)), branch(empty.to(device)), guidance)
                latents = noise
                for state in euler(velocity, noise, flow_times(num_inference_steps, objective.shift)):
                    latents = state.latents
                drawn |= zip(part, latents.float().cpu(), strict=True)
        return {"latents": torch.stack([drawn[number] for number in numbers])}

    shards = -(-config.count // SHARD)
    cache.fill(shards, shard)
    latents = cache.load(shards)["latents"].to(device)
    return Prior(config, latents, [each.to(device) for each in words], empty.to(device), objective, seed)


def prompts_of(config: PriorConfig) -> list[str]:
    """The prompts of the recipe, then those of its file, without empty lines.

    Raises:
        ConfigError: the file cannot be read, there is no prompt, or not a picture for each.
    """
    prompts = list(config.prompts)
    if config.prompts_file is not None:
        try:
            lines = config.prompts_file.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ConfigError(
                f"prior.prompts_file={config.prompts_file} cannot be read ({reason}). "
                "Name a text file with a prompt on each line."
            ) from None
        prompts += [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ConfigError(f"prior.prompts_file={config.prompts_file} has no prompt: write one on each line.")
    if len(prompts) > config.count:
        raise ConfigError(
            f"prior.count={config.count} pictures are fewer than the {len(prompts)} prompts, of which the "
            f"last would never be drawn. Use prior.count={len(prompts)} or more, or fewer prompts."
        )
    return prompts
