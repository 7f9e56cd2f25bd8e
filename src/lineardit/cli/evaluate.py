"""`lineardit evaluate`: measure what a model draws, and what its autoencoder keeps."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from lineardit.cli.options import GuidanceInterval, KeepFreed, Kernels, Quantize, StepCache, interval
from lineardit.errors import InputError, OutputError

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.table import Table
    from torch import Tensor

    from lineardit.autoencoder.model import Autoencoder
    from lineardit.data.emoji_scenes import EmojiScenes
    from lineardit.pipeline import Pipeline

SHOWN = 36
"""Answers on a contact sheet."""
SHEET_COLUMNS = 8
"""Pictures above their reconstructions."""
DISTANCES = {
    "lpips": "LPIPS over VGG-16",
    "filter_distance": "LPIPS' formula over fixed filters; with --lpips FILE it is LPIPS",
    "rfid": "FID between pictures and reconstructions",
    "frechet_filters": "Frechet distance over fixed filters, no FID; with --inception FILE it is rFID",
}
"""What the numbers are, so that none is taken for another."""


class Place(NamedTuple):
    """Which model, and where and in what it computes."""

    model: str | None
    device: str
    dtype: str
    loras: tuple[tuple[str, float], ...] = ()
    """Places and weights."""
    quantize: str | None = None


class Sampling(NamedTuple):
    """How pictures are drawn."""

    num_inference_steps: int | None
    guidance_scale: float | None
    sampler: str | None
    guidance_interval: tuple[float, float]
    step_cache: float


class MeasuredOn(NamedTuple):
    """The pictures that an autoencoder is measured on."""

    batches: "Callable[[], Iterator[Tensor]]"
    facts: dict[str, Any]
    """What is printed of them."""
    description: dict[str, Any]
    """What decides every one of them."""


class Measured(NamedTuple):
    """What is printed and written."""

    facts: dict[str, Any]
    table: "Table"
    sheet: "Image | None" = None


def evaluate(
    what: Annotated[
        Literal["scenes", "reconstruction", "latents"],
        typer.Argument(
            help="scenes: is in the pictures what was asked for. reconstruction: PSNR, SSIM, perceptual and "
            "Frechet distances of the autoencoder. latents: mean and deviation of each channel."
        ),
    ],
    model: Annotated[
        str | None, typer.Option("--model", help="Folder, file or hub id; the bundled model unless given.")
    ] = None,
    count: Annotated[int, typer.Option("--count", help="How many scenes.")] = 200,
    split: Annotated[
        Literal["held_out", "train"],
        typer.Option(help="held_out: compositions that training never has. train: such as it has."),
    ] = "held_out",
    phrasing: Annotated[
        Literal["train", "unseen", "unseen_templates", "unseen_words"],
        typer.Option(help="Sentences as in training, or with templates or words that it never has."),
    ] = "train",
    objects: Annotated[
        int | None, typer.Option(help="Ask for the first so many of the curated objects.")
    ] = None,
    num_inference_steps: Annotated[
        int | None, typer.Option(help="Steps per picture; the model's own unless given.", show_default=False)
    ] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="How closely to follow the prompt; the model's own unless given.")
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(help="dpm++, euler, heun, scm, ddim or ddpm; the model's own unless given.")
    ] = None,
    guidance_interval: GuidanceInterval = "0,1",
    step_cache: StepCache = 0.0,
    quantize: Quantize = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(help="scenes: a LoRA, or LoRA:WEIGHT; can be given several times.", show_default=False),
    ] = None,
    dtype: Annotated[str, typer.Option(help="fp32, bf16, fp16 or auto.")] = "fp32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    kernels: Kernels = "auto",
    keep_freed: KeepFreed = True,
    seed: Annotated[int, typer.Option(help="Scenes are those of this seed; picture i is seed + i.")] = 1000,
    batch_size: Annotated[int, typer.Option(help="Pictures generated at once.")] = 16,
    detector: Annotated[
        Path | None, typer.Option(help="Folder of the detector; the one that ships unless given.")
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(help="reconstruction, latents: a folder of pictures to measure on, instead of scenes."),
    ] = None,
    size: Annotated[
        int, typer.Option(help="With --pictures: pixels that the shorter side is scaled down to.")
    ] = 256,
    lpips: Annotated[
        Path | None,
        typer.Option(help="reconstruction: the published LPIPS weights over VGG-16, as safetensors."),
    ] = None,
    inception: Annotated[
        Path | None,
        typer.Option(
            help="reconstruction: pt_inception-2015-12-05-6726825d.pth; without it there is no FID."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder for the numbers and a contact sheet.")
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(help="latents: write the autoencoder there, scaled so that mean is 0 and deviation 1."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Measure a model on emoji scenes: what it draws, what its autoencoder keeps, how its latents lie."""
    if count < 1:
        raise InputError(f"count={count}: measure at least one scene.")
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}: generate at least one picture at once.")
    if save is not None and what != "latents":
        raise InputError(f"--save goes with latents, not with {what}. Use -o for the numbers.")
    guided_times = interval(guidance_interval)
    _check_goes_with(what, "reconstruction", {"lpips": lpips, "inception": inception})
    if what == "scenes":
        _check_goes_with(what, "reconstruction", {"pictures": pictures})
    drawing = {
        "lora": lora or None,
        "detector": detector,
        "quantize": quantize,
        "sampler": sampler,
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
        "step_cache": step_cache or None,
        "guidance_interval": None if guided_times == (0.0, 1.0) else guided_times,
    }
    _check_goes_with(what, "scenes", drawing)
    if output is not None:
        _check_writable(output)
    from lineardit.cli.generate import weighted_lora
    from lineardit.config.scenes import SceneConfig
    from lineardit.data.emoji_scenes import EmojiScenes
    from lineardit.kernels import native
    from lineardit.kernels.allocator import keep_freed_memory

    if keep_freed:
        keep_freed_memory()
    native.use(kernels)
    config = SceneConfig() if objects is None else SceneConfig(objects=objects)
    scenes = EmojiScenes(config, seed, split, phrasing=phrasing)
    place = Place(model, device, dtype, tuple(weighted_lora(each) for each in lora or ()), quantize)
    if what == "scenes":
        sampling = Sampling(num_inference_steps, guidance_scale, sampler, guided_times, step_cache)
        measured = _scenes(place, detector, scenes, count, batch_size, sampling)
    else:
        measured_on = _measured_on(scenes, pictures, size, count, batch_size)
        if what == "reconstruction":
            measured = _reconstruction(place, measured_on, lpips, inception)
        else:
            measured = _latents(place, measured_on, save)
    model_facts = {"model": model or "bundled", **({"loras": lora} if lora else {})}
    if quantize is not None:
        model_facts["quantize"] = quantize
    text = json.dumps({"what": what, **model_facts, **measured.facts}, indent=1)
    if output is not None:
        _write(output, what, text, measured.sheet)
    if as_json:
        typer.echo(text)
        return
    from rich.console import Console

    Console().print(measured.table)
    if output is not None:
        typer.echo(f"{output / what}.json" + (f", {output / what}.png" if measured.sheet else ""))


def _check_goes_with(what: str, wanted: str, given: Mapping[str, object]) -> None:
    """Refuse options that would change nothing of what is measured."""
    for name, value in given.items():
        if what != wanted and value is not None:
            raise InputError(f"--{name.replace('_', '-')} goes with {wanted}, not with {what}. Leave it out.")


def _scenes(
    place: Place,
    detector_folder: Path | None,
    scenes: "EmojiScenes",
    count: int,
    batch_size: int,
    sampling: Sampling,
) -> Measured:
    from lineardit.evaluation.detector import SceneDetector
    from lineardit.evaluation.scenes import Answer, answer_sheet, answers, check_names, compare, questions

    detector = SceneDetector.load(detector_folder)
    check_names(scenes, detector)
    pipe = _pipeline(place)
    asked = questions(scenes, count, scenes.seed)
    # Checked before any work, and kept beside the numbers with the model's own guidance filled in.
    (planned,) = pipe.plan(asked[0].prompt, seed=asked[0].seed, **sampling._asdict())

    def generate(prompts: Sequence[str], seeds: Sequence[int]) -> Any:
        return pipe(list(prompts), seed=list(seeds), output_type="pt", **sampling._asdict()).images

    answered: list[Answer] = []
    with _progress(count) as advance:
        for answer in answers(asked, generate, detector, batch_size=batch_size):
            # Its batch of pictures should not outlive it, nor those that are not shown.
            shown = answer.image if len(answered) < SHOWN else answer.image[:, :0]
            answered.append(answer._replace(image=shown.clone()))
            advance()
    score = compare(scenes, asked, answered, detector)
    settings = {name: getattr(planned, name) for name in (*Sampling._fields, "height", "width")}
    facts = {**score.as_json(), "settings": settings}
    return Measured(facts, score.table(), answer_sheet(answered[:SHOWN]))


def _measured_on(
    scenes: "EmojiScenes", pictures: Path | None, size: int, count: int, batch_size: int
) -> MeasuredOn:
    from functools import partial

    from lineardit.training.picture_source import folder_batches, scene_batches

    if pictures is None:
        facts: dict[str, Any] = {"split": scenes.split, "seed": scenes.seed}
        return MeasuredOn(
            partial(scene_batches, scenes, count, batch_size=batch_size), facts, scenes.description()
        )
    from lineardit.config.reconstruction import PicturesConfig
    from lineardit.data.picture_folder import PictureFolder

    folder = PictureFolder(PicturesConfig(folder=pictures, size=size), "all")
    facts = {"pictures": str(pictures), "size": size}
    return MeasuredOn(
        partial(folder_batches, folder, count, batch_size=batch_size),
        facts,
        {**facts, "pictures": len(folder)},
    )


def _reconstruction(
    place: Place, measured_on: MeasuredOn, lpips: Path | None, inception: Path | None
) -> Measured:
    import torch

    from lineardit.data.pictures import contact_sheet
    from lineardit.evaluation.inception import Inception
    from lineardit.evaluation.reconstruction import score_reconstruction
    from lineardit.training.perceptual import filter_statistics, perceptual_distance

    autoencoder = _autoencoder(place)
    score = score_reconstruction(
        autoencoder,
        measured_on.batches(),
        distances={"lpips" if lpips else "filter_distance": perceptual_distance(lpips)},
        features={"rfid": Inception.from_file(inception)}
        if inception
        else {"frechet_filters": filter_statistics},
    )
    truth = next(measured_on.batches())[:SHEET_COLUMNS]
    first = next(autoencoder.parameters())
    with torch.no_grad():
        images = autoencoder.decode(autoencoder.encode(truth.to(first.device, first.dtype)))
    sheet = contact_sheet(torch.cat([truth, images.float().cpu()]), columns=len(truth))
    return Measured({**score.as_json(), **measured_on.facts}, score.table(DISTANCES), sheet)


def _latents(place: Place, measured_on: MeasuredOn, save: Path | None) -> Measured:
    from rich.table import Table

    from lineardit.interop.native import save_autoencoder
    from lineardit.training.latents import latent_statistics, with_statistics

    autoencoder = _autoencoder(place)
    count = 0

    def counted() -> "Iterator[Tensor]":
        nonlocal count
        for batch in measured_on.batches():
            count += len(batch)
            yield batch

    mean, deviation = latent_statistics(autoencoder, counted())
    shift, scale = autoencoder.shift.flatten().double().cpu(), autoencoder.scale.flatten().double().cpu()
    columns = {
        "mean": mean,
        "deviation": deviation,
        "scaled mean": (mean - shift) * scale,
        "scaled deviation": deviation * scale,
    }
    rows = {name: values.tolist() for name, values in columns.items()}
    table = Table("channel", *rows, title=f"Latents of {count} pictures")
    for channel, values in enumerate(zip(*rows.values(), strict=True)):
        table.add_row(str(channel), *(f"{value:.3f}" for value in values))
    if save is not None:
        about = {"latents_measured_on": {**measured_on.description, "count": count}}
        save_autoencoder(save, with_statistics(autoencoder, mean, deviation), about=about)
    return Measured({"count": count, **measured_on.facts, **rows}, table)


def _pipeline(place: Place) -> "Pipeline":
    from lineardit.pipeline import Pipeline

    pipe = Pipeline.from_pretrained(place.model, device=place.device, dtype=place.dtype)
    for source, weight in place.loras:
        pipe.load_lora(source, weight)
    if place.quantize is not None:
        pipe.quantize()
    pipe.pack()
    return pipe


def _autoencoder(place: Place) -> "Autoencoder":
    """Of a folder or file of any format, in which there may be no more than that, or of the bundled model."""
    if place.model is None:
        return _pipeline(place).autoencoder
    from lineardit.errors import CheckpointError
    from lineardit.interop.assembly import assemble_autoencoder
    from lineardit.interop.places import open_place
    from lineardit.kernels.select import inspect_machine, select

    chosen = select(inspect_machine(), place.device, place.dtype)
    opened = open_place(place.model)
    if "autoencoder" not in opened.networks:
        raise CheckpointError(f"{opened.path} holds no autoencoder.")
    return assemble_autoencoder(opened, chosen.dtype.name, chosen.torch_device)


@contextmanager
def _progress(count: int) -> Iterator[Callable[[], None]]:
    """A bar on a terminal's standard error; calling what it gives counts one picture."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("generating", total=count)
        yield lambda: bar.advance(task)


def _check_writable(folder: Path) -> None:
    """Before the hours of work, not after them: by writing, since root is told that it may write anywhere."""
    import tempfile

    place = folder
    try:
        while not place.exists() and place != place.parent:
            place = place.parent
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {place}: {error.strerror}.") from None


def _write(folder: Path, name: str, text: str, sheet: "Image | None") -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(text + "\n", "utf-8")
        if sheet is not None:
            sheet.save(folder / f"{name}.png")
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror or error}.") from error
