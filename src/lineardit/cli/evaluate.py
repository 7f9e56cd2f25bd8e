"""`lineardit evaluate`: measure what a model draws, and what its autoencoder keeps."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from lineardit.errors import InputError, OutputError

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.table import Table

    from lineardit.autoencoder.model import Autoencoder
    from lineardit.data.emoji_scenes import EmojiScenes
    from lineardit.pipeline import Pipeline

SHOWN = 36
"""Answers on a contact sheet."""
SHEET_COLUMNS = 8
"""Pictures above their reconstructions."""


class Measured(NamedTuple):
    """What is printed and written."""

    facts: dict[str, Any]
    sheet: "Image"
    table: "Table"


def evaluate(
    what: Annotated[
        Literal["scenes", "reconstruction"],
        typer.Argument(help="scenes: is in the pictures what was asked for. reconstruction: PSNR and SSIM."),
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
    num_inference_steps: Annotated[int, typer.Option(help="Steps per picture.")] = 20,
    guidance_scale: Annotated[
        float | None, typer.Option(help="How closely to follow the prompt; the model's own unless given.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Scenes are those of this seed; picture i is seed + i.")] = 1000,
    batch_size: Annotated[int, typer.Option(help="Pictures generated at once.")] = 16,
    detector: Annotated[
        Path | None, typer.Option(help="Folder of the detector; the one that ships unless given.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder for the numbers and a contact sheet.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Measure a model on emoji scenes, beside what the detector finds in drawings of the same scenes."""
    if count < 1:
        raise InputError(f"count={count}: measure at least one scene.")
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}: generate at least one picture at once.")
    if output is not None:
        _check_writable(output)
    from lineardit.config.scenes import SceneConfig
    from lineardit.data.emoji_scenes import EmojiScenes

    config = SceneConfig() if objects is None else SceneConfig(objects=objects)
    scenes = EmojiScenes(config, seed, split, phrasing=phrasing)
    if what == "scenes":
        settings: dict[str, Any] = {"num_inference_steps": num_inference_steps}
        if guidance_scale is not None:
            settings["guidance_scale"] = guidance_scale
        measured = _scenes(model, detector, scenes, count, batch_size, settings)
    else:
        measured = _reconstruction(model, scenes, count, batch_size)
    text = json.dumps({"what": what, "model": model or "bundled", **measured.facts}, indent=1)
    if output is not None:
        _write(output, what, text, measured.sheet)
    if as_json:
        typer.echo(text)
        return
    from rich.console import Console

    Console().print(measured.table)
    if output is not None:
        typer.echo(f"{output / what}.json, {output / what}.png")


def _scenes(
    model: str | None,
    detector_folder: Path | None,
    scenes: "EmojiScenes",
    count: int,
    batch_size: int,
    settings: dict[str, Any],
) -> Measured:
    from lineardit.evaluation.detector import SceneDetector
    from lineardit.evaluation.scenes import Answer, answer_sheet, answers, check_names, compare, questions

    detector = SceneDetector.load(detector_folder)
    check_names(scenes, detector)
    pipe = _pipeline(model)

    def generate(prompts: Sequence[str], seeds: Sequence[int]) -> Any:
        return pipe(list(prompts), seed=list(seeds), output_type="pt", **settings).images

    asked = questions(scenes, count, scenes.seed)
    answered: list[Answer] = []
    with _progress(count) as advance:
        for answer in answers(asked, generate, detector, batch_size=batch_size):
            answered.append(answer)
            advance()
    score = compare(scenes, asked, answered, detector)
    facts = {**score.as_json(), "settings": settings}
    return Measured(facts, answer_sheet(answered[:SHOWN]), score.table())


def _reconstruction(model: str | None, scenes: "EmojiScenes", count: int, batch_size: int) -> Measured:
    import torch

    from lineardit.data.pictures import contact_sheet
    from lineardit.evaluation.reconstruction import score_reconstruction

    autoencoder = _autoencoder(model)
    score = score_reconstruction(autoencoder, scenes, count, batch_size=batch_size)
    shown = min(count, SHEET_COLUMNS)
    truth = scenes.draw([scenes.scene(index) for index in range(shown)])
    first = next(autoencoder.parameters())
    with torch.no_grad():
        images = autoencoder.decode(autoencoder.encode(truth.to(first.device, first.dtype)))
    sheet = contact_sheet(torch.cat([truth, images.float().cpu()]), columns=shown)
    return Measured({**score.as_json(), "split": scenes.split, "seed": scenes.seed}, sheet, score.table())


def _pipeline(model: str | None) -> "Pipeline":
    from lineardit.pipeline import Pipeline

    return Pipeline.from_pretrained(model)


def _autoencoder(model: str | None) -> "Autoencoder":
    """Of a folder of ours, in which there may be no more than that, or of any model."""
    from lineardit.interop.native import INDEX, load_autoencoder

    if model is not None and (Path(model) / INDEX).is_file():
        return load_autoencoder(Path(model))
    return _pipeline(model).autoencoder


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
    """Before the hours of work, not after them."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise OutputError(f"{folder} cannot be written: {place} is no folder that you may write to.")


def _write(folder: Path, name: str, text: str, sheet: "Image") -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(text + "\n", "utf-8")
        sheet.save(folder / f"{name}.png")
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror or error}.") from error
