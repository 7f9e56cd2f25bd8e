"""Memory of real training steps of the published transformers beside what `lineardit info --train` predicts.

python benchmarks/training_memory.py [--only TEXT] [--device cpu|cuda] [--limit GB] [--record]

Random weights, as many blocks as fit below the limit; each row in a process of its own. Where a model has
more blocks, its whole memory follows from two depths: what a block adds is their difference. On a CPU it is
resident memory that is measured, with a C library that returns what is freed; on a GPU what torch allocated.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lineardit.bench.stamp import hardware_stamp, stamp_line
from lineardit.bench.table import markdown_table
from lineardit.config.models import TransformerConfig
from lineardit.config.presets import transformer_preset
from lineardit.config.runs import LoopConfig
from lineardit.kernels.allocator import resident_bytes
from lineardit.training.average import WeightAverage
from lineardit.training.loop import attention_kernels, precision
from lineardit.training.memory import PROMPT_TOKENS, transformer_memory
from lineardit.training.optimizer import build_optimizers
from lineardit.training.parallel import checkpoint_blocks, clip
from lineardit.transformer.model import Transformer

PAGE = Path(__file__).with_name("results") / "training-memory.md"
STRIDE = 32
NEAR = 0.15
"""Most that a prediction may be off, over what was measured."""


class Row(NamedTuple):
    """One kind of step."""

    preset: str
    depth: int
    pixels: int
    batch: int
    optimizer: str = "adamw"
    checkpointed: bool = False

    @property
    def config(self) -> TransformerConfig:
        """The published shape with that many blocks."""
        return transformer_preset(self.preset).model_copy(update={"depth": self.depth})

    def predicted(self, device: str) -> int:
        """Bytes, all in all."""
        memory = transformer_memory(
            self.config,
            LoopConfig.model_validate({"steps": 1, "batch_size": 1, "optimizer": self.optimizer}),
            self.batch,
            self.pixels // STRIDE,
            self.pixels // STRIDE,
            checkpointed=self.checkpointed,
            device=device,
        )
        return memory.total

    def __str__(self) -> str:
        again = ", again" if self.checkpointed else ""
        size = f"{self.depth} blocks, {self.pixels} px, batch {self.batch}"
        return f"{self.preset}, {size}, {self.optimizer}{again}"


ROWS = (
    Row("sana-0.6b", 28, 512, 1, "came", checkpointed=True),
    *(Row("sana-0.6b", depth, 512, 1) for depth in (6, 12)),
    *(Row("sana-0.6b", depth, 512, 4) for depth in (6, 12)),
    *(Row("sana-0.6b", depth, 1024, 1) for depth in (6, 12)),
    *(Row("sana-0.6b", depth, 1024, 4, checkpointed=True) for depth in (6, 12)),
    *(Row("sana-1.6b", depth, 512, 1) for depth in (2, 4)),
    *(Row("sana-1.6b", depth, 1024, 1) for depth in (2, 4)),
    *(Row("sana-1.6b", depth, 1024, 1, "came", checkpointed=True) for depth in (2, 4)),
)


def measure(row: Row, device: torch.device) -> int:
    """Bytes that two whole steps hold at most beyond what the process held before."""
    torch.manual_seed(0)
    torch.nn.functional.linear(torch.ones(64, 64).bfloat16(), torch.ones(64, 64).bfloat16())
    before = 0 if device.type == "cuda" else resident_bytes() or 0
    config, side = row.config, row.pixels // STRIDE
    model = Transformer(config).to(device)
    loop = LoopConfig.model_validate({"steps": 2, "batch_size": row.batch, "optimizer": row.optimizer})
    average = WeightAverage.of(model, loop)
    if row.checkpointed:
        checkpoint_blocks(model)
    optimizers = build_optimizers(model, loop)
    for step in range(2):
        with precision("bf16", device):
            loss = _loss(model, config, row.batch, side, device)
        with attention_kernels(device):
            torch.autograd.backward(loss)
        clip(model, loop.clip)
        for optimizer in optimizers:
            optimizer.step()
        average.update(model, step)
        model.zero_grad(set_to_none=True)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return (resident_bytes("VmHWM") or 0) - before


def _loss(
    model: Transformer, config: TransformerConfig, batch: int, side: int, device: torch.device
) -> Tensor:
    latents = torch.randn(batch, config.latent_channels, side, side, device=device)
    text = torch.randn(batch, PROMPT_TOKENS, config.text_width, device=device)
    mask = torch.ones(batch, PROMPT_TOKENS, dtype=torch.bool, device=device)
    velocity = model(latents, torch.rand(batch, device=device), text, mask)
    return (velocity.float() - torch.randn_like(latents)).square().mean()


def measured(rows: Sequence[Row], device: str, limit: float) -> dict[Row, int]:
    """Bytes of every row that is predicted to stay below the limit, each in a process of its own."""
    found = {}
    # Every block of 64 kB or more is returned as soon as it is freed.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    for row in rows:
        if row.predicted(device) > limit * 1e9:
            sys.stderr.write(f"{row}: left out, more than {limit:g} GB\n")
            continue
        command = [sys.executable, __file__, "--row", json.dumps(list(row)), "--device", device]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            sys.exit(f"{row}: {done.stderr.strip()[-2000:] or done.returncode}")
        found[row] = int(done.stdout)
        sys.stderr.write(f"{row}: {found[row] / 1e9:.2f} GB, {row.predicted(device) / 1e9:.2f} predicted\n")
    return found


def whole(found: dict[Row, int], device: str) -> list[list[str]]:
    """Of kinds of steps that were measured at two depths, the memory of all blocks."""
    cells = []
    for few, more in ((few, more) for few in found for more in found if few.depth < more.depth):
        if few._replace(depth=0) != more._replace(depth=0):
            continue
        every = few._replace(depth=transformer_preset(few.preset).depth)
        each = (found[more] - found[few]) / (more.depth - few.depth)
        cells.append(_cells(every, round(found[few] + (every.depth - few.depth) * each), device))
    return cells


def _cells(row: Row, held: int, device: str) -> list[str]:
    predicted = row.predicted(device)
    numbers = (f"{held / 1e9:.2f}", f"{predicted / 1e9:.2f}", f"{100 * (predicted / held - 1):+.1f} %")
    return [str(row), *numbers]


def page(found: dict[Row, int], device: str) -> str:
    """Both tables under the stamp of the machine."""
    rows = [_cells(row, held, device) for row, held in found.items()]
    extrapolated = whole(found, device)
    off = max(abs(float(cells[-1].removesuffix(" %"))) for cells in (*rows, *extrapolated))
    header = ["step", "measured, GB", "predicted, GB", "prediction off by"]
    return (
        "# Memory of training steps, measured and predicted\n\n"
        f"{stamp_line(hardware_stamp())}; on {device}, bf16 autocast, weights, gradients, moments and "
        f"average in float32, prompts of {PROMPT_TOKENS} tokens, random weights.\n\n"
        "`again`: activations are computed again (`checkpoint_activations`). The published width with fewer "
        f"blocks where all of them do not fit; the largest error is {off:.1f} %, {NEAR:.0%} are allowed.\n\n"
        f"{markdown_table(header, rows)}\n\n"
        "## All blocks, from two depths\n\n"
        "Not run: what a block adds is the difference of the two depths above.\n\n"
        f"{markdown_table(header, extrapolated)}\n"
    )


def main() -> None:
    """Read the command line, measure, print and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--limit", type=float, default=12.0, help="gigabytes that no process may need")
    parser.add_argument("--record", action="store_true", help=f"write {PAGE.name}")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.row:
        sys.stdout.write(f"{measure(Row(*json.loads(given.row)), torch.device(given.device))}\n")
        return
    found = measured([row for row in ROWS if given.only in str(row)], given.device, given.limit)
    text = page(found, given.device)
    sys.stdout.write(text)
    if given.record:
        PAGE.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
