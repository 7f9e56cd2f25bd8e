"""From prompts to pictures: text, noise, the denoising loop as a generator of states, decoding."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from lineardit.autoencoder.bands import decode_in_bands
from lineardit.autoencoder.model import Autoencoder
from lineardit.config.steps import steps_drawn
from lineardit.data.picture_files import fitted
from lineardit.data.pictures import to_picture, to_pixels
from lineardit.diffusion.guidance import Interval, guided
from lineardit.diffusion.paths import Velocity
from lineardit.diffusion.randomness import StepNoise, seeded_noise
from lineardit.diffusion.samplers import sampler_named
from lineardit.diffusion.scm import scm, scm_times
from lineardit.diffusion.states import State
from lineardit.diffusion.times import (
    check_steps,
    dpm_flow_times,
    euler_flow_times,
    flow_times,
    whole_times,
)
from lineardit.errors import CheckpointError, InputError, NotFiniteError, check_multiple
from lineardit.interop.export import Format, export, live_place
from lineardit.interop.lora import (
    add_lora,
    loras,
    merge_loras,
    read_lora,
    unload_loras,
    weigh_loras,
)
from lineardit.interop.memory import decoder_rows, transformer_bytes
from lineardit.interop.native import INDEX
from lineardit.interop.places import (
    Place,
    assemble_autoencoder,
    assemble_controlnet,
    assemble_text_encoder,
    assemble_transformer,
    check_control,
    open_place,
    with_parts,
)
from lineardit.kernels.allocator import resident_bytes
from lineardit.kernels.select import DTYPES, inspect_machine, select
from lineardit.nn.finite import check_parameters, finite_outputs
from lineardit.text.embedding import TextEmbedding, TextEncoder
from lineardit.text.prompt import check_prompts
from lineardit.transformer.controlnet import ControlNet
from lineardit.transformer.generation import PromptReading, StepCache
from lineardit.transformer.model import Transformer

BUNDLED = "emoji"
"""Name of the model that ships with the package."""
CONSISTENCY = "scm"
"""The sampler of models that see the image in one to four steps."""
LARGEST_SEED = 2**63 - 1
STRENGTH = 0.6
"""How much of an initial picture is drawn anew where nothing is said."""

OutputType = Literal["pil", "np", "pt", "latent"]


@dataclass(frozen=True)
class Settings:
    """All that decides a picture, apart from the weights; saved in its PNG."""

    prompt: str
    negative_prompt: str
    height: int
    width: int
    num_inference_steps: int
    guidance_scale: float
    sampler: str
    seed: int
    model: str
    strength: float | None = None
    """Where an initial picture was given: the share of the steps that was drawn over it, in (0, 1]."""
    controlnet_conditioning_scale: float | None = None
    """Where a control picture was given: what the ControlNet's additions are multiplied by."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """The times, 0 the picture and 1 noise, in which guidance applies; outside only the prompt counts."""
    step_cache: float = 0.0
    """How far the first block's addition may change before the middle blocks run again; 0 is exact."""

    @property
    def steps_drawn(self) -> int:
        """Steps that are computed: the last ones, from an initial picture (SDEdit, arXiv:2108.01073)."""
        return steps_drawn(self.num_inference_steps, self.strength)


@dataclass(frozen=True)
class Output:
    """Pictures, and how each was made."""

    images: Any
    """A list of PIL pictures, an array (b H W 3) in [0, 1], a tensor (b 3 H W) in [-1, 1], or latents."""
    settings: tuple[Settings, ...]


@dataclass(frozen=True)
class Sampling:
    """What a model was made to be sampled with; a call may differ."""

    shift: float = 1.0
    """Flow shift of the time grid."""
    guidance_scale: float = 4.5
    num_inference_steps: int = 20
    size: int = 1024
    """Pixels per side where no height or width is given."""
    sampler: str = "dpm++"
    whole_times: bool = False
    """The network sees times cut to whole thousandths, all it was shown in training (SANA 1.0 and 1.5)."""
    published_euler: bool = False
    """Euler's times are those of diffusers' scheduler (`euler_flow_times`) instead of even steps."""


class Pipeline:
    """A model ready to draw. The same prompt, settings and seed give the same picture in any batch."""

    def __init__(
        self,
        transformer: Transformer,
        autoencoder: Autoencoder,
        text_encoder: TextEncoder,
        sampling: Sampling,
        *,
        name: str,
        controlnet: ControlNet | None = None,
    ) -> None:
        self.transformer, self.autoencoder, self.text_encoder = transformer, autoencoder, text_encoder
        self.controlnet = controlnet
        self.sampling, self.name = sampling, name
        self._memory: int | None = None
        self._held = 0
        self._lora_places: dict[str, str] = {}
        self._control_place: str | None = None

    @classmethod
    def from_pretrained(
        cls,
        place: str | Path | None = None,
        *,
        autoencoder: str | Path | None = None,
        text_encoder: str | Path | None = None,
        device: str = "auto",
        dtype: str = "fp32",
        variant: str | None = None,
    ) -> "Pipeline":
        """Load the bundled model, or that of a place: a folder (ours or of diffusers), a file or a hub id.

        An official file is a transformer only: `autoencoder` and `text_encoder` are the places of the rest.
        `dtype` is fp32, bf16 or fp16, or "auto" for what is fastest here. A text encoder of ours stays in
        float32, a published one in the dtype that it is stored in. `variant` (fp16, bf16) chooses among the
        weights of a diffusers folder.

        Raises:
            CheckpointError: there is no model, it is damaged, or parts of it are missing.
            InputError: the device or the dtype is not here, or fp16 cannot hold a weight.
        """
        chosen = select(inspect_machine(), device, dtype)
        opened = open_place(_bundled() if place is None else place, variant=variant)
        if autoencoder is not None or text_encoder is not None:
            opened = with_parts(opened, autoencoder, text_encoder, variant=variant)
        if opened.missing:
            raise CheckpointError(
                f"{opened.path} holds no {', no '.join(opened.missing)}: a pipeline needs all three. "
                "Give the folder of a whole model, or the places of the rest: --autoencoder, --text-encoder."
            )
        target, name = chosen.torch_device, chosen.dtype.name
        return cls(
            assemble_transformer(opened, name, target),
            assemble_autoencoder(opened, name, target),
            assemble_text_encoder(opened, target),
            _sampling(opened),
            name=BUNDLED if place is None else str(place),
            controlnet=assemble_controlnet(opened, name, target) if "controlnet" in opened.networks else None,
        )

    def save_pretrained(
        self, folder: str | Path, *, format: Format = "native", dtype: str | None = None, force: bool = False
    ) -> None:
        """Write the model to a folder that `from_pretrained` reads; "diffusers" is read by diffusers too.

        Weights are stored in the dtype that they have, or as fp32, bf16 or fp16.

        Raises:
            OutputError: the folder exists and `force` is not given, or cannot be written.
            ConfigError: the model cannot be told in that format.
        """
        place = live_place(
            self.name,
            self.transformer,
            self.autoencoder,
            self.text_encoder,
            asdict(self.sampling),
            self.controlnet,
        )
        export(place, Path(folder), format, dtype=dtype, force=force)

    def load_controlnet(self, place: str | Path, *, variant: str | None = None) -> None:
        """Take the ControlNet of a place, so that pictures can be drawn along a `control_image`.

        Raises:
            CheckpointError: there is none, it is damaged, or for another transformer.
        """
        opened = open_place(place, variant=variant)
        check_control(opened, self.transformer.config)
        dtype = next(name for name, each in DTYPES.items() if each == self.dtype)
        self.controlnet = assemble_controlnet(opened, dtype, self.device)
        self._control_place = str(place)

    def load_lora(self, place: str | Path, weight: float = 1.0, *, name: str | None = None) -> str:
        """Add a LoRA of peft or diffusers to the transformer, and return what it is called there.

        Several add up. They lie beside the layers, which are what they were once they are unloaded.

        Raises:
            CheckpointError: there is no LoRA, it is damaged, or for another model; nothing is added then.
            InputError: the weight is no finite number, or the name is taken.
        """
        taken = loras(self.transformer)
        if name is None:
            name = next(free for number in range(len(taken) + 1) if (free := f"lora{number}") not in taken)
        add_lora(self.transformer, read_lora(place), name, weight)
        self._lora_places[name] = str(place)
        return name

    def weigh_loras(self, **weights: float) -> None:
        """Give LoRAs new weights by their names; the others keep theirs.

        Raises:
            InputError: one is not loaded, or a weight is no finite number.
        """
        weigh_loras(self.transformer, weights)

    def merge_loras(self) -> None:
        """Add all LoRAs with their weights to the layers for good: faster, and ready to be saved."""
        self.name = self.description
        merge_loras(self.transformer)

    def unload_loras(self, *names: str) -> None:
        """Take LoRAs away, all of them if none is named. Raises `InputError` where one is not loaded."""
        unload_loras(self.transformer, *names)

    def limit_memory(self, bytes_in_all: int | None) -> None:
        """Draw within so many bytes of memory, what the process holds by now included; None lifts the bound.

        Pictures are then decoded in bands of rows, as many at a time as fit: the same pixels to 1e-5, without
        seams (`autoencoder.bands`). Call it once the models are loaded.

        Raises:
            InputError: the process holds more than that already.
        """
        held = torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else resident_bytes()
        self._memory, self._held = bytes_in_all, held or 0
        if bytes_in_all is not None and bytes_in_all <= self._held:
            raise InputError(
                f"memory={bytes_in_all / 1e9:.2f} GB is less than the {self._held / 1e9:.2f} GB that are "
                "held already, weights included. Allow more, or load the model in bf16."
            )

    def _rows(self, height: int, width: int) -> int | None:
        """Rows of latents that are decoded at a time; None is all."""
        if self._memory is None:
            return None
        config, room = self.autoencoder.config, self._memory - self._held
        return decoder_rows(config, height, width, self.dtype, room)

    def _check_memory(self, height: int, width: int) -> None:
        if self._memory is None:
            return
        self._rows(height, width)
        stride = self.autoencoder.config.stride
        needed = transformer_bytes(self.transformer.config, height // stride, width // stride, self.dtype)
        if needed > self._memory - self._held:
            raise InputError(
                f"a step at {width} x {height} pixels takes {needed / 1e9:.2f} GB beside the "
                f"{self._held / 1e9:.2f} GB that are held. Allow {(needed + self._held) / 1e9 + 0.01:.2f} GB."
            )

    @property
    def description(self) -> str:
        """The model with its LoRAs and their weights, as pictures keep it."""
        held = loras(self.transformer).items()
        return self.name + "".join(
            f" + {self._lora_places.get(name, name)} x {weight:g}" for name, weight in held
        )

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.transformer.patchify.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """In which dtype they compute."""
        return self.transformer.patchify.weight.dtype

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
        together = batch_size or (1 if self.device.type == "cpu" else len(jobs))
        finished, text = [], self.embed(jobs)  # every prompt is read once, however many pictures it has
        for start in range(0, len(jobs), together):
            part = jobs[start : start + together]
            rows = _rows(text, start, len(part), len(jobs), twice=self._runs_twice(part))
            initial, control = (
                None if each is None else self.encode(each[start : start + together], part[0])
                for each in (images, controls)
            )
            for state in self.states(part, rows, initial, control):
                if on_step is not None:
                    on_step(state)
                if state.step == state.total:
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
        text: TextEmbedding | None = None,
        initial: Float[Tensor, "b c h w"] | None = None,
        control: Float[Tensor, "b c h w"] | None = None,
    ) -> Iterator[State]:
        """Denoise pictures of one size and step count together, yielding each state.

        `text` is what `embed` gives for the same jobs, where it was computed before; `initial` what `encode`
        gives for pictures to start from, `control` the same for those that the ControlNet follows.

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
        text = self.embed(jobs) if text is None else text
        noise = seeded_noise(self._latent_shape(first), [job.seed for job in jobs], self.device)
        scales = torch.tensor([job.guidance_scale for job in jobs], device=self.device)
        # inference_mode would not survive being suspended in the middle of a generator that its user leaves.
        velocity = self._guided(jobs, text, scales, control)
        states = self._sampled(jobs, velocity, noise, initial)
        while True:
            with torch.no_grad():
                state = next(states, None)
            if state is None:
                return
            yield state

    @torch.no_grad()
    def encode(self, images: Sequence[Image.Image], job: Settings) -> Float[Tensor, "b c h w"]:
        """Latents of pictures, each brought to the size of `job` and encoded alone."""
        found = []
        for image in images:
            pixels = to_pixels(fitted(image, job.width, job.height)).to(self.device, self.dtype)
            found.append(self.autoencoder.encode(pixels[None]).float())
        return torch.cat(found)

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """Pixels in [-1, 1], float32."""
        stride, given = self.autoencoder.config.stride, latents.to(self.dtype)
        rows = self._rows(latents.shape[-2] * stride, latents.shape[-1] * stride)
        if rows is None:
            return self.autoencoder.decode(given).float().clamp(-1, 1)
        return decode_in_bands(self.autoencoder, given, rows).float().clamp_(-1, 1)

    def _sampled(
        self, jobs: Sequence[Settings], velocity: Velocity, noise: Tensor, initial: Tensor | None
    ) -> Iterator[State]:
        job, shift = jobs[0], self.sampling.shift
        if job.sampler == CONSISTENCY:
            times = scm_times(job.num_inference_steps)
        else:
            times = self._grid(job.sampler)(job.num_inference_steps, shift)
        times = times[-job.steps_drawn - 1 :]
        if initial is not None:
            noise = (1 - times[0].item()) * initial + times[0].item() * noise
        if job.sampler == CONSISTENCY:
            return scm(velocity, noise, times, StepNoise([job.seed for job in jobs]))
        return sampler_named(job.sampler)(velocity, noise, times)

    def _grid(self, sampler: str) -> Callable[[int, float], Tensor]:
        if sampler == "dpm++":
            return dpm_flow_times
        return euler_flow_times if sampler == "euler" and self.sampling.published_euler else flow_times

    @torch.no_grad()
    def _guided(
        self, jobs: Sequence[Settings], text: TextEmbedding, scales: Tensor, control: Tensor | None
    ) -> Velocity:
        read = self.transformer.read(text.embeddings, text.mask)
        both = self._velocity(jobs[0], text, read, scales, control)
        if not self._runs_twice(jobs):
            return both
        wanted, twice = len(jobs), 2 * len(jobs)  # the negative prompts come first
        only = TextEmbedding(text.embeddings[wanted:], text.mask[wanted:])
        alone = self._velocity(jobs[0], only, read.rows(wanted, twice), scales, control)
        return guided(both, scales, alone, Interval(*jobs[0].guidance_interval))

    def _velocity(
        self,
        job: Settings,
        text: TextEmbedding,
        read: PromptReading,
        scales: Tensor,
        control: Tensor | None,
    ) -> Velocity:
        # A distilled model takes the guidance scale as an input.
        guidance = scales if self.transformer.config.guidance_embedding else None
        cache = StepCache(job.step_cache)

        def velocity(latents: Tensor, times: Tensor) -> Tensor:
            seen = whole_times(times) if self.sampling.whole_times else times
            shown = latents.to(self.dtype), seen.float()
            residuals: Sequence[Tensor] = ()
            if control is not None and self.controlnet is not None:
                both = control.repeat(len(latents) // len(control), 1, 1, 1).to(self.dtype)
                scale = job.controlnet_conditioning_scale or 0.0
                residuals = self.controlnet(*shown, text.embeddings, both, text.mask, scale)
            out: Tensor = self.transformer(*shown, read, None, guidance, residuals, cache)
            return out

        return velocity

    def _finite(self, numbers: Tensor) -> Tensor:
        if not numbers.isfinite().all():
            raise NotFiniteError(
                f"{self.name} gave numbers that are NaN or infinite, computing in {self.dtype}. "
                "--debug-nan (Pipeline.watched) names the layer; bf16 and fp32 hold larger numbers than fp16."
            )
        return numbers

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, the first layer whose output is not finite raises `NotFiniteError` and is named; slower."""
        parts = {
            "text_encoder": getattr(self.text_encoder, "model", self.text_encoder),
            "controlnet": self.controlnet,
            "transformer": self.transformer,
            "autoencoder": self.autoencoder,
        }
        with ExitStack() as stack:
            for name, part in parts.items():
                if isinstance(part, nn.Module):
                    check_parameters(part, name)
                    stack.enter_context(finite_outputs(part, name))
            yield

    def _runs_twice(self, jobs: Sequence[Settings]) -> bool:
        """Whether guidance needs the network a second time, without the prompt."""
        embedded = self.transformer.config.guidance_embedding
        return not embedded and any(job.guidance_scale != 1 for job in jobs)

    @torch.no_grad()
    def embed(self, jobs: Sequence[Settings]) -> TextEmbedding:
        """Negative prompts first (none where no picture is guided), then prompts, padded to one length."""
        wanted = self.text_encoder.encode([job.prompt for job in jobs])
        if not self._runs_twice(jobs):
            return TextEmbedding(wanted.embeddings.to(self.dtype), wanted.mask)
        without = self.text_encoder.encode_negative([job.negative_prompt for job in jobs])
        longest = max(without.mask.shape[1], wanted.mask.shape[1])
        embeddings, mask = zip(*(_padded(text, longest) for text in (without, wanted)), strict=True)
        return TextEmbedding(torch.cat(embeddings).to(self.dtype), torch.cat(mask))

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
        check_prompts(prompts)
        negatives = (
            [negative_prompt] * len(prompts) if isinstance(negative_prompt, str) else list(negative_prompt)
        )
        if len(negatives) != len(prompts):
            raise InputError(
                f"{len(negatives)} negative prompts for {len(prompts)} prompts: "
                "give one for all, or one for each."
            )
        if num_images_per_prompt < 1:
            raise InputError(
                f"num_images_per_prompt={num_images_per_prompt} is not a positive number. Use 1 or more."
            )
        count = len(prompts) * num_images_per_prompt
        sampler = self.sampling.sampler if sampler is None else sampler
        if sampler != CONSISTENCY:
            sampler_named(sampler)
        scale = self.sampling.guidance_scale if guidance_scale is None else guidance_scale
        steps = self.sampling.num_inference_steps if num_inference_steps is None else num_inference_steps
        sides = [self._side(name, side) for name, side in (("height", height), ("width", width))]
        followed = self._followed(controlnet_conditioning_scale)
        self._check_memory(*sides)
        Interval(*guidance_interval)  # say now what is wrong with them
        StepCache(step_cache)
        return [
            Settings(
                prompt=prompts[index // num_images_per_prompt],
                negative_prompt=negatives[index // num_images_per_prompt],
                height=sides[0],
                width=sides[1],
                num_inference_steps=_checked_steps(steps),
                guidance_scale=_checked_scale(scale),
                sampler=sampler,
                seed=each,
                model=self.description + followed,
                strength=None if strength is None else _checked_strength(strength),
                controlnet_conditioning_scale=controlnet_conditioning_scale,
                guidance_interval=guidance_interval,
                step_cache=step_cache,
            )
            for index, each in enumerate(_seeds(seed, count))
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
        if not math.isfinite(scale):
            raise InputError(f"controlnet_conditioning_scale={scale} is no finite number. Use 1.0.")
        return "" if self._control_place is None else f" + {self._control_place}"

    def _side(self, name: str, side: int | None) -> int:
        if side is None:
            return self.sampling.size
        unit = self.autoencoder.config.stride * self.transformer.config.patch_size
        check_multiple(name, side, unit, f"{unit}, the pixels per token")
        return side


def _bundled() -> Path:
    return Path(str(files("lineardit"))) / "weights" / BUNDLED


def _sampling(place: Place) -> Sampling:
    try:
        return Sampling(**place.sampling)
    except TypeError:
        known = ", ".join(field.name for field in fields(Sampling))
        raise CheckpointError(
            f"{place.path / INDEX} is damaged: about.sampling holds some of {known}."
        ) from None


def _checked_steps(steps: int) -> int:
    try:
        return check_steps(steps)
    except InputError as error:
        raise InputError(f"num_inference_{error}") from None


def _checked_scale(scale: float) -> float:
    if not 0 <= scale <= 100:  # NaN too
        raise InputError(f"guidance_scale={scale} is not between 0 and 100. Use 1 for none; 3 to 5 is usual.")
    return float(scale)


def _checked_strength(strength: float) -> float:
    if not 0 < strength <= 1:  # NaN too
        raise InputError(f"strength={strength} is not above 0 and at most 1. Use 0.6; 1 keeps nothing.")
    return float(strength)


def _seeds(seed: int | Sequence[int], count: int) -> list[int]:
    seeds = [seed + index for index in range(count)] if isinstance(seed, int) else list(seed)
    if len(seeds) != count:
        raise InputError(
            f"{len(seeds)} seeds for {count} pictures: give one to count up from, or one for each."
        )
    for each in seeds:
        if not 0 <= each <= LARGEST_SEED:
            raise InputError(f"seed={each} is not between 0 and {LARGEST_SEED}. Use 0.")
    return seeds


def _rows(text: TextEmbedding, start: int, count: int, of: int, *, twice: bool) -> TextEmbedding:
    """What `embed` would give for `count` jobs from `start` on, taken from what it gave for all `of` jobs."""
    wanted = len(text.mask) - of  # the negative prompts come first
    offsets = [0, wanted] if twice else [wanted]
    rows = [offset + number for offset in offsets for number in range(start, start + count)]
    longest = int(text.mask[rows].sum(1).max())
    return TextEmbedding(text.embeddings[rows, :longest], text.mask[rows, :longest])


def _padded(text: TextEmbedding, length: int) -> tuple[Tensor, Tensor]:
    missing = length - text.mask.shape[1]
    pad = torch.nn.functional.pad
    return pad(text.embeddings, (0, 0, 0, missing)), pad(text.mask, (0, missing))


def _as(images: Tensor, output_type: OutputType) -> list[Image.Image] | Any:
    if output_type == "pil":
        return [to_picture(image) for image in images]
    if output_type == "np":
        return (images / 2 + 0.5).movedim(1, -1).cpu().numpy()
    return images
