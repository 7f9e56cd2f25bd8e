"""`lineardit generate`: sentences in, pictures out."""

import re
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lineardit.cli.options import (
    AutoencoderPlace,
    Compile,
    GuidanceInterval,
    KeepFreed,
    Kernels,
    Memory,
    Quantize,
    StepCache,
    TextEncoderPlace,
    interval,
)
from lineardit.cli.sizes import bytes_of
from lineardit.errors import InputError, OutputError

if TYPE_CHECKING:
    from PIL.Image import Image

    from lineardit.pipeline import Settings

LONGEST_NAME = 60
"""Bytes of a prompt in a file name."""


def generate(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(help="What to draw; several sentences give several pictures.", show_default=False),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Folder of a model, official file or hub id; the bundled one unless given.",
            show_default=False,
        ),
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class",
            help="Instead of a sentence: the name or number of what a class-conditional model draws; can be "
            "given several times.",
            show_default=False,
        ),
    ] = None,
    autoencoder: AutoencoderPlace = None,
    text_encoder: TextEncoderPlace = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="A .png file for one picture, or a folder for any number.")
    ] = Path("."),
    height: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    num_inference_steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="How strictly to follow the prompt; 1 is off.")
    ] = None,
    negative_prompt: Annotated[str, typer.Option(help="What to lead away from.")] = "",
    seed: Annotated[int, typer.Option(help="Of the first picture; the next has the next seed.")] = 0,
    num_images: Annotated[int, typer.Option(help="Pictures for each prompt.")] = 1,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="dpm++, euler, heun or scm, of a DDPM model ddim, ddpm or dpm++; its own unless given.",
            show_default=False,
        ),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(help="A LoRA: PLACE, or PLACE:WEIGHT; can be given several times.", show_default=False),
    ] = None,
    controlnet: Annotated[
        str | None,
        typer.Option(help="A ControlNet: a folder, a file or a hub id; the model's own unless given."),
    ] = None,
    control_image: Annotated[
        Path | None, typer.Option(help="What the ControlNet follows: a picture of edges, depth or poses.")
    ] = None,
    control_scale: Annotated[
        float | None, typer.Option(help="How much it counts, 1 unless given; 0 is off.", show_default=False)
    ] = None,
    guidance_interval: GuidanceInterval = "0,1",
    step_cache: StepCache = 0.0,
    quantize: Quantize = None,
    memory: Memory = None,
    kernels: Kernels = "auto",
    compile: Compile = False,
    keep_freed: KeepFreed = True,
    debug_nan: Annotated[
        bool, typer.Option("--debug-nan", help="Name the first layer whose numbers are not finite; slower.")
    ] = False,
    dtype: Annotated[
        str, typer.Option(help="fp32, bf16, fp16 (what lies between layers stays float32) or auto.")
    ] = "fp32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace pictures of the same name.")] = False,
) -> None:
    """Draw pictures. Each PNG keeps prompt, seed and settings; `lineardit info FILE` reads them back."""
    from lineardit.text.prompt import check_prompts

    prompts = [*(prompts or []), *(classes or [])]
    check_prompts(prompts)
    if num_images < 1:
        raise InputError(f"num_images={num_images} is not a positive number. Use 1 or more.")
    weighted = [weighted_lora(each) for each in lora or []]
    guided_times, bound = interval(guidance_interval), None if memory is None else bytes_of(memory)
    if controlnet is not None and control_image is None:
        raise InputError("--controlnet is given without a picture to follow. Add --control-image FILE.")
    if control_scale is not None and control_image is None:
        raise InputError("--control-scale is given without a picture to follow. Add --control-image FILE.")
    places = _places(output, prompts, seed, num_images)
    _check_writable(places, force)

    from rich.console import Console
    from rich.progress import Progress

    from lineardit.data.picture_files import read_picture
    from lineardit.interop.lora import read_lora
    from lineardit.kernels import native
    from lineardit.kernels.allocator import keep_freed_memory, return_freed_memory
    from lineardit.pipeline import Pipeline

    if keep_freed and bound is None:
        keep_freed_memory()
    else:
        return_freed_memory()
    native.use(kernels)
    for source, _ in weighted:
        read_lora(source)  # before the model, which may take minutes to load
    control = None if control_image is None else [read_picture(control_image)]
    followed = None if control is None else 1.0 if control_scale is None else control_scale
    pipe = Pipeline.from_pretrained(
        model,
        autoencoder=autoencoder,
        text_encoder=text_encoder,
        device=device,
        dtype=dtype,
        offload=bound is not None,
    )
    if classes and not pipe.classes:
        raise InputError(f"--class {classes[0]}: {pipe.name} draws what a sentence says. Give a sentence.")
    for source, weight in weighted:
        pipe.load_lora(source, weight)
    if controlnet is not None:
        pipe.load_controlnet(controlnet)
    if quantize is not None:
        pipe.quantize()
    if compile:
        pipe.compile()
    if not debug_nan:  # layers keep the kind that they are told by
        pipe.pack()
    pipe.limit_memory(bound, keep_freed=keep_freed)
    jobs = pipe.plan(
        prompts,
        negative_prompt,
        height=height,
        width=width,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        num_images_per_prompt=num_images,
        seed=seed,
        sampler=sampler,
        controlnet_conditioning_scale=followed,
        guidance_interval=guided_times,
        step_cache=step_cache,
    )
    console = Console(stderr=True)
    with (
        Progress(console=console, disable=not console.is_terminal, transient=True) as bar,
        pipe.watched() if debug_nan else nullcontext(),
    ):
        task = bar.add_task("drawing", total=sum(job.num_inference_steps for job in jobs))
        # One after the other, so that Ctrl-C leaves every finished picture.
        for job, place in zip(jobs, places, strict=True):
            (picture,) = pipe.draw([job], None, control, on_step=lambda _: bar.advance(task)).images
            _write(picture, job, place)
            # As it is: no markup in brackets, no line breaks.
            bar.console.out(f"{place}  seed {job.seed}", highlight=False)


def weighted_lora(lora: str) -> tuple[str, float]:
    """`style:0.5` as a place and a weight; a colon may also be part of a path, or of hf://."""
    place, given, weight = lora.rpartition(":")
    if not given or "/" in weight or Path(lora).exists():
        return lora, 1.0
    try:
        return place, float(weight)
    except ValueError:
        raise InputError(f"--lora {lora}: {weight!r} is no number. Use {place}:0.8.") from None


def _places(output: Path, prompts: list[str], seed: int, num_images: int) -> list[Path]:
    count = len(prompts) * num_images
    if output.suffix.lower() == ".png":
        if count > 1:
            raise InputError(f"{output} is one file for {count} pictures. Give a folder with -o.")
        return [output]
    if output.suffix and not output.is_dir():
        raise InputError(f"{output} has the ending {output.suffix}: pictures are written as .png.")
    names = [f"{_name(prompts[index // num_images])}-{seed + index}.png" for index in range(count)]
    return [output / name for name in names]


def _name(prompt: str) -> str:
    """The prompt as a file name: letters and digits of any script, with dashes between."""
    words = re.sub(r"[\W_]+", "-", prompt.lower()).strip("-") or "picture"
    return words.encode()[:LONGEST_NAME].decode(errors="ignore").rstrip("-")


def _check_writable(places: list[Path], force: bool) -> None:
    """Find out before any work whether the pictures can be written."""
    import os

    folder = places[0].parent
    existing = folder
    try:
        while not existing.exists():
            existing = existing.parent
        taken = [place for place in places if place.exists()]
    except OSError as error:
        raise OutputError(f"{folder} cannot be written to: {error.strerror}.") from None
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise OutputError(f"{folder} cannot be written to: {existing} is not a folder you may write in.")
    if taken and not force:
        raise OutputError(f"{taken[0]} exists. Add --force to replace it, or choose another seed or place.")


def _write(picture: "Image", job: "Settings", place: Path) -> None:
    """Write a whole file or none."""
    import os
    from dataclasses import asdict
    from importlib.metadata import version

    from lineardit.interop.png_text import png_text

    temporary = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        picture.save(temporary, "PNG", pnginfo=png_text({**asdict(job), "version": version("lineardit")}))
        temporary.replace(place)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(f"{place} was not written: {error.strerror or error}.") from None
