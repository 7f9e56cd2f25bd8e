"""Training steps beside those of diffusers: the same weights, batches, loss and optimizer.

python benchmarks/training_step.py [SHAPE ...] [--only A,B] [--steps N] [--rounds R] [--threads T] [--record]
python benchmarks/training_step.py waiting [--record]     the share of a step in which our loop waits for data

Each contender has a process of its own. A speed is told once its loss and gradients, in float32 and under
bfloat16 autocast, were held against the first one's. diffusers' step is that of its training scripts:
autocast, AdamW, clipping, prompts padded to 300 tokens. Ours is the training loop itself: it also keeps an
average of the weights and a log, and pads prompts to the longest of a batch.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lineardit.bench.stamp import hardware_stamp, stamp_line
from lineardit.bench.table import markdown_table, significant
from lineardit.config.files import read_run
from lineardit.config.models import TransformerConfig
from lineardit.config.presets import transformer_preset
from lineardit.config.runs import LoopConfig, TransformerRun
from lineardit.diffusion.objective import FlowMatching
from lineardit.diffusion.times import LogitNormal
from lineardit.interop.diffusers import from_diffusers_transformer
from lineardit.interop.diffusers_config import transformer_config_to_diffusers
from lineardit.kernels import native
from lineardit.kernels.allocator import keep_freed_memory, resident_bytes
from lineardit.training.loop import attention_kernels, precision, train
from lineardit.transformer.model import Transformer

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PADDED = 300
"""Tokens that diffusers' scripts pad the prompts of published models to."""
SEED = 7
NEAR = {"fp32": 1e-4, "bf16": 0.06}
"""Most that loss and gradients may be from the first contender's: length of the difference over length."""
BATCHES = 4
"""Different batches that are trained on in turn."""


class Shape(NamedTuple):
    """What is trained on."""

    config: TransformerConfig
    batch: int
    lengths: tuple[int, int]
    """Tokens of the shortest and the longest prompt."""
    told: str
    padded: int | None = PADDED
    """Tokens that diffusers pads prompts to; the longest of the batch unless given."""


def shapes() -> dict[str, Shape]:
    """By name: SANA-0.6B reduced, at two sizes, and the bundled model's recipe."""
    reduced = transformer_preset("sana-0.6b").model_copy(update={"width": 576, "depth": 6})
    recipe = read_run(ROOT / "recipes" / "emoji-transformer.toml", [])
    assert isinstance(recipe, TransformerRun)
    half = "SANA-0.6B with half its width and 6 of its 28 blocks"
    return {
        "512": Shape(reduced.model_copy(update={"position_base": 16}), 8, (20, 40), f"{half}, 512 px"),
        "1024": Shape(reduced.model_copy(update={"position_base": 32}), 8, (20, 40), f"{half}, 1024 px"),
        "bundled": Shape(
            recipe.model, recipe.train.batch_size, (8, 24), "the bundled model's recipe, 128 px", None
        ),
    }


class Contender(NamedTuple):
    """Who trains, and how."""

    package: str
    compiled: bool = False
    padded: bool = False
    """Whether prompts are padded as the shape says instead of to the longest of the batch."""
    passes: str = "torch"
    kept: bool = True
    """Whether freed memory is kept, as `lineardit train` does; otherwise that is left to the system."""


CONTENDERS = {
    "diffusers": Contender("diffusers", padded=True, kept=False),
    "diffusers, memory kept": Contender("diffusers", padded=True),
    "diffusers, memory kept, padding cut": Contender("diffusers"),
    "diffusers compiled, memory kept": Contender("diffusers", compiled=True, padded=True),
    "lineardit, torch": Contender("lineardit"),
    "lineardit, native": Contender("lineardit", passes="native"),
}


class Batch(NamedTuple):
    """What a step learns from, the same for all contenders."""

    latents: Tensor
    noise: Tensor
    times: Tensor
    text: Tensor
    mask: Tensor


def drawn(shape: Shape, number: int, padded: bool) -> Batch:
    """Batch `number` of a shape."""
    generator = torch.Generator().manual_seed(SEED + number)
    side, count = shape.config.position_base * shape.config.patch_size, shape.batch
    latents, noise = torch.randn(2, count, shape.config.latent_channels, side, side, generator=generator)
    times = LogitNormal().draw(count, generator)
    shortest, longest = shape.lengths
    lengths = torch.randint(shortest, longest + 1, (count,), generator=generator)
    lengths[0] = longest
    # Whatever is padded to, what is there is the same.
    text = torch.randn(count, longest, shape.config.text_width, generator=generator)
    tokens = shape.padded if padded and shape.padded else longest
    text = nn.functional.pad(text, (0, 0, 0, tokens - longest))
    return Batch(latents, noise, times, text, torch.arange(tokens) < lengths[:, None])


def their_network(shape: Shape) -> Any:
    """diffusers' network with weights that follow from the seed."""
    from diffusers import SanaTransformer2DModel

    options = transformer_config_to_diffusers(shape.config)
    torch.manual_seed(SEED)
    kind: Any = SanaTransformer2DModel
    return kind(**{name: value for name, value in options.items() if name != "_class_name"})


class Moment(NamedTuple):
    """Seconds on the clock, and those that this process has computed, in all its threads."""

    clock: float
    processor: float

    @staticmethod
    def now() -> "Moment":
        return Moment(time.perf_counter(), time.process_time())


class Trained(NamedTuple):
    """A contender, ready to train."""

    model: nn.Module
    loss: Callable[[int, str], Tensor]
    """Of batch (number) in a dtype."""
    gradients: Callable[[], Mapping[str, Tensor]]
    """Those of the last backward pass, by our names."""
    run: Callable[[int], list["Moment"]]
    """Before each of that many steps in bfloat16, and after the last."""


def theirs(own: Contender, shape: Shape) -> Trained:
    """diffusers, as its scripts for training transformers do it."""
    model = their_network(shape)
    network = torch.compile(model) if own.compiled else model
    batches = [drawn(shape, number, own.padded) for number in range(BATCHES)]

    def loss(number: int, dtype: str) -> Tensor:
        batch = batches[number % BATCHES]
        sigmas = batch.times[:, None, None, None]
        noisy = (1 - sigmas) * batch.latents + sigmas * batch.noise
        cast = torch.autocast("cpu", torch.bfloat16) if dtype == "bf16" else nullcontext()
        with cast:
            predicted = network(
                noisy,
                batch.text,
                timestep=batch.times * shape.config.time_scale,
                encoder_attention_mask=batch.mask.float(),
                return_dict=False,
            )[0]
        target = batch.noise - batch.latents
        return (predicted.float() - target.float()).square().mean()

    def run(steps: int) -> list[Moment]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-2)
        moments = []
        for step in range(steps):
            moments.append(Moment.now())
            value = loss(step, "bf16")
            torch.autograd.backward(value)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            assert math.isfinite(value.item())
        return [*moments, Moment.now()]

    def gradients() -> Mapping[str, Tensor]:
        named = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
        return from_diffusers_transformer(shape.config, named)

    return Trained(model, loss, gradients, run)


class Task:
    """What the training loop asks for, and when it did."""

    def __init__(self, model: Transformer, batches: Sequence[Batch]) -> None:
        self.model: nn.Module = model
        self.batches, self.asked = batches, list[Moment]()
        self._objective = FlowMatching(LogitNormal(), 1.0, None)

    def losses(self, step: int) -> Mapping[str, Tensor]:
        self.asked.append(Moment.now())
        latents, noise, times, text, mask = self.batches[step % BATCHES]

        def velocity(x: Tensor, times: Tensor) -> Tensor:
            predicted: Tensor = self.model(x, times, text, mask)
            return predicted

        return {"loss": self._objective.loss_at(velocity, latents, noise, times).mean()}

    def sample(self, model: nn.Module, step: int) -> None:
        return None


def ours(own: Contender, shape: Shape) -> Trained:
    """This package's training loop."""
    model = Transformer(shape.config)
    model.load_state_dict(from_diffusers_transformer(shape.config, their_network(shape).state_dict()))
    native.use(own.passes)
    task = Task(model, [drawn(shape, number, False) for number in range(BATCHES)])
    cpu = torch.device("cpu")

    def loss(number: int, dtype: str) -> Tensor:
        with precision(dtype, cpu):
            return task.losses(number)["loss"]

    def run(steps: int) -> list[Moment]:
        task.asked.clear()
        loop = LoopConfig(steps=steps + 1, batch_size=shape.batch, dtype="bf16", learning_rate=1e-4)
        with tempfile.TemporaryDirectory() as folder:
            train(task, loop, Path(folder), resume=False)
        return list(task.asked)

    def gradients() -> Mapping[str, Tensor]:
        return {name: each.grad for name, each in model.named_parameters() if each.grad is not None}

    return Trained(model, loss, gradients, run)


def contend(name: str, shape_name: str, steps: int, threads: int, compare: bool, place: Path) -> None:
    """Measure in this process; print seconds and peak, and leave losses and gradients at `place`."""
    if threads:
        torch.set_num_threads(threads)
    own, shape = CONTENDERS[name], shapes()[shape_name]
    if own.kept:
        keep_freed_memory()
    ready = theirs(own, shape) if own.package == "diffusers" else ours(own, shape)
    if compare:
        found: dict[str, Tensor] = {}
        for dtype in NEAR:
            value = ready.loss(0, dtype)
            with attention_kernels(torch.device("cpu")) if own.package == "lineardit" else nullcontext():
                torch.autograd.backward(value)
            found[f"{dtype} loss"] = value.detach().float()
            found |= {f"{dtype} {key}": each.float().contiguous() for key, each in ready.gradients().items()}
            ready.model.zero_grad(set_to_none=True)
        save_file(found, place)
    moments = ready.run(steps + 1)
    clock, processor = (
        [after - before for before, after in pairwise(each)] for each in zip(*moments, strict=True)
    )
    answer = {"first": clock[0], "seconds": clock[1:], "processor": processor[1:]}
    sys.stdout.write(json.dumps({**answer, "peak": resident_bytes("VmHWM")}) + "\n")


def apart(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], dtype: str) -> tuple[float, float]:
    """How far the loss is, and all gradients as one long vector."""
    loss = f"{dtype} loss"
    keys = {key for key in wanted if key.startswith(f"{dtype} ")} - {loss}
    assert keys == {key for key in found if key.startswith(f"{dtype} ")} - {loss}
    off = sum(float((found[key] - wanted[key]).square().sum()) for key in keys)
    size = sum(float(wanted[key].square().sum()) for key in keys)
    return float((found[loss] - wanted[loss]).abs() / wanted[loss]), math.sqrt(off / size)


def compare_and_measure(
    shape_name: str, names: Sequence[str], steps: int, rounds: int, threads: int
) -> list[list[str]]:
    """Rows of the table of one shape."""
    told: dict[str, list[float]] = {name: [] for name in names}
    computed: dict[str, list[float]] = {name: [] for name in names}
    peaks: dict[str, float] = {}
    firsts: dict[str, float] = {}
    off: dict[str, tuple[float, float]] = {}
    wanted: dict[str, Tensor] = {}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds):
            for name in names:
                place = Path(folder) / "gradients.safetensors"
                options = ["--contender", name, "--steps", str(steps), "--threads", str(threads)]
                command = [sys.executable, __file__, shape_name, *options]
                command += ["--place", str(place)] if turn == 0 else []
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    sys.exit(f"{name}: {done.stderr.strip()[-2000:]}")
                answer = json.loads(done.stdout.strip().rpartition("\n")[2])
                told[name] += answer["seconds"]
                computed[name] += answer["processor"]
                if turn == 0:
                    firsts[name], peaks[name] = answer["first"], answer["peak"]
                    found = load_file(place)
                    wanted = wanted or found
                    for dtype, near in NEAR.items():
                        off[f"{name} {dtype}"] = apart(found, wanted, dtype)
                        if not max(off[f"{name} {dtype}"]) <= near:
                            sys.exit(
                                f"{name} is {off[f'{name} {dtype}']} from {names[0]} in {dtype}: no speed."
                            )
                middle, busy = statistics.median(told[name]), statistics.median(computed[name])
                sys.stderr.write(f"{shape_name}, {name}: {middle:.3f} s a step, {busy:.3f} of processors\n")
    batch = shapes()[shape_name].batch
    first, first_busy = statistics.median(told[names[0]]), statistics.median(computed[names[0]])
    return [
        [
            name,
            significant(statistics.median(told[name])),
            significant(batch / statistics.median(told[name])),
            f"{first / statistics.median(told[name]):.2f}",
            f"{first_busy / statistics.median(computed[name]):.2f}",
            significant(firsts[name]),
            f"{peaks[name] / 1e9:.2f}",
            f"{off[f'{name} fp32'][1]:.0e}",
            f"{off[f'{name} bf16'][1]:.0e}",
        ]
        for name in names
    ]


HEADER = [
    *(
        "who",
        "seconds a step",
        "samples a second",
        "times the first",
        "by processor time",
        "first step, s",
        "peak, GB",
    ),
    *("gradients apart, fp32", "bf16"),
]


def speed_page(parts: Sequence[tuple[Shape, list[list[str]]]], steps: int, rounds: int) -> str:
    """The page of all shapes."""
    sections = [
        f"## {shape.told[0].upper()}{shape.told[1:]}\n\n"
        f"{shape.config.position_base**2} image tokens, prompts of {shape.lengths[0]} to {shape.lengths[1]} "
        f"tokens, batch {shape.batch}.\n\n{markdown_table(HEADER, rows)}"
        for shape, rows in parts
    ]
    return "\n\n".join(
        [
            "# Training steps side by side with diffusers",
            f"{stamp_line(hardware_stamp())}; bf16 autocast, AdamW, clipping; freed memory is kept by ours, "
            "and where it says so.",
            f"The same weights, batches and loss; medians of {steps * rounds} steps after a first one, each "
            "contender in a process of its own, in turn. Loss and gradients were compared before a speed was "
            "told (length of the difference over length). diffusers' step is that of its training scripts, "
            f"with prompts padded to {PADDED} tokens, those of the recipe to the longest of a batch as ours; "
            "ours is the whole training loop, which also averages the weights and writes a log. Processor "
            "time counts what a process computes, whatever runs beside it.",
            *sections,
            "",
        ]
    )


def waiting_rows(folder: Path) -> list[list[str]]:
    """What our loop logs of its waiting, in runs of its own recipes."""
    prepared = folder / "prepared"
    command = [sys.executable, "-m", "lineardit"]
    _called([*command, "prepare", "emoji:96", "-o", str(prepared)])
    runs = {
        "scenes drawn while training (recipes/emoji-autoencoder.toml)": [
            *("recipes/emoji-autoencoder.toml", "train.compile=false", "train.steps=12", "train.log_every=6")
        ],
        "prepared shards (recipes/finetune.toml)": [
            *("recipes/finetune.toml", f"data={prepared}", "train.steps=60", "train.log_every=30")
        ],
    }
    rows = []
    for number, (told, options) in enumerate(runs.items()):
        place = folder / str(number)
        _called([*command, "train", *options, "-o", str(place), "train.warmup_steps=1"])
        lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text("utf-8").splitlines()]
        last = [line for line in lines if "waiting" in line][-1]
        rows.append([told, significant(last["images_per_second"]), f"{100 * last['waiting']:.2f} %"])
    return rows


def _called(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-2000:]}")


def main() -> None:
    """Read the command line, measure, print and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shapes", nargs="*", default=["512", "1024", "bundled"], help="512, 1024, bundled")
    parser.add_argument("--only", help="some of: " + "; ".join(CONTENDERS))
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=1, help="how often every contender has its turn")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--record", action="store_true", help="write to benchmarks/results")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.contender:
        compare = given.place is not None
        contend(given.contender, given.shapes[0], given.steps, given.threads, compare, given.place)
        return
    if given.threads:
        torch.set_num_threads(given.threads)
    if given.shapes == ["waiting"]:
        with tempfile.TemporaryDirectory() as folder:
            rows = waiting_rows(Path(folder))
        table = markdown_table(["data", "images a second", "of the step spent waiting"], rows)
        stamp = f"{stamp_line(hardware_stamp())}; the last line of a run's log."
        page = f"# Waiting for data\n\n{stamp}\n\n{table}\n"
        name = "training-waiting.md"
    else:
        names = given.only.split(";") if given.only else list(CONTENDERS)
        parts = []
        for name in given.shapes:
            shape = shapes()[name]
            # Where nothing is padded there is nothing to cut.
            some = [each for each in names if shape.padded or "cut" not in each]
            parts.append((shape, compare_and_measure(name, some, given.steps, given.rounds, given.threads)))
        page, name = speed_page(parts, given.steps, given.rounds), "training-step.md"
    sys.stdout.write(page)
    if given.record:
        (RESULTS / name).write_text(page, "utf-8")


if __name__ == "__main__":
    main()
