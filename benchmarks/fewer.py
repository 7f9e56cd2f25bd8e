"""A picture with int8 and fewer computations beside diffusers' exact one, on SANA-0.6B's shape.

    python benchmarks/fewer.py                   512 and 1024 pixels, about six minutes
    python benchmarks/fewer.py --pixels 512

writes benchmarks/results/fewer.md. How many steps are guided, and how many reuse the middle blocks, is a
matter of trained weights: it is counted where the bundled model draws held-out scenes with these switches,
whose quality benchmarks/switches.py tells. What each kind of step takes is measured on SANA-0.6B, with the
weights of `lineardit bench peers`, and so are diffusers' step and both decoders.
"""

import argparse
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from lineardit.bench.peers import STEPS, STRIDE, TOKENS, TOLD, TRANSFORMER, LeftOut, Measured, measure_peers
from lineardit.bench.peers_report import picture_seconds
from lineardit.bench.stamp import hardware_stamp, stamp_line
from lineardit.bench.table import markdown_table, significant
from lineardit.config.presets import transformer_preset
from lineardit.config.scenes import SceneConfig
from lineardit.data.emoji_scenes import EmojiScenes
from lineardit.evaluation.scenes import questions
from lineardit.kernels import native
from lineardit.kernels.allocator import keep_freed_memory
from lineardit.nn.int8 import quantize_linears
from lineardit.pipeline import Pipeline
from lineardit.transformer.generation import StepCache
from lineardit.transformer.model import Transformer

RESULT = Path(__file__).parent / "results" / "fewer.md"
INTERVAL, CACHE = (0.3, 1.0), 0.1
WHO = ("diffusers", "lineardit, int8")
SEED = 1000
Kind = tuple[int, bool]
"""Branches of a step (2 with guidance), and whether the middle blocks are reused."""


def counted(scenes: int) -> Counter[Kind]:
    """Steps of each kind while the bundled model draws that many scenes."""
    found: Counter[Kind] = Counter()
    through = StepCache.through

    def seen(self: StepCache, before: Tensor, x: Tensor, middle: Callable[[Tensor], Tensor]) -> Tensor:
        reused = self.reused
        out = through(self, before, x, middle)
        found[len(x), self.reused > reused] += 1
        return out

    pipe = Pipeline.from_pretrained(device="cpu", dtype="bf16")
    pipe.quantize()
    with mock.patch.object(StepCache, "through", seen):
        held_out = EmojiScenes(SceneConfig(), SEED, "held_out", phrasing="train")
        for question in questions(held_out, scenes, SEED):
            options = {"guidance_interval": INTERVAL, "step_cache": CACHE, "num_inference_steps": STEPS}
            pipe(question.prompt, seed=question.seed, **options)
    return found


class Reused(StepCache):
    """Reuses what the middle blocks added once, whatever their input."""

    def through(self, before: Tensor, x: Tensor, middle: Callable[[Tensor], Tensor]) -> Tensor:
        if self._middle is None:
            self._middle = middle(x) - x
        return x + self._middle


def seconds_of(kinds: set[Kind], pixels: int, budget: float) -> dict[Kind, float]:
    """Medians of SANA-0.6B's steps in int8, measured in turn."""
    config = transformer_preset(TRANSFORMER)
    torch.manual_seed(0)
    model = Transformer(config).to(torch.bfloat16).eval()
    quantize_linears(model.blocks)
    side = pixels // STRIDE
    text = torch.randn(2, TOKENS, config.text_width).to(torch.bfloat16)
    read = model.read(text, torch.arange(TOKENS) < torch.tensor(TOLD)[:, None])
    latents = torch.randn(1, config.latent_channels, side, side).to(torch.bfloat16)
    caches = {kind: Reused(1.0) for kind in kinds if kind[1]}

    def step(kind: Kind) -> None:
        given = latents, torch.full((1,), 0.6), read.rows(2 - kind[0], 2)
        model(*given, cache=caches.get(kind))

    taken: dict[Kind, list[float]] = {kind: [] for kind in kinds}
    begin = time.perf_counter()
    while time.perf_counter() - begin < budget or min(map(len, taken.values())) < 4:
        for kind in kinds:
            start = time.perf_counter()
            step(kind)
            taken[kind].append(time.perf_counter() - start)
    return {kind: statistics.median(seconds[1:]) for kind, seconds in taken.items()}


def main() -> None:
    """Count, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pixels", default="512,1024")
    parser.add_argument("--budget", type=float, default=15.0, help="seconds a measurement")
    parser.add_argument("--scenes", type=int, default=20, help="that are drawn to count the steps")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    keep_freed_memory()
    native.use("native")
    with torch.no_grad():
        steps = counted(options.scenes)
        cells: list[list[str]] = []
        kinds_told: list[list[str]] = []
        for pixels in (int(word) for word in options.pixels.split(",")):
            rows: dict[tuple[str, str], Measured] = {}
            for row in measure_peers(WHO, ("step", "decode"), [pixels], "bf16", options.budget, 0):
                if isinstance(row, LeftOut):
                    sys.exit(f"{row.contender}, {row.part}: {row.reason}")
                rows[row.contender, row.part] = row
            pictures = {who: picture_seconds(rows[who, "step"], rows[who, "decode"]) for who in WHO}
            took = seconds_of(set(steps), pixels, 2 * options.budget)
            shares = {kind: STEPS * count / steps.total() for kind, count in steps.items()}
            decode = rows["lineardit, int8", "decode"].seconds
            once = rows["lineardit, int8", "step"].once
            fewer = sum(shares[kind] * took[kind] for kind in steps) + once + decode
            pictures["lineardit, int8, interval and step cache"] = fewer
            first = pictures[WHO[0]]
            cells += [
                [str(pixels), who, significant(each), f"{first / each:.2f}"] for who, each in pictures.items()
            ]
            for kind in sorted(steps, reverse=True):
                guided = "guided" if kind[0] == 2 else "prompt only"
                blocks = "first and last block" if kind[1] else "all blocks"
                seconds = significant(took[kind])
                kinds_told.append([str(pixels), f"{guided}, {blocks}", f"{shares[kind]:.1f}", seconds])
    page = [
        "# A picture with int8 and fewer computations",
        f"`python benchmarks/fewer.py --pixels {options.pixels} --scenes {options.scenes}`; "
        f"{stamp_line(hardware_stamp())}; bf16 but for int8.",
        f"SANA-0.6B's shape with random weights, {STEPS} steps and decoding. The last row of a size has "
        f"`--quantize int8 --guidance-interval {INTERVAL[0]:g},{INTERVAL[1]:g} --step-cache {CACHE:g}`: "
        "the steps of each kind are those of the bundled model on held-out scenes, where "
        "benchmarks/switches.py tells what these switches cost; trained SANA weights may reuse more or less.",
        markdown_table(["pixels", "who", "s a picture", "times the first"], cells),
        "What the last row is made of, beside decoding:",
        markdown_table(["pixels", "step", f"of {STEPS}", "seconds"], kinds_told),
    ]
    options.output.write_text("\n\n".join(page) + "\n", "utf-8")


if __name__ == "__main__":
    main()
