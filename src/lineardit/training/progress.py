"""What a run shows and leaves behind: a progress bar, metrics.jsonl, TensorBoard events, samples."""

import json
import math
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from jaxtyping import Float
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from torch import Tensor

from lineardit.data.pictures import contact_sheet
from lineardit.errors import OutputError
from lineardit.training.waiting import waited


class Progress:
    """Logs of one run below `folder`. A terminal gets a bar, a file one line per logged step.

    Where several processes train together only one of them `speaks`: the others note their losses.
    """

    def __init__(self, folder: Path, steps: int, batch_size: int, start: int, *, speaks: bool = True) -> None:
        self.folder, self.steps, self.batch_size, self.speaks = folder, steps, batch_size, speaks
        self.last: dict[str, float] = {}
        self._console = Console(stderr=True)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not (speaks and self._console.is_terminal),
        )
        self._task = self._bar.add_task("training", total=steps, completed=start)
        self._since, self._at, self._skipped = time.monotonic(), start, 0
        waited()  # what was waited before counts for nothing
        self._lines: IO[str] | None = None
        self._events: Any = None

    def __enter__(self) -> "Progress":
        if not self.speaks:
            return self
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lines = (self.folder / "metrics.jsonl").open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise OutputError(f"{self.folder} cannot be written: {error}.") from None
        if find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(str(self.folder / "tensorboard"))
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if self._lines is not None:
            # What could not be written was reported when it was tried.
            with suppress(OSError):
                self._lines.close()
        if self._events is not None:
            self._events.close()

    def advance(
        self, step: int, losses: Mapping[str, Tensor], norm: float, learning_rate: float | None
    ) -> None:
        """Count one step; log it when a learning rate is given.

        `waiting` is the share of the time since the line before in which steps waited for data.
        """
        self._bar.update(self._task, completed=step)
        if learning_rate is None:
            return
        now = time.monotonic()
        passed = max(now - self._since, 1e-9)
        rate, waiting = (step - self._at) * self.batch_size / passed, waited() / passed
        self._since, self._at = now, step
        self.last = {name: float(value.detach()) for name, value in losses.items()}
        row = {**self.last, "gradient_norm": norm, "learning_rate": learning_rate}
        row |= {"images_per_second": rate, "waiting": waiting}
        if not self.speaks:
            return
        self._write({"step": step, "time": time.time(), "skipped": self._skipped}, row)
        text = " ".join(f"{name} {value:.4f}" for name, value in self.last.items())
        self._bar.update(self._task, description=f"{text} {rate:.0f} images/s")
        if not self._console.is_terminal:
            left = (self.steps - step) * self.batch_size / max(rate, 1e-9) / 60
            line = f"step {step}/{self.steps} {text} {rate:.1f} images/s {left:.0f} min left"
            self._console.print(line, soft_wrap=True)

    def skipped(self, step: int) -> None:
        """Note a step whose gradient was not finite; its update is left out."""
        self._skipped += 1
        if not self.speaks:
            return
        self._console.print(
            f"step {step + 1}: the gradient is not finite, update left out ({self._skipped} so far)"
        )

    def validated(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log what was measured on data that nothing is learned from."""
        self._write(
            {"step": step, "time": time.time()}, {f"validation/{name}": x for name, x in numbers.items()}
        )
        text = " ".join(f"{name} {value:.4f}" for name, value in numbers.items())
        self._console.print(f"step {step}/{self.steps} validation: {text}", soft_wrap=True)

    def _write(self, facts: Mapping[str, int | float], numbers: Mapping[str, float]) -> None:
        """A line of metrics.jsonl, and the numbers as events. Raises OutputError where the disk is full."""
        # JSON has no NaN: null stands for what is not finite.
        row = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        assert self._lines is not None
        try:
            self._lines.write(json.dumps({**facts, **row}, allow_nan=False) + "\n")
        except OSError as error:
            raise OutputError(
                f"{self.folder / 'metrics.jsonl'} cannot be written: {error}. The checkpoints stay: "
                "make room and go on with --resume."
            ) from None
        if self._events is not None:
            for name, value in numbers.items():
                self._events.add_scalar(name, value, int(facts["step"]))

    def pictures(self, step: int, images: Float[Tensor, "b 3 H W"] | None) -> None:
        """Keep a contact sheet of samples."""
        if images is None:
            return
        sheet = contact_sheet(images)
        place = self.folder / "samples" / f"step-{step:08d}.png"
        try:
            place.parent.mkdir(exist_ok=True)
            sheet.save(place)
        except OSError as error:
            raise OutputError(f"{place} cannot be written: {error}. The checkpoints stay.") from None
        if self._events is not None:
            self._events.add_image("samples", images.clamp(-1, 1)[0] / 2 + 0.5, step)
