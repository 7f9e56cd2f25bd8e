"""A model that is ready to draw."""

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from lineardit.autoencoder.bands import decode_in_bands, encode_in_bands
from lineardit.autoencoder.model import Autoencoder
from lineardit.config.steps import STRENGTH
from lineardit.data.picture_files import fitted
from lineardit.data.pictures import to_picture, to_pixels
from lineardit.diffusion.guidance import Interval, guided
from lineardit.diffusion.paths import Velocity
from lineardit.diffusion.predictions import ddpm_prediction
from lineardit.diffusion.randomness import seeded_noise
from lineardit.diffusion.states import State
from lineardit.errors import InputError, NotFiniteError, check_multiple
from lineardit.interop.room import Room
from lineardit.pipeline.article import ArticleNetwork
from lineardit.pipeline.classes import ClassConditioning, DiTNetwork, class_trajectory
from lineardit.pipeline.conditioning import Conditioning, TextConditioning
from lineardit.pipeline.discrete import DiscreteTrajectory
from lineardit.pipeline.model import Model
from lineardit.pipeline.networks import Network, SanaNetwork, steps_of
from lineardit.pipeline.sampling import Sampling
from lineardit.pipeline.settings import (
    Output,
    OutputType,
    Settings,
    checked_control_scale,
    checked_scale,
    checked_steps,
    checked_strength,
    negatives_for,
    seeds_for,
)
from lineardit.pipeline.trajectory import FlowTrajectory, Trajectory
from lineardit.text.embedding import TextEncoder
from lineardit.text.prompt import check_text
from lineardit.transformer.article import ArticleSana
from lineardit.transformer.controlnet import ControlNet
from lineardit.transformer.denoiser import Denoiser
from lineardit.transformer.dit import DiT


class Pipeline(Model):
    """A model ready to draw. The same prompt, settings and seed give the same picture in any batch."""

    def __init__(
        self,
        transformer: Denoiser | DiT,
        autoencoder: Autoencoder,
        text_encoder: TextEncoder | None,
        sampling: Sampling,
        *,
        name: str,
        controlnet: ControlNet | None = None,
        classes: Sequence[str] = (),
    ) -> None:
        """What draws classes, a DiT, has their names, and every other model a text encoder."""
        super().__init__(
            transformer,
            autoencoder,
            text_encoder,
            sampling,
            name=name,
            controlnet=controlnet,
            classes=classes,
        )
        self._conditioning: Conditioning[Any]
        self._trajectory: Trajectory
        if isinstance(transformer, DiT):
            self._conditioning, self._trajectory = ClassConditioning(classes), class_trajectory(transformer)
        else:
            assert text_encoder is not None, "a prompt is read by a text encoder"
            self._conditioning = TextConditioning(text_encoder)
            self._trajectory = (
                DiscreteTrajectory(ddpm_prediction(transformer.config))
                if isinstance(transformer, ArticleSana)
                else FlowTrajectory(sampling)
            )
        self._room = Room(lambda: self.networks)

    def limit_memory(self, bytes_in_all: int | None, *, keep_freed: bool = True) -> None:
        """Draw within so many bytes of memory, what the process holds by now included; None lifts the bound.

        Pictures are then encoded, denoised and decoded in bands of rows, as many at a time as fit: the same
        pixels to 1e-5, without seams (`autoencoder.bands`, `transformer.bands`). Call it once the models are
        loaded. A bound that a picture cannot be drawn within is found when the picture is planned.

        A model that was loaded with `offload=True` needs least: of its weights only those are in memory that
        are at work, and the others as far as they fit. Pictures are drawn one at a time unless `batch_size`
        says otherwise, and on a CPU freed memory goes back to the system at once from then on; but between
        steps that have room for its gaps it is kept, unless `keep_freed` is false (`kernels.allocator`).
        """
        self._room.limit(bytes_in_all, keep_freed=keep_freed)

    @property
    def is_bounded(self) -> bool:
        """Whether `limit_memory` has set a bound."""
        return self._room.is_bounded

    @property
    def samplers(self) -> tuple[str, ...]:
        """The names of those that this model can be drawn with."""
        return self._trajectory.samplers

    def __call__(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] = "",
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] = 0,
        sampler: str | None = None,
        image: Image.Image | None = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        step_cache: float = 0.0,
        strength: float | None = None,
        control_image: Image.Image | None = None,
        controlnet_conditioning_scale: float = 1.0,
        output_type: OutputType = "pil",
        batch_size: int | None = None,
        on_step: Callable[[State], None] | None = None,
    ) -> Output:
        """Draw `num_images_per_prompt` pictures of each prompt.

        A single seed belongs to the first picture, the next has the next seed; a sequence gives each picture
        its own. `batch_size` pictures are denoised together: by default one on a CPU, where that costs
        nothing and makes a picture independent of its batch to the bit, all on a GPU. `on_step` sees
        each state.

        `image` is where to start from: it is brought to height and width, encoded, mixed with noise as after
        1 - `strength` of the steps (0.6 where nothing is said), and denoised from there. `control_image` is
        what a ControlNet follows (edges, depth or poses, as it was trained), brought to this size as well.

        Two settings trade fidelity for speed. Outside of `guidance_interval` (times, 0 the picture, 1 noise)
        only the prompt's branch runs. `step_cache` is the share by which what the first block adds may change
        before the blocks between first and last run again: 0 is exact, 0.1 usual.

        Raises:
            PromptError: a prompt is empty.
            InputError: a setting is out of range, with what would pass.
            MemoryLimitError: it takes more memory than `limit_memory` allows, with the least that works.
            ShapeError: height or width is not a multiple of the pixels per token.
        """
        jobs = self.plan(
            prompt,
            negative_prompt,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            num_images_per_prompt=num_images_per_prompt,
            seed=seed,
            sampler=sampler,
            strength=STRENGTH if strength is None and image is not None else strength,
            controlnet_conditioning_scale=None if control_image is None else controlnet_conditioning_scale,
            guidance_interval=guidance_interval,
            step_cache=step_cache,
        )
        return self.draw(
            jobs,
            None if image is None else [image] * len(jobs),
            None if control_image is None else [control_image] * len(jobs),
            output_type=output_type,
            batch_size=batch_size,
            on_step=on_step,
        )

    def draw(
        self,
        jobs: Sequence[Settings],
        images: Sequence[Image.Image] | None = None,
        controls: Sequence[Image.Image] | None = None,
        *,
        output_type: OutputType = "pil",
        batch_size: int | None = None,
        on_step: Callable[[State], None] | None = None,
    ) -> Output:
        """Draw planned pictures, `batch_size` at a time, each from its initial one if there are `images`.

        `controls` are the pictures that a ControlNet follows, one for each.

        Raises:
            NotFiniteError: numbers have left the range of the dtype.
        """
        if output_type not in ("pil", "np", "pt", "latent"):
            raise InputError(f"output_type={output_type!r} is unknown. Use pil, np, pt or latent.")
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch_size={batch_size} is not a positive number. Use 1 or more.")
        alone = self.device.type == "cpu" or self.is_bounded
        together = batch_size or (1 if alone else len(jobs))
        finished, conditions = [], self.embed(jobs)  # every prompt is read once, however many pictures it has
        for start in range(0, len(jobs), together):
            part = jobs[start : start + together]
            rows = self._rows(conditions, range(start, start + len(part)), jobs)
            initial, control = (
                None if each is None else self.encode(each[start : start + together], part[0])
                for each in (images, controls)
            )
            for state in self.states(part, rows, initial, control):
                if on_step is not None:
                    on_step(state)
            # What the steps shared is gone by now.
            done = state.latents if output_type == "latent" else self.decode(state.latents)
            finished.append(self._finite(done))
        return Output(_as(torch.cat(finished), output_type), tuple(jobs))

    def generate(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] = "",
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int | Sequence[int] = 0,
        sampler: str | None = None,
    ) -> Iterator[State]:
        """The denoising of one batch, state by state: `pipe.decode(state.denoised)` is a preview."""
        jobs = self.plan(
            prompt,
            negative_prompt,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            seed=seed,
            sampler=sampler,
        )
        return self.states(jobs)

    def states(
        self,
        jobs: Sequence[Settings],
        conditions: Any = None,
        initial: Float[Tensor, "b c h w"] | None = None,
        control: Float[Tensor, "b c h w"] | None = None,
    ) -> Generator[State, None, None]:
        """Denoise pictures of one size and step count together, yielding each state.

        `conditions` are what `embed` gives for the same jobs, where it was computed before; `initial` what
        `encode` gives for pictures to start from, `control` the same for those that the ControlNet follows.

        Raises:
            InputError: there are pictures to start from and no strength, or the other way round; the same of
                pictures to follow, or there is no ControlNet.
        """
        first = jobs[0]
        if (control is None) != (first.controlnet_conditioning_scale is None):
            given = "a scale, but no picture" if control is None else "a picture, but no scale"
            raise InputError(f"there is {given} for the ControlNet to follow. Give both, or none.")
        if (initial is None) != (first.strength is None):
            given = "a strength, but no picture" if initial is None else "a picture, but no strength"
            raise InputError(f"there is {given} to start from. Give both, or none.")
        conditions = self.embed(jobs) if conditions is None else conditions
        steps = steps_of(self._network, jobs, control)
        self._room.rows_to_denoise(steps)
        noise = seeded_noise(self._latent_shape(first), [job.seed for job in jobs], self.device)
        # inference_mode would not survive being suspended in the middle of a generator that its user leaves.
        velocity, shared_bytes = self._guided(jobs, conditions, control)
        states = self._trajectory.states(velocity, noise, jobs, initial)
        with self._room.beside_steps(shared_bytes):
            while True:
                with torch.no_grad():
                    # Whoever looked at the state before may have decoded it, which takes room.
                    self._room.rows_to_denoise(steps)
                    state = next(states, None)
                if state is None:
                    return
                yield state

    @torch.no_grad()
    def encode(self, images: Sequence[Image.Image], job: Settings) -> Float[Tensor, "b c h w"]:
        """Latents of pictures, each brought to the size of `job` and encoded alone."""
        rows, found = self._room.rows_to_encode(job.height, job.width), []
        for image in images:
            pixels = to_pixels(fitted(image, job.width, job.height)).to(self.device, self.dtype)[None]
            latents = (
                self.autoencoder.encode(pixels)
                if rows is None
                else encode_in_bands(self.autoencoder, pixels, rows)
            )
            found.append(latents.float())
        return torch.cat(found)

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """Pixels in [-1, 1], float32."""
        if self._room.is_bounded and len(latents) > 1:
            return torch.cat([self.decode(each[None]) for each in latents])
        given = latents.to(self.dtype)
        height, width = (side * self.autoencoder.config.stride for side in latents.shape[-2:])
        rows = self._room.rows_to_decode(height, width)
        if rows is None:
            return self.autoencoder.decode(given).float().clamp(-1, 1)
        return decode_in_bands(self.autoencoder, given, rows).float().clamp_(-1, 1)

    def check_memory(
        self,
        height: int,
        width: int,
        *,
        from_picture: bool = False,
        follows_picture: bool = False,
        step_cache: float = 0.0,
    ) -> None:
        """Whether one picture can be drawn within the bound of memory, where there is one.

        Raises:
            MemoryLimitError: it cannot, with the least that works.
        """
        self._room.check(
            height,
            width,
            from_picture=from_picture,
            follows_picture=follows_picture,
            caches=step_cache > 0,
        )

    @property
    def _network(self) -> Network[Any]:
        if isinstance(self.transformer, DiT):
            return DiTNetwork(self.transformer, self._trajectory.seen)
        if isinstance(self.transformer, ArticleSana):
            return ArticleNetwork(self.transformer, self._trajectory.seen)
        return SanaNetwork(
            self.transformer, self.controlnet, self._trajectory.seen, self._room, self._compiled
        )

    @torch.no_grad()
    def _guided(
        self, jobs: Sequence[Settings], conditions: Any, control: Tensor | None
    ) -> tuple[Velocity, int]:
        """What each step calls, and the bytes that all of them share."""
        prompted, pair, shared_bytes = self._network.branches(jobs, conditions, control)
        if pair is None:
            return prompted, shared_bytes
        scales = torch.tensor([job.guidance_scale for job in jobs], device=self.device)
        return guided(pair, scales, prompted, Interval(*jobs[0].guidance_interval)), shared_bytes

    @torch.no_grad()
    def embed(self, jobs: Sequence[Settings]) -> Any:
        """Negative prompts first (none where no picture is guided), then prompts, padded to one length."""
        self._room.make_to_read()
        negative = self._network.is_guided(jobs)
        if self._room.is_bounded and len(jobs) > 1:
            each = [self._conditioning.read([job], self.dtype, negative=negative) for job in jobs]
            return self._conditioning.joined(each)
        return self._conditioning.read(jobs, self.dtype, negative=negative)

    def joined(self, found: Sequence[Any]) -> Any:
        """What `embed` gave for single jobs as it gives it for a batch, each prompt as it was read alone."""
        return self._conditioning.joined(found)

    def _rows(self, conditions: Any, numbers: Sequence[int], jobs: Sequence[Settings]) -> Any:
        """What `embed` would give for some of the jobs, taken from what it gave for all of them."""
        before = len(jobs) if self._network.is_guided(jobs) else 0  # the negative prompts come first
        offsets = [0, before] if self._network.is_guided([jobs[number] for number in numbers]) else [before]
        return self._conditioning.rows(
            conditions, [offset + number for offset in offsets for number in numbers]
        )

    def _finite(self, numbers: Tensor) -> Tensor:
        if not numbers.isfinite().all():
            raise NotFiniteError(
                f"{self.name} gave numbers that are NaN or infinite, computing in {self.dtype}. "
                "--debug-nan (Pipeline.watched) names the layer; bf16 and fp32 hold larger numbers than fp16."
            )
        return numbers

    def _latent_shape(self, job: Settings) -> tuple[int, int, int]:
        config = self.autoencoder.config
        return config.latent_channels, job.height // config.stride, job.width // config.stride

    def plan(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] = "",
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] = 0,
        sampler: str | None = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        step_cache: float = 0.0,
        strength: float | None = None,
        controlnet_conditioning_scale: float | None = None,
    ) -> list[Settings]:
        """What would be drawn, one entry per picture, checked; nothing is computed. Raises as a call does."""
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        self._conditioning.check(prompts)
        negatives = negatives_for(prompts, negative_prompt)
        for each in negatives:
            check_text(each, "the negative prompt")
        if num_images_per_prompt < 1:
            raise InputError(
                f"num_images_per_prompt={num_images_per_prompt} is not a positive number. Use 1 or more."
            )
        count = len(prompts) * num_images_per_prompt
        sampler = self.sampling.sampler if sampler is None else sampler
        scale = self.sampling.guidance_scale if guidance_scale is None else guidance_scale
        steps = self.sampling.num_inference_steps if num_inference_steps is None else num_inference_steps
        self._trajectory.check(sampler, checked_steps(steps))
        if checked_scale(scale) != 1 and (said := [each for each in negatives if each.strip()]):
            self._conditioning.check(said)
        sides = [self._side(name, side) for name, side in (("height", height), ("width", width))]
        followed = self._followed(controlnet_conditioning_scale)
        self.check_memory(
            sides[0],
            sides[1],
            from_picture=strength is not None,
            follows_picture=controlnet_conditioning_scale is not None,
            step_cache=step_cache,
        )
        Interval(*guidance_interval)  # say now what is wrong with it
        self._network.check(step_cache)
        return [
            Settings(
                prompt=prompts[index // num_images_per_prompt],
                negative_prompt=negatives[index // num_images_per_prompt],
                height=sides[0],
                width=sides[1],
                num_inference_steps=steps,
                guidance_scale=float(scale),
                sampler=sampler,
                seed=each,
                model=self.description + followed,
                strength=None if strength is None else checked_strength(strength),
                controlnet_conditioning_scale=controlnet_conditioning_scale,
                guidance_interval=guidance_interval,
                step_cache=step_cache,
            )
            for index, each in enumerate(seeds_for(seed, count))
        ]

    def _followed(self, scale: float | None) -> str:
        """What is said of the ControlNet beside the model, after checking that there is one to follow."""
        if scale is None:
            return ""
        if self.controlnet is None:
            raise InputError(
                f"{self.name} has no ControlNet to follow a picture with. Load one: load_controlnet(PLACE), "
                "or --controlnet PLACE."
            )
        checked_control_scale(scale)
        return "" if self._control_place is None else f" + {self._control_place}"

    def _side(self, name: str, side: int | None) -> int:
        if side is None:
            return self.sampling.size
        unit = self.autoencoder.config.stride * self.transformer.config.patch_size
        if isinstance(side, bool) or not isinstance(side, int):
            raise InputError(f"{name}={side!r} is no whole number. Use {self.sampling.size}.")
        check_multiple(name, side, unit, f"{unit}, the pixels per token")
        return side


def _as(images: Tensor, output_type: OutputType) -> list[Image.Image] | Any:
    if output_type == "pil":
        return [to_picture(image) for image in images]
    if output_type == "np":
        return (images / 2 + 0.5).movedim(1, -1).cpu().numpy()
    return images
