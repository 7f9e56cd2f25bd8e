"""What each switch that computes less costs in quality, on the scene score, and what it saves in time.

    python benchmarks/switches.py --count 100

writes benchmarks/results/switches.md. One process draws every scene with every switch, one after the other
and each time beginning with another, so that all of them meet the same machine; times are compared picture by
picture with the exact one. The pictures are those of `lineardit evaluate scenes` with the same options.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lineardit.bench.stamp import hardware_stamp, stamp_line
from lineardit.bench.table import markdown_table
from lineardit.config.scenes import SceneConfig
from lineardit.data.emoji_scenes import EmojiScenes
from lineardit.evaluation.detector import SceneDetector
from lineardit.evaluation.scenes import (
    MEASURES,
    Answer,
    Question,
    Rate,
    SceneScore,
    answers,
    compare,
    questions,
    tally,
)
from lineardit.kernels import native
from lineardit.kernels.allocator import keep_freed_memory
from lineardit.pipeline import Pipeline

RESULT = Path(__file__).parent / "results" / "switches.md"


class Switch(NamedTuple):
    """One way to compute less; the fields that differ from the exact way."""

    options: str
    """As the command line takes them."""
    steps: int = 20
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    step_cache: float = 0.0
    quantize: str | None = None


EXACT = Switch("")
SWITCHES = (
    EXACT,
    Switch("--guidance-interval 0.3,1", guidance_interval=(0.3, 1.0)),
    Switch("--guidance-interval 0.1,0.9", guidance_interval=(0.1, 0.9)),
    Switch("--step-cache 0.1", step_cache=0.1),
    Switch("--step-cache 0.2", step_cache=0.2),
    Switch("--num-inference-steps 14", steps=14),
    Switch("--num-inference-steps 10", steps=10),
    Switch("--num-inference-steps 8", steps=8),
    Switch("--quantize int8", quantize="int8"),
    Switch(
        "--quantize int8 --guidance-interval 0.3,1 --step-cache 0.1",
        quantize="int8",
        guidance_interval=(0.3, 1.0),
        step_cache=0.1,
    ),
)


class Drawn(NamedTuple):
    """What one switch made of all scenes."""

    images: list[Tensor]
    """(3 H W) in [-1, 1] each."""
    seconds: list[float]


def pipelines(dtype: str) -> dict[str | None, Pipeline]:
    """The bundled model as it is, and quantized."""
    exact, rounded = (Pipeline.from_pretrained(device="cpu", dtype=dtype) for _ in range(2))
    rounded.quantize()
    return {None: exact, "int8": rounded}


def draw(pipes: Mapping[str | None, Pipeline], asked: Sequence[Question]) -> dict[Switch, Drawn]:
    """Every scene with every switch; the first scene is drawn once more before anything is timed."""
    made = {switch: Drawn([], []) for switch in SWITCHES}
    for switch in SWITCHES:
        picture(pipes[switch.quantize], asked[0], switch)
    for number, question in enumerate(asked):
        for switch in rotated(number):
            start = time.perf_counter()
            image = picture(pipes[switch.quantize], question, switch)
            made[switch].seconds.append(time.perf_counter() - start)
            made[switch].images.append(image)
        sys.stderr.write(f"\r{number + 1} of {len(asked)} scenes")
    sys.stderr.write("\n")
    return made


def rotated(number: int) -> Iterator[Switch]:
    """All switches, from another one on each time."""
    for place in range(len(SWITCHES)):
        yield SWITCHES[(number + place) % len(SWITCHES)]


def picture(pipe: Pipeline, question: Question, switch: Switch) -> Tensor:
    """One picture, from the prompt to its pixels."""
    out = pipe(
        question.prompt,
        seed=question.seed,
        num_inference_steps=switch.steps,
        guidance_interval=switch.guidance_interval,
        step_cache=switch.step_cache,
        output_type="pt",
    )
    image: Tensor = out.images[0]
    return image


def judged(asked: Sequence[Question], drawn: Drawn, detector: SceneDetector) -> list[Answer]:
    """What is right in pictures that were drawn before."""
    by_seed = dict(zip((each.seed for each in asked), drawn.images, strict=True))

    def generate(_: Sequence[str], seeds: Sequence[int]) -> Tensor:
        return torch.stack([by_seed[seed] for seed in seeds])

    return list(answers(asked, generate, detector))


def row(switch: Switch, made: dict[Switch, Drawn], answered: dict[Switch, list[Answer]]) -> list[str]:
    """A line of the table: right of asked for each measure, what changed, the time."""
    drawn, exact = made[switch], made[EXACT]
    pairs = zip(drawn.images, exact.images, strict=True)
    change = statistics.fmean(float((one - other).abs().mean()) * 127.5 for one, other in pairs)
    verdicts = [[answer.right["all right"] for answer in answered[each]] for each in (switch, EXACT)]
    won = sum(one and not other for one, other in zip(*verdicts, strict=True))
    lost = sum(other and not one for one, other in zip(*verdicts, strict=True))
    ratio = statistics.median(one / other for one, other in zip(drawn.seconds, exact.seconds, strict=True))
    rates = tally(answered[switch])
    return [
        f"`{switch.options}`" if switch.options else "exact: 20 steps",
        *(told(rates[measure]) for measure in MEASURES),
        f"{won} / {lost}",
        f"{change:.1f}",
        f"{statistics.median(drawn.seconds):.2f}",
        f"{ratio:.2f}",
    ]


def told(rate: Rate) -> str:
    """`90% (18/20)`, or nothing where nothing was asked."""
    return f"{rate.share:.0%} ({rate.right}/{rate.asked})" if rate.asked else ""


def page(rows: list[list[str]], count: int, seed: int, dtype: str, score: SceneScore) -> str:
    """The whole file; the score is that of the exact pictures."""
    shares = ", ".join(f"{measure} {told(score.drawn[measure])}" for measure in MEASURES)
    low, high = score.generated["all right"].interval()
    last = ["won / lost", "change of a pixel, of 255", "s a picture", "time / exact"]
    return (
        "# What computing less costs\n\n"
        f"`python benchmarks/switches.py --count {count} --seed {seed} --dtype {dtype}`; "
        f"{stamp_line(hardware_stamp())}.\n\n"
        f"The bundled model, DPM-Solver++, {count} held-out scenes with the same noise for every switch, "
        "drawn in turn in one process. Rates are right of asked, as `lineardit evaluate scenes` has it. The "
        f"95 % interval of the exact all right is {low:.0%} to {high:.0%}. Won and lost are scenes that "
        "are all right with the switch and not exactly, or the reverse. Changes are means over the pixels of "
        "all pictures, times are medians, the ratio is the median of that of each picture to its exact one. "
        f"In drawn truth the detector finds: {shares}.\n\n"
        f"{markdown_table(['switch', *MEASURES, *last], rows)}\n"
    )


def main() -> None:
    """Draw, judge, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="scenes")
    parser.add_argument("--seed", type=int, default=1000, help="of the scenes; picture i has seed + i")
    parser.add_argument("--dtype", default="fp32", help="fp32, bf16 or auto")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    keep_freed_memory()
    native.use("auto")
    scenes = EmojiScenes(SceneConfig(), options.seed, "held_out", phrasing="train")
    asked = questions(scenes, options.count, scenes.seed)
    detector = SceneDetector.load(None)
    made = draw(pipelines(options.dtype), asked)
    answered = {switch: judged(asked, made[switch], detector) for switch in SWITCHES}
    rows = [row(switch, made, answered) for switch in SWITCHES]
    exact = compare(scenes, asked, answered[EXACT], detector)
    text = page(rows, options.count, options.seed, options.dtype, exact)
    options.output.write_text(text, "utf-8")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
