"""`lineardit bulk`: a file of prompts becomes a folder of pictures, on as many processes as there are."""

import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from lineardit.cli.options import KeepFreed, Kernels
from lineardit.errors import InputError, MissingExtraError, OutputError

if TYPE_CHECKING:
    from PIL.Image import Image

    from lineardit.pipeline import Pipeline, Settings

KEYS = ("negative_prompt", "seed", "height", "width", "num_inference_steps", "guidance_scale", "sampler")
"""What a line of a .jsonl file may say besides its prompt."""


class Task(NamedTuple):
    """A picture, and the file that it becomes."""

    job: "Settings"
    place: Path


class Share(NamedTuple):
    """Which part of the work is this process's, by the environment that torchrun gives."""

    rank: int
    of: int
    on_machine: int
    """Rank among the processes of this machine."""

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> "Share":
        """One of one where nothing is said."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        rank, of, local = (
            int(environment.get(name, usual)) for name, usual in zip(names, "010", strict=True)
        )
        return cls(rank, of, local)


def bulk(
    prompts: Annotated[
        Path,
        typer.Argument(help="A .txt file with a prompt on each line, or .jsonl with prompt and settings."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="A folder.")],
    model: Annotated[
        str | None,
        typer.Option(help="A folder or a hub id; the bundled model unless given.", show_default=False),
    ] = None,
    height: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    num_inference_steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="How strictly to follow; 1 is off.")] = None,
    negative_prompt: Annotated[str, typer.Option(help="What to lead away from.")] = "",
    seed: Annotated[int, typer.Option(help="Of the first line; each further line has the next.")] = 0,
    sampler: Annotated[str | None, typer.Option(help="The model's own unless given.")] = None,
    dtype: Annotated[str, typer.Option(help="fp32, bf16, fp16 or auto.")] = "fp32",
    device: Annotated[
        str, typer.Option(help="auto: under torchrun each process takes its own GPU.")
    ] = "auto",
    kernels: Kernels = "auto",
    keep_freed: KeepFreed = True,
    batch: Annotated[int, typer.Option(help="Pictures of one size drawn together on a GPU.")] = 8,
    force: Annotated[bool, typer.Option("--force", help="Draw again what is there already.")] = False,
    ray: Annotated[bool, typer.Option("--ray", help="Draw on a Ray cluster; this process writes.")] = False,
    ray_address: Annotated[
        str | None, typer.Option(help="Of a running cluster, or auto; one is started here unless given.")
    ] = None,
    actors: Annotated[
        int | None, typer.Option(help="On Ray: processes that draw; one for each GPU unless given.")
    ] = None,
) -> None:
    """Draw a file of prompts. Started again it goes on where it was: what is there is not drawn again.

    On several processes: torchrun --no-python --nproc-per-node 4 lineardit bulk prompts.txt -o pictures
    """
    if batch < 1:
        raise InputError(f"batch={batch} is not a positive number. Use 1 or more.")
    usual = {
        "negative_prompt": negative_prompt, "height": height, "width": width, "sampler": sampler,
        "num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale,
    }  # fmt: skip
    lines = [{**usual, "seed": seed + number, **line} for number, line in enumerate(read_prompts(prompts))]
    if ray and find_spec("ray") is None:
        raise MissingExtraError("ray", "ray", "lineardit bulk --ray")
    share = Share(0, 1, 0) if ray else Share.read(os.environ)

    from lineardit.kernels import native
    from lineardit.kernels.allocator import keep_freed_memory
    from lineardit.pipeline import Pipeline

    if ray:
        # Only to know the model's own settings: nothing is drawn here.
        tasks = _tasks(Pipeline.from_pretrained(model, device="cpu"), lines, output)
    else:
        if keep_freed:
            keep_freed_memory()
        native.use(kernels)
        pipe = Pipeline.from_pretrained(model, device=_own(device, share), dtype=dtype)
        pipe.pack()
        tasks = _tasks(pipe, lines, output)
    _make(output)
    left = [task for task in tasks[share.rank :: share.of] if force or not is_drawn(task)]
    if ray:
        from lineardit.cli.bulk_ray import Loads, drawn_on_ray

        loads = Loads(model, device, dtype, kernels, keep_freed)
        drawn = drawn_on_ray(left, loads, address=ray_address, actors=actors, batch=batch)
    else:
        drawn = _drawn_here(pipe, left, batch)
    with _bar(share, tasks, left) as advance:
        for task, content in drawn:
            write_whole(task.place, content)
            advance()
    there = len(tasks[share.rank :: share.of]) - len(left)
    typer.echo(f"rank {share.rank} of {share.of}: {len(left)} drawn, {there} were there", err=True)


def read_prompts(file: Path) -> list[dict[str, Any]]:
    """The lines of a file, each with its prompt and what else it says. Raises `InputError`."""
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        raise InputError(f"{file} cannot be read as a text. Give a .txt or .jsonl file of prompts.") from None
    numbered = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not numbered:
        raise InputError(f"{file} has no lines. Write a prompt on each.")
    if file.suffix != ".jsonl":
        return [{"prompt": line.strip()} for _, line in numbered]
    return [_parsed(f"{file}:{number}", line) for number, line in numbered]


def _parsed(where: str, line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("prompt"), str):
        raise InputError(f'{where} is no JSON object with a prompt. Write {{"prompt": "a cat"}}.')
    unknown = [key for key in found if key not in (*KEYS, "prompt")]
    if unknown:
        raise InputError(f"{where} has the unknown key {unknown[0]}. Known are prompt, {', '.join(KEYS)}.")
    return found


def _tasks(pipe: "Pipeline", lines: Sequence[Mapping[str, Any]], output: Path) -> list[Task]:
    """All pictures with all their settings, checked before any of them is drawn."""
    tasks = []
    for number, line in enumerate(lines):
        try:
            (job,) = pipe.plan(**line)
        except InputError as error:
            raise InputError(f"prompt {number + 1}: {error}") from None
        except TypeError:
            raise InputError(f"prompt {number + 1}: a setting is of the wrong kind.") from None
        tasks.append(Task(job, output / f"{number:06d}-{job.seed}.png"))
    return tasks


def is_drawn(task: Task) -> bool:
    """Whether the picture is there already. Raises `OutputError` if another one is in its place."""
    from lineardit.interop.png_text import read_png_text

    if not task.place.exists():
        return False
    try:
        found = read_png_text(task.place).settings
    except InputError:
        found = None
    wanted = json.loads(json.dumps(asdict(task.job)))
    if found is None or {**found, "version": None} != {**wanted, "version": None}:
        raise OutputError(
            f"{task.place} was drawn from another prompt or with other settings. "
            "Give another folder, or add --force."
        )
    return True


def batches(tasks: Sequence[Task], most: int) -> Iterator[list[Task]]:
    """Neighbours of one size, step count and sampler, up to `most` at a time."""

    def kind(task: Task) -> tuple[object, ...]:
        job = task.job
        return job.height, job.width, job.num_inference_steps, job.sampler, job.guidance_scale != 1

    for _, alike in groupby(tasks, key=kind):
        group = list(alike)
        yield from (group[start : start + most] for start in range(0, len(group), most))


def _drawn_here(pipe: "Pipeline", tasks: Sequence[Task], batch: int) -> Iterator[tuple[Task, bytes]]:
    for group in batches(tasks, 1 if pipe.device.type == "cpu" else batch):
        pictures = pipe.draw([task.job for task in group]).images
        yield from ((task, as_png(picture, task.job)) for task, picture in zip(group, pictures, strict=True))


def as_png(picture: "Image", job: "Settings") -> bytes:
    """The file, with all its settings."""
    from importlib.metadata import version

    from lineardit.interop.png_text import png_text

    file = io.BytesIO()
    picture.save(file, "PNG", pnginfo=png_text({**asdict(job), "version": version("lineardit")}))
    return file.getvalue()


def write_whole(place: Path, content: bytes) -> None:
    """A whole file or none: a name that is there is a picture that is finished. Raises `OutputError`."""
    temporary = place.with_name(f".{place.name}.part")
    try:
        temporary.write_bytes(content)
        temporary.replace(place)
    except OSError as error:
        raise OutputError(f"{place} was not written: {error.strerror or error}.") from None


def _make(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{output} cannot be written to: {error.strerror or error}.") from None


def _own(device: str, share: Share) -> str:
    """The GPU of this process, where there are several processes on a machine with GPUs."""
    import torch

    if device != "auto" or share.of == 1 or not torch.cuda.is_available():
        return device
    return f"cuda:{share.on_machine % torch.cuda.device_count()}"


class _bar:
    """A bar of the first process over the pictures of all, by the files that are there."""

    def __init__(self, share: Share, tasks: Sequence[Task], left: Sequence[Task]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        self._of, self._places = share.of, [task.place.name for task in tasks]
        self._folder = tasks[0].place.parent
        columns = (TextColumn("drawing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(
            *columns, console=console, disable=share.rank > 0 or not console.is_terminal, transient=True
        )
        done = self._there() if share.of > 1 else len(tasks) - len(left)
        self._task = self._progress.add_task("drawing", total=len(tasks), completed=done)

    def __enter__(self) -> Callable[[], None]:
        self._progress.start()
        return self._advance

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def _advance(self) -> None:
        if self._progress.disable:
            return
        if self._of == 1:
            self._progress.advance(self._task)
        else:
            self._progress.update(self._task, completed=self._there())

    def _there(self) -> int:
        found = {entry.name for entry in os.scandir(self._folder)} if self._folder.is_dir() else set()
        return sum(name in found for name in self._places)
