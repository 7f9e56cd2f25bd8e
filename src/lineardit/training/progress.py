"""What a run shows and leaves behind: a progress bar, metrics.jsonl, TensorBoard events, samples."""

import json
import math
import time
from collections.abc import Mapping
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


class Progress:
    """Logs of one run below `folder`. A terminal gets a bar, a file one line per logged step."""

    def __init__(self, folder: Path, steps: int, batch_size: int, start: int) -> None:
        self.folder, self.steps, self.batch_size = folder, steps, batch_size
        self.last: dict[str, float] = {}
        self._console = Console(stderr=True)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=steps, completed=start)
        self._since, self._at, self._skipped = time.monotonic(), start, 0
        self._lines: IO[str]
        self._events: Any = None

    def __enter__(self) -> "Progress":
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lines = (self.folder / "metrics.jsonl").open("a", encoding="utf-8", buffering=1)
        if find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(str(self.folder / "tensorboard"))
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        self._lines.close()
        if self._events is not None:
            self._events.close()

    def advance(
        self, step: int, losses: Mapping[str, Tensor], norm: float, learning_rate: float | None
    ) -> None:
        """Count one step; log it when a learning rate is given."""
        self._bar.update(self._task, completed=step)
        if learning_rate is None:
            return
        now = time.monotonic()
        rate = (step - self._at) * self.batch_size / max(now - self._since, 1e-9)
        self._since, self._at = now, step
        self.last = {name: float(value.detach()) for name, value in losses.items()}
        row = {**self.last, "gradient_norm": norm, "learning_rate": learning_rate, "images_per_second": rate}
        facts = {"step": step, "time": time.time(), "skipped": self._skipped}
        # JSON has no NaN: null stands for what is not finite.
        numbers = {name: value if math.isfinite(value) else None for name, value in row.items()}
        self._lines.write(json.dumps(facts | numbers, allow_nan=False) + "\n")
        if self._events is not None:
            for name, value in row.items():
                self._events.add_scalar(name, value, step)
        text = " ".join(f"{name} {value:.4f}" for name, value in self.last.items())
        self._bar.update(self._task, description=f"{text} {rate:.0f} images/s")
        if not self._console.is_terminal:
            left = (self.steps - step) * self.batch_size / max(rate, 1e-9) / 60
            line = f"step {step}/{self.steps} {text} {rate:.1f} images/s {left:.0f} min left"
            self._console.print(line, soft_wrap=True)

    def skipped(self, step: int) -> None:
        """Note a step whose gradient was not finite; its update is left out."""
        self._skipped += 1
        self._console.print(
            f"step {step + 1}: the gradient is not finite, update left out ({self._skipped} so far)"
        )

    def pictures(self, step: int, images: Float[Tensor, "b 3 H W"] | None) -> None:
        """Keep a contact sheet of samples."""
        if images is None:
            return
        sheet = contact_sheet(images)
        (self.folder / "samples").mkdir(exist_ok=True)
        sheet.save(self.folder / "samples" / f"step-{step:08d}.png")
        if self._events is not None:
            self._events.add_image("samples", images.clamp(-1, 1)[0] / 2 + 0.5, step)
