"""What requests may say, and the check of it against the model and the limits, before any work."""

import re
import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lineardit.config.serving import Limits
from lineardit.config.steps import STRENGTH, steps_drawn
from lineardit.serving.device import Facts
from lineardit.serving.failures import invalid
from lineardit.serving.ticket import Picture, Ticket

LARGEST_SEED = 2**63 - 1
DRAWN_SEEDS = 2**32
"""Seeds that the server draws stay below, so that every program can hold them."""

PictureFormat = Literal["png", "jpeg", "webp"]
LONGEST_SIDES: Mapping[PictureFormat, int] = {"jpeg": 65_500, "webp": 16_383}
"""Pixels of a side that a file can have, as its library writes it; a PNG's are more than anybody draws."""
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
Scale = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Strength = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]


class ImageRequest(BaseModel):
    """The body of OpenAI's `POST /v1/images/generations`, and what we take beyond it.

    An unknown field is an error, since it would have no effect.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str
    """What to draw."""
    model: str | None = None
    """The name that `GET /v1/models` gives, or nothing."""
    n: Annotated[int, Field(ge=1)] | None = None
    """Pictures; the first has the seed, each further one the next."""
    size: Annotated[str, Field(max_length=20)] | None = None
    """WIDTHxHEIGHT in pixels, or auto."""
    output_format: PictureFormat | None = None
    """png unless given. Only a PNG keeps its settings."""
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    """Quality of a JPEG or WebP."""
    stream: bool | None = None
    """Answer in events."""
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = None
    """Unfinished pictures on the way, in a stream."""
    response_format: Literal["b64_json"] | None = None
    background: Literal["auto", "opaque"] | None = None
    quality: Literal["auto", "standard", "low", "medium", "high", "xhigh", "max", "hd"] | None = None
    """Taken and without effect: `num_inference_steps` decides."""
    moderation: Literal["auto", "low"] | None = None
    """Taken and without effect: nothing is moderated."""
    user: Annotated[str, Field(max_length=256)] | None = None
    """Taken and without effect."""
    negative_prompt: str | None = None
    """Ours: what to lead away from."""
    seed: Seed | None = None
    """Ours: drawn by the server unless given."""
    num_inference_steps: Annotated[int, Field(ge=1)] | None = None
    """Ours."""
    guidance_scale: Scale | None = None
    """Ours: 1 is off."""
    sampler: Annotated[str, Field(max_length=20)] | None = None
    """Ours: one of those that `GET /v1/models` lists."""
    progress: bool | None = None
    """Ours: in a stream, also tell the place in the queue and every step, with a small preview."""


class ImageReference(BaseModel):
    """One of the `images` of an edit."""

    model_config = ConfigDict(extra="forbid", strict=True)

    image_url: str
    """A data URL with a PNG, JPEG or WebP file in base64; nothing is ever fetched from an address."""


class EditRequest(ImageRequest):
    """The body of OpenAI's `POST /v1/images/edits` in JSON: a picture to start from."""

    images: Annotated[list[ImageReference], Field(min_length=1, max_length=1)]
    """Exactly one."""
    strength: Strength | None = None
    """Ours: how much of it is drawn anew, above 0 and at most 1; 0.6 unless given."""


class TextToImage(BaseModel):
    """The body of AUTOMATIC1111's `POST /sdapi/v1/txt2img`.

    Of its many fields, those that would change the picture in a way that is not ours must be off; the rest is
    ignored, as it is there.
    """

    model_config = ConfigDict(extra="ignore", strict=True)

    prompt: str = ""
    negative_prompt: str | None = None
    seed: Annotated[int, Field(ge=-1, le=LARGEST_SEED)] | None = None
    steps: Annotated[int, Field(ge=1)] | None = None
    cfg_scale: Scale | None = None
    width: Annotated[int, Field(ge=1)] | None = None
    height: Annotated[int, Field(ge=1)] | None = None
    sampler_name: Annotated[str, Field(max_length=40)] | None = None
    sampler_index: Annotated[str, Field(max_length=40)] | None = None
    batch_size: Annotated[int, Field(ge=1)] | None = None
    n_iter: Annotated[int, Field(ge=1)] | None = None
    send_images: bool | None = None
    save_images: Literal[False] | None = None
    enable_hr: Literal[False] | None = None
    tiling: Literal[False] | None = None
    restore_faces: Literal[False] | None = None
    styles: Annotated[list[str], Field(max_length=0)] | None = None
    subseed_strength: Annotated[float, Field(ge=0, le=0)] | None = None
    alwayson_scripts: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    script_name: Literal[""] | None = None
    override_settings: dict[str, Any] | None = None
    """Of it, `sd_model_checkpoint` names one of the models."""


class ImageToImage(TextToImage):
    """The body of AUTOMATIC1111's `POST /sdapi/v1/img2img`."""

    init_images: Annotated[list[str], Field(min_length=1, max_length=1)]
    """Exactly one, in base64; a data URL is taken as well."""
    denoising_strength: Strength | None = None
    """How much of it is drawn anew; 0.75 unless given, as there."""
    resize_mode: Literal[0, 1] | None = None
    """0 stretches the picture to width and height, 1 cuts it; 0 unless given, as there."""
    mask: None = None


class PngRequest(BaseModel):
    """The body of AUTOMATIC1111's `POST /sdapi/v1/png-info`."""

    model_config = ConfigDict(extra="ignore", strict=True)

    image: str
    """A PNG file in base64; a data URL is taken as well."""


class Wish(BaseModel):
    """A request in our own words; None leaves a choice to the model."""

    prompt: str
    negative_prompt: str = ""
    count: int = 1
    width: int | None = None
    height: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    sampler: str | None = None
    seed: int | None = None
    model: str | None = None
    strength: float | None = None
    """Given where there is a picture to start from."""
    stretches: bool = False
    """Whether that picture is stretched to another shape, rather than cut."""
    picture_format: PictureFormat = "png"
    """Of the files that are answered."""


# Samplers as AUTOMATIC1111 calls them, without blanks and in small letters.
_THEIR_SAMPLERS: Mapping[str, str | None] = {"dpm++2m": "dpm++", "automatic": None, "": None}
_THEIR_STRENGTH = 0.75
_SIZE = re.compile(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", re.ASCII)


def openai_wish(request: ImageRequest) -> Wish:
    """What a request of OpenAI's asks for. Raises `Failure`."""
    if request.partial_images and not request.stream:
        raise invalid("partial_images", "partial_images needs stream=true.")
    width = height = None
    if request.size not in (None, "auto"):
        match = _SIZE.fullmatch(request.size or "")
        if match is None:
            raise invalid("size", "size is WIDTHxHEIGHT in pixels, such as 1024x768, or auto.")
        width, height = int(match[1]), int(match[2])
    return Wish(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt or "",
        count=request.n or 1,
        width=width,
        height=height,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        sampler=request.sampler,
        seed=request.seed,
        model=request.model,
        strength=(request.strength or STRENGTH) if isinstance(request, EditRequest) else None,
        picture_format=request.output_format or "png",
    )


def a1111_wish(request: TextToImage) -> Wish:
    """What a request of AUTOMATIC1111's asks for. Raises `Failure`."""
    model = (request.override_settings or {}).get("sd_model_checkpoint")
    if not isinstance(model, str | None):
        raise invalid("override_settings", "override_settings.sd_model_checkpoint is the name of a model.")
    over = request if isinstance(request, ImageToImage) else None
    name = (request.sampler_name or request.sampler_index or "").lower().replace(" ", "")
    return Wish(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt or "",
        count=(request.batch_size or 1) * (request.n_iter or 1),
        width=request.width,
        height=request.height,
        num_inference_steps=request.steps,
        guidance_scale=request.cfg_scale,
        sampler=_THEIR_SAMPLERS.get(name, name),
        seed=None if request.seed in (None, -1) else request.seed,
        model=model or None,
        strength=None if over is None else over.denoising_strength or _THEIR_STRENGTH,
        stretches=over is not None and not over.resize_mode,
    )


def ticket_for(
    wish: Wish,
    facts: Facts,
    limits: Limits,
    *,
    shape: tuple[int, int] | None = None,
    partials: int = 0,
    previews: bool = False,
) -> Ticket:
    """The pictures of a request, each with all of its settings, or the `Failure` that says what is wrong.

    `shape` is width and height of a picture to start from: its ratio holds where no size is asked for.
    """
    _check_text("prompt", wish.prompt, limits)
    _check_text("negative_prompt", wish.negative_prompt, limits)
    if not wish.prompt.strip():
        raise invalid("prompt", "The prompt is empty. Say what to draw.")
    usual = (facts.size, facts.size) if shape is None else _of_ratio(shape, facts)
    width, height = wish.width or usual[0], wish.height or usual[1]
    steps = wish.num_inference_steps or facts.num_inference_steps
    scale = facts.guidance_scale if wish.guidance_scale is None else wish.guidance_scale
    if width % facts.unit or height % facts.unit:
        raise invalid("size", f"Width and height are multiples of {facts.unit} pixels.")
    if width * height > limits.pixels:
        raise invalid("size", f"A picture has at most {limits.pixels} pixels.")
    longest = LONGEST_SIDES.get(wish.picture_format)
    if longest is not None and max(width, height) > longest:
        raise invalid("size", f"A {wish.picture_format} has at most {longest} pixels a side. Ask for a png.")
    if wish.count > limits.pictures:
        raise invalid("n", f"A request is for at most {limits.pictures} pictures.")
    if steps > limits.steps:
        raise invalid("num_inference_steps", f"A picture takes at most {limits.steps} steps.")
    if width * height * steps * wish.count > limits.work:
        raise invalid(
            "n", f"Pixels x steps x pictures are at most {limits.work}. Ask for less of one of them."
        )
    sampler = wish.sampler or facts.sampler
    if sampler not in facts.samplers:
        raise invalid("sampler", f"The sampler is one of {', '.join(facts.samplers)}.")
    seed = secrets.randbelow(DRAWN_SEEDS) if wish.seed is None else wish.seed
    if seed + wish.count - 1 > LARGEST_SEED:
        raise invalid("seed", f"The seed of the last picture is at most {LARGEST_SEED}.")
    ticket = Ticket(previews=previews)
    for index in range(wish.count):
        settings = {
            "prompt": wish.prompt,
            "negative_prompt": wish.negative_prompt,
            "height": height,
            "width": width,
            "num_inference_steps": steps,
            "guidance_scale": float(scale),
            "sampler": sampler,
            "seed": seed + index,
            "model": facts.name,
            "strength": wish.strength,
        }
        drawn = partial_steps(steps_drawn(steps, wish.strength), partials)
        ticket.pictures.append(Picture(ticket, index, settings, partials=drawn))
    return ticket


def _of_ratio(shape: tuple[int, int], facts: Facts) -> tuple[int, int]:
    """Width and height of about the model's number of pixels, in the ratio of a picture, at most 4 to 1."""
    ratio = min(4.0, max(0.25, shape[0] / shape[1]))
    sides = (facts.size * ratio**0.5, facts.size / ratio**0.5)
    width, height = (max(1, round(side / facts.unit)) * facts.unit for side in sides)
    return width, height


def partial_steps(steps: int, wanted: int) -> tuple[int, ...]:
    """After which of the steps an unfinished picture is shown: evenly spread, never after the last."""
    return tuple(sorted({steps * number // (wanted + 1) for number in range(1, wanted + 1)} - {0, steps}))


def _check_text(field: str, text: str, limits: Limits) -> None:
    if len(text) > limits.prompt:
        raise invalid(field, f"A prompt has at most {limits.prompt} characters.")
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise invalid(field, "A prompt has no characters of code 0, and no halves of characters.")
