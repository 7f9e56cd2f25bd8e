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
    from lineardit.training.runs import start

    place = start(run, output or Path("runs") / recipe.stem, resume=resume, device=device)
    typer.echo(f"finished: {place}")
