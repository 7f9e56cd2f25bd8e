"""`lineardit train`: run a recipe."""

import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from lineardit.cli.app import INTERRUPTED
from lineardit.cli.options import KeepFreed, Kernels
from lineardit.errors import LineardiTError

if TYPE_CHECKING:
    from lineardit.config.files import Recipe
    from lineardit.training.distributed import Launch


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
    kernels: Kernels = "auto",
    keep_freed: KeepFreed = True,
    explain: Annotated[
        bool, typer.Option("--explain", help="Print every field and what it means; train nothing.")
    ] = (False),
    plan: Annotated[
        bool, typer.Option("--plan", help="Print memory per GPU and sharding; train nothing.")
    ] = False,
    nodes: Annotated[int, typer.Option(help="Machines that a plan is made for.")] = 1,
    gpus: Annotated[int, typer.Option(help="GPUs per machine that a plan is made for.")] = 1,
) -> None:
    """Train what a recipe describes, writing checkpoints, samples and the finished model to one folder.

    Under torchrun every process runs this, and they train together: torchrun --nproc-per-node 8 -m lineardit
    train RECIPE.
    """
    from lineardit.config.files import explain as explained
    from lineardit.config.files import read_run

    run = read_run(recipe, overrides or [])
    if explain:
        typer.echo(explained(run), nl=False)
        return
    if plan:
        from lineardit.cli.training_memory import print_plan

        print_plan(run, nodes, gpus)
        return
    from lineardit.kernels import native
    from lineardit.kernels.allocator import keep_freed_memory
    from lineardit.training.distributed import read_launch

    if keep_freed:
        keep_freed_memory()
    native.use(kernels)
    folder, launch = output or Path("runs") / recipe.stem, read_launch(os.environ)
    if launch is None:
        _train(run, folder, resume, device)
    else:
        _train_together(run, folder, resume, device, launch)


def _train(run: "Recipe", folder: Path, resume: bool, device: str) -> None:
    from lineardit.config.detector import DetectorRun
    from lineardit.training.runs import start, train_detector

    if isinstance(run, DetectorRun):
        from lineardit.evaluation.detector import SceneDetector

        outcome = train_detector(run, SceneDetector, folder, resume=resume, device=device)
        assert isinstance(outcome.average, SceneDetector)
        place = folder / "model"
        outcome.average.save(place, {"steps_trained": outcome.step})
    else:
        place = start(run, folder, resume=resume, device=device)
    typer.echo(f"written: {place}")


def _train_together(run: "Recipe", folder: Path, resume: bool, device: str, launch: "Launch") -> NoReturn:
    """Train as one process of a job, then end this process at once.

    gloo's threads abort the interpreter's ordinary end in a share of the runs, long after all is written.
    """
    import torch

    from lineardit.training import distributed
    from lineardit.training.runs import pick_device

    code = 0
    try:
        if device == "auto" and torch.cuda.is_available():
            device = f"cuda:{launch.local_rank}"
        distributed.join(launch, pick_device(device), run.train.timeout_minutes)
        if launch.rank:
            distributed.pass_gate()
        _train(run, folder, resume, device)
    except distributed.Finished:
        pass
    except LineardiTError as error:
        sys.stderr.write(f"error: process {launch.rank + 1} of {launch.size}: {error}\n")
        code = error.exit_code
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
