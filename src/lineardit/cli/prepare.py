"""`lineardit prepare`: pictures of any kind in, checked and encoded training data out."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lineardit.config.data import MOST_PIXELS
from lineardit.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from lineardit.data.survey import Survey

EXAMPLES = 3
"""Files that the table names for each reason."""
CLASSES_SHOWN = 20
"""Classes that have a row of their own."""


def prepare(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Folders of pictures, .tar files of WebDataset or folders of them, .parquet files with "
            "pictures in them, what save_to_disk of datasets wrote, or emoji:COUNT drawn scenes.",
            metavar="SOURCE...",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder to write; without it, pictures are only checked."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="What encodes: a folder or a hub id; the bundled model unless given.", show_default=False
        ),
    ] = None,
    size: Annotated[
        list[int] | None,
        typer.Option(
            help="Pixels per side of square pictures; can be given several times. The model's own "
            "unless given.",
            show_default=False,
        ),
    ] = None,
    max_aspect: Annotated[
        float, typer.Option(help="Longest side over shortest of the most oblong bucket.")
    ] = 2.0,
    step: Annotated[
        int | None,
        typer.Option(
            help="Sides are multiples of this; the pixels per token unless given.", show_default=False
        ),
    ] = None,
    max_enlargement: Annotated[
        float, typer.Option(help="A picture that would have to be enlarged more is too small.")
    ] = 1.5,
    max_pixels: Annotated[
        int, typer.Option(help="A picture that says it has more is never decoded.")
    ] = MOST_PIXELS,
    caption: Annotated[
        str | None,
        typer.Option(
            help="For pictures without a caption, which are left out otherwise.", show_default=False
        ),
    ] = None,
    caption_column: Annotated[
        list[str] | None,
        typer.Option(
            help="Column or JSON key of captions, or NAME=WEIGHT; can be given several times.",
            show_default=False,
        ),
    ] = None,
    classes: Annotated[
        bool,
        typer.Option(
            "--classes",
            help="Keep each picture's class: its column or JSON key class or label, its .cls file, or the "
            "name of its folder. Pictures without one are left out; captions are not needed.",
        ),
    ] = False,
    class_column: Annotated[
        str | None,
        typer.Option(
            help="Column or JSON key of classes; nothing else is looked at then.", show_default=False
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            help="Where to write the whole report as JSON; OUTPUT/report.json unless given.",
            show_default=False,
        ),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(help="Processes that work at a time; one per core unless given.", show_default=False),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
) -> None:
    """Check pictures, lay them into buckets, and write latents and text embeddings for `lineardit train`.

    Bad files are left out, counted and listed; nothing is changed in SOURCE. The same command goes on where
    it was stopped, and does again only what has changed.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from lineardit.config.data import BucketConfig, CheckConfig
    from lineardit.data.checks import CheckLog
    from lineardit.data.labels import ClassRule
    from lineardit.data.ledger import CHECKS, REPORT
    from lineardit.data.shards import write_json
    from lineardit.data.sources import open_source
    from lineardit.data.survey import survey
    from lineardit.interop.bundled import bundled_folder
    from lineardit.kernels.select import inspect_machine
    from lineardit.training.preparation import encode, open_ledger, token_pixels
    from lineardit.training.runs import pick_device

    if processes is not None and processes < 1:
        raise InputError(f"processes={processes} is not a positive number. Use 1 or more.")
    chosen = model or str(bundled_folder())
    place, cores = pick_device(device), inspect_machine().cores
    together = processes or cores
    rule = ClassRule() if classes else None
    if class_column is not None:
        rule = ClassRule((class_column,), folders=False)
    pixels, own_size = token_pixels(chosen, classes=rule is not None)
    step = step or pixels
    if step % pixels:
        raise InputError(f"step={step} is no multiple of {pixels}, the pixels per token. Use {pixels}.")
    buckets = BucketConfig(sizes=tuple(size or [own_size]), max_aspect=max_aspect, step=step)
    checks = CheckConfig(
        max_enlargement=max_enlargement, max_pixels=max_pixels, caption=caption, classes=rule is not None
    )
    columns = dict(_weighted(each) for each in caption_column) if caption_column else None
    source = open_source(sources, columns, rule)
    settings = {"sources": sources, "buckets": buckets.model_dump(mode="json")}
    if rule is not None:
        settings["classes"] = rule._asdict()
    ledger = open_ledger(output, settings) if output is not None else None

    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
    with bar:
        task = bar.add_task("checking", total=len(source))
        log = CheckLog(output / CHECKS) if output is not None else None
        found = survey(
            source, buckets, checks, processes=together, log=log, on_picture=lambda: bar.advance(task)
        )
    for table in tables(found):
        console.print(table)
    whole: dict[str, Any] = {"settings": settings, **found.report()}
    if output is not None or report is not None:
        target = report if report is not None or output is None else output / REPORT
        assert target is not None
        write_json(target, whole)
        console.print(f"every file left out is listed in {target}", soft_wrap=True, markup=False)
    if ledger is None:
        return
    on_cpu = place.type == "cpu"
    with bar:
        task = bar.add_task("encoding", total=len(found.entries))
        outcome = encode(
            found,
            ledger,
            chosen,
            max_pixels=max_pixels,
            processes=together if on_cpu else 1,
            threads=max(1, cores // together) if on_cpu else together,
            device=str(place),
            on_pictures=lambda done, total: bar.update(task, completed=done, total=total),
        )
    for problem in outcome.lost:
        console.print(
            f"left out while encoding: {problem.key}: {problem.reason}", soft_wrap=True, markup=False
        )
    if outcome.cut:
        console.print(f"{outcome.cut} captions are longer than the text encoder reads, and were cut off")
    kept = f", {outcome.shards - outcome.made} of them as they were" if outcome.made < outcome.shards else ""
    typer.echo(f"written: {output} ({outcome.pictures} pictures in {outcome.shards} shards{kept})")


def tables(found: "Survey") -> "list[Table]":
    """What was found: the buckets, the classes where they were asked for, and what is left out or changed,
    with the names of some files."""
    from rich.markup import escape
    from rich.table import Table

    used = Table(
        title=f"{len(found.entries)} of {found.found} can be used", title_justify="left", title_style="bold"
    )
    for heading in ("width", "height", "pictures", "cut off (mean)", "enlarged"):
        used.add_column(heading, justify="right")
    for row in found.report()["buckets"]:
        cropped = f"{row['mean_cropped']:.1%}"
        used.add_row(
            *(str(row[key]) for key in ("width", "height", "pictures")), cropped, str(row["enlarged"])
        )
    shown = [used, *_classes_table(found)]
    rest = Table(title="left out, or changed on the way to RGB", title_justify="left", title_style="bold")
    rest.add_column("what")
    rest.add_column("files", justify="right")
    rest.add_column("such as", overflow="fold")
    for kind, problems in found.kinds().items():
        names = [f"{each.key}{each.reason.removeprefix(kind)}" for each in problems]
        rest.add_row(f"left out: {escape(kind)}", str(len(names)), escape(_some(names)))
    notes = dict(found.notes)
    if found.repeats:
        notes["the same as an earlier one, used again"] = found.repeats
    for note, names in notes.items():
        rest.add_row(note, str(len(names)), escape(_some(names)))
    if found.given:
        rest.add_row("called by --caption", str(found.given), "")
    return [*shown, rest] if rest.row_count else shown


def _classes_table(found: "Survey") -> "list[Table]":
    from rich.markup import escape
    from rich.table import Table

    counts = found.classes()
    if not counts:
        return []
    table = Table(title=f"{len(counts)} classes", title_justify="left", title_style="bold")
    table.add_column("number", justify="right")
    table.add_column("class", overflow="fold")
    table.add_column("pictures", justify="right")
    for number, (name, count) in list(enumerate(counts.items()))[:CLASSES_SHOWN]:
        table.add_row(str(number), escape(name), str(count))
    if len(counts) > CLASSES_SHOWN:
        rest = list(counts.values())[CLASSES_SHOWN:]
        table.add_row("", f"and {len(rest)} more, with {min(rest)} to {max(rest)} pictures", str(sum(rest)))
    return [table]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - EXAMPLES} more" if len(names) > EXAMPLES else ""
    return "\n".join(names[:EXAMPLES]) + more


def _weighted(column: str) -> tuple[str, float]:
    """`short=0.3` as a column and the weight of its captions."""
    name, given, weight = column.rpartition("=")
    if not given:
        return column, 1.0
    try:
        number = float(weight)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1e9:
        raise InputError(f"--caption-column {column}: {weight!r} is no weight. Use {name}=0.5.")
    return name, number
