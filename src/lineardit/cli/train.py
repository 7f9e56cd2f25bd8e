"""`lineardit train`: run a recipe."""

from pathlib import Path
from typing import Annotated

import typer


def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe, such as recipes/emoji-transformer.toml.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Single keys, such as train.steps=100.", metavar="[KEY=VALUE]..."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder of the run; runs/NAME unless given.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest whole checkpoint.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    explain: Annotated[
        bool, typer.Option("--explain", help="Print every field and what it means; train nothing.")
    ] = (False),
) -> None:
    """Train what a recipe describes, writing checkpoints, samples and the finished model to one folder."""
    from lineardit.config.files import explain as explained
    from lineardit.config.files import read_run

    run = read_run(recipe, overrides or [])
    if explain:
        typer.echo(explained(run), nl=False)
        return
    from lineardit.config.detector import DetectorRun
    from lineardit.training.runs import start, train_detector

    folder = output or Path("runs") / recipe.stem
    if isinstance(run, DetectorRun):
        from lineardit.evaluation.detector import SceneDetector

        outcome = train_detector(run, SceneDetector, folder, resume=resume, device=device)
        assert isinstance(outcome.average, SceneDetector)
        place = folder / "model"
        outcome.average.save(place, {"steps_trained": outcome.step})
    else:
        place = start(run, folder, resume=resume, device=device)
    typer.echo(f"written: {place}")
