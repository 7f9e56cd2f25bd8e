"""Is linear attention as good as softmax? Equal networks, equal data, several seeds; then samplers and paths.

    python benchmarks/linear_against_softmax.py runs/study [--steps 1000] [--seeds 3] [--only softmax]

Every variant is one small transformer with another attention or feed-forward, whose hidden width is chosen so
that all have the same number of parameters. All see the same scenes in the same order from the same noise. A
finished run is kept below the folder and not repeated, an interrupted one goes on where it stopped; the table
and the plot are made anew of all that is there.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from lineardit.autoencoder.model import Autoencoder
from lineardit.bench.plot import line_plot
from lineardit.bench.stamp import hardware_stamp, stamp_line
from lineardit.bench.table import markdown_table, significant
from lineardit.config.article import ArticleConfig
from lineardit.config.models import TransformerConfig
from lineardit.config.runs import LoopConfig
from lineardit.config.scenes import SceneConfig
from lineardit.data.emoji_scenes import EmojiScenes
from lineardit.diffusion.discrete import discrete_dpm_solver_pp_2m, linspace_times
from lineardit.diffusion.guidance import guided, prompt_dropout
from lineardit.diffusion.objective import Denoising, FlowMatching
from lineardit.diffusion.paths import DDPMPath
from lineardit.diffusion.predictions import NoisePrediction
from lineardit.diffusion.randomness import seeded_noise
from lineardit.diffusion.samplers import dpm_solver_pp_2m, euler
from lineardit.diffusion.times import dpm_flow_times, flow_times
from lineardit.evaluation.detector import SceneDetector
from lineardit.evaluation.scenes import score_scenes
from lineardit.interop.native import load_autoencoder
from lineardit.interop.text import load_text_encoder
from lineardit.nn.attention import LinearSelfAttention, SoftmaxSelfAttention
from lineardit.nn.feed_forward import MLP, GLUMBConv
from lineardit.text.offline import OfflineEncoder
from lineardit.training.loop import step_generator, train
from lineardit.transformer.article import LearnedMapAttention, MixFeedForward
from lineardit.transformer.model import Transformer

HEAD, RATIO, GUIDANCE, DROPPED = 32, 2.5, 3.0, 0.1
UNSEEN = 256
"""Held-out scenes whose loss is measured, each at 4 times."""
NUMBERS = {
    "steps": 1000,
    "seeds": 3,
    "batch": 64,
    "pool": 8192,
    "scenes": 200,
    "width": 192,
    "depth": 4,
    "objects": 12,
    "max_objects": 2,
}
"""Options that are whole numbers, and what they are unless given."""
RESULTS = Path(__file__).parent / "results"
WEIGHTS = Path(__file__).parents[1] / "src" / "lineardit" / "weights" / "emoji"

ATTENTIONS: Mapping[str, Callable[[int], nn.Module]] = {
    "linear ReLU": lambda width: LinearSelfAttention(width, HEAD),
    "linear ELU+1": lambda width: LinearSelfAttention(width, HEAD, feature_map="elu1"),
    "linear learned": lambda width: LearnedMapAttention(
        ArticleConfig(width=width, heads=width // HEAD, qk_dim=HEAD)
    ),
    "softmax": lambda width: SoftmaxSelfAttention(width, HEAD),
}
FEED_FORWARDS: Mapping[str, Callable[[int, int], nn.Module]] = {
    "GLUMBConv": GLUMBConv,
    "Mix-FFN": MixFeedForward,
    "MLP": MLP,
}


@dataclass(frozen=True)
class Variant:
    """What one run trains."""

    attention: str
    feed_forward: str
    path: str = "flow"

    @property
    def name(self) -> str:
        """As it stands in tables."""
        return f"{self.attention}, {self.feed_forward}" + (", DDPM" if self.path == "ddpm" else "")


REFERENCE = Variant("linear ReLU", "GLUMBConv")
SOFTMAX = Variant("softmax", "GLUMBConv")
DDPM = Variant("linear ReLU", "GLUMBConv", "ddpm")
VARIANTS = (
    REFERENCE,
    Variant("linear ELU+1", "GLUMBConv"),
    Variant("linear learned", "GLUMBConv"),
    SOFTMAX,
    Variant("linear ReLU", "Mix-FFN"),
    Variant("softmax", "Mix-FFN"),
    Variant("linear ReLU", "MLP"),
    Variant("softmax", "MLP"),
    DDPM,
)


def build(variant: Variant, config: TransformerConfig) -> Transformer:
    """SANA's transformer with the attention and feed-forward of `variant`, as large as the reference."""
    with torch.device("meta"):
        target = _size(_assembled(REFERENCE, config, config.hidden_width))
        small, large = (_size(_assembled(variant, config, hidden)) for hidden in (100, 200))
    hidden = 100 + round(100 * (target - small) / (large - small))
    model = _assembled(variant, config, hidden)
    model.initialise()
    return model


def _assembled(variant: Variant, config: TransformerConfig, hidden: int) -> Transformer:
    model = Transformer(config)
    for block in model.blocks:
        block.attention = ATTENTIONS[variant.attention](config.width)
        block.feed_forward = FEED_FORWARDS[variant.feed_forward](config.width, hidden)
    return model


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@dataclass(frozen=True)
class Pool:
    """Scenes, encoded once."""

    latents: Tensor
    captions: list[Tensor]
    empty: Tensor

    def batch(self, chosen: Sequence[int], dropped: Sequence[bool]) -> tuple[Tensor, Tensor, Tensor]:
        """Latents, text and its mask."""
        rows = [self.empty if drop else self.captions[n] for n, drop in zip(chosen, dropped, strict=True)]
        mask = [torch.ones(len(row), dtype=torch.bool) for row in rows]
        text = pad_sequence([row.float() for row in rows], batch_first=True)
        return self.latents[list(chosen)].float(), text, pad_sequence(mask, batch_first=True)


@torch.no_grad()
def encode(count: int, source: EmojiScenes, autoencoder: Autoencoder, encoder: OfflineEncoder) -> Pool:
    """The first `count` scenes of a source with one caption each."""
    latents, captions = [], []
    for start in range(0, count, 64):
        batch = source.batch(start, min(64, count - start))
        latents.append(autoencoder.encode(batch.pixels).bfloat16())
        text, mask = encoder.encode(batch.captions)
        captions += [row[kept].bfloat16() for row, kept in zip(text, mask, strict=True)]
    return Pool(torch.cat(latents), captions, encoder.encode([""]).embeddings[0])


class StudyTask:
    """Flow matching or DDPM on the pool, the same batches, times and noise for every variant of a seed."""

    def __init__(self, model: Transformer, variant: Variant, pool: Pool, loop: LoopConfig) -> None:
        self.model: nn.Module = model
        self.variant, self.pool, self.loop = variant, pool, loop

    def losses(self, step: int) -> Mapping[str, Tensor]:
        """The loss of one batch."""
        seed, count = self.loop.seed, self.loop.batch_size
        generator = step_generator(seed, step)
        per_epoch = max(1, len(self.pool.captions) // count)
        order = torch.randperm(
            len(self.pool.captions), generator=step_generator(seed, step // per_epoch, "order")
        )
        chosen = order[step % per_epoch * count :][:count].tolist()
        dropped = prompt_dropout(len(chosen), DROPPED, generator).tolist()
        return {"loss": loss(self.model, self.variant, *self.pool.batch(chosen, dropped), generator).mean()}

    def sample(self, model: nn.Module, step: int) -> None:
        """The scene score says more."""


def loss(
    model: nn.Module,
    variant: Variant,
    latents: Tensor,
    text: Tensor,
    mask: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """The loss of each sample."""
    objective = FlowMatching() if variant.path == "flow" else Denoising(NoisePrediction(ddpm()))
    return objective.loss(network(model, variant, text, mask), latents, generator)


def ddpm() -> DDPMPath:
    """Latent diffusion's."""
    return DDPMPath.scaled_linear()


def network(
    model: nn.Module, variant: Variant, text: Tensor, mask: Tensor
) -> Callable[[Tensor, Tensor], Tensor]:
    """The model under its prompts; both paths hand it times from 0 to 1."""

    def predicted(x: Tensor, times: Tensor) -> Tensor:
        share = times.float() if variant.path == "flow" else times.float() / ddpm().steps
        answer: Tensor = model(x.float(), share, text, mask)
        return answer

    return predicted


def samplers(variant: Variant) -> Mapping[str, Callable[[Any, Tensor], Any]]:
    """Ways to draw with the variant, by name; the first is what variants are compared by."""
    if variant.path == "ddpm":
        path = ddpm()
        times = linspace_times(20, path)
        return {
            "DPM-Solver++, 20 steps": lambda model, noise: discrete_dpm_solver_pp_2m(
                model, noise, times, NoisePrediction(path)
            )
        }
    compared = {
        "DPM-Solver++, 20 steps": lambda model, noise: dpm_solver_pp_2m(model, noise, dpm_flow_times(20))
    }
    if variant != REFERENCE:
        return compared
    return compared | {
        "Euler, 20 steps": lambda model, noise: euler(model, noise, flow_times(20)),
        "Euler, 50 steps": lambda model, noise: euler(model, noise, flow_times(50)),
    }


class Study:
    """The networks that all runs share, and where runs are kept."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.folder = options, Path(options.folder)
        self.autoencoder = load_autoencoder(WEIGHTS).eval().requires_grad_(False)
        self.encoder = load_text_encoder(WEIGHTS)
        self.scenes = SceneConfig(objects=options.objects, max_objects=options.max_objects)
        source = EmojiScenes(self.scenes)
        self.unseen = EmojiScenes(self.scenes, split="held_out", atlas=source.atlas)
        self.pool = encode(options.pool, source, self.autoencoder, self.encoder)
        self.held_out = encode(min(UNSEEN, options.pool), self.unseen, self.autoencoder, self.encoder)
        self.config = TransformerConfig(
            latent_channels=self.autoencoder.config.latent_channels,
            depth=options.depth,
            width=options.width,
            head_dim=HEAD,
            cross_head_dim=HEAD,
            feed_forward_ratio=RATIO,
            text_width=self.encoder.width,
            position="sincos",
            position_base=self.pool.latents.shape[-1],
            prompt_norm_start=1.0,
        )

    def run(self, variant: Variant, seed: int) -> None:
        """Train and measure one variant with one seed, unless that was done."""
        name = variant.name.replace(" ", "-").replace(",", "").lower()
        folder = self.folder / f"{name}-{seed}"
        result, options = folder / "result.json", self.options
        made_with = {name: getattr(options, name) for name in (*NUMBERS, "learning_rate") if name != "seeds"}
        if result.exists():
            if json.loads(result.read_text("utf-8"))["made_with"] != made_with:
                raise SystemExit(f"{folder} was made with other options. Name another folder.")
            return
        loop = LoopConfig(
            steps=options.steps,
            batch_size=options.batch,
            seed=seed,
            learning_rate=options.learning_rate,
            warmup_steps=min(100, options.steps // 5),
            ema_half_life=max(1.0, options.steps / 20),
            log_every=max(1, options.steps // 50),
            sample_every=options.steps,
        )
        torch.manual_seed(seed)
        model = build(variant, self.config)
        outcome = train(StudyTask(model, variant, self.pool, loop), loop, folder, resume=True)
        if outcome.step < loop.steps:
            raise SystemExit(f"stopped at step {outcome.step}; the same command goes on.")
        average = outcome.average.eval()
        log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
        rate = statistics.median(row["images_per_second"] for row in log)
        facts = {
            "variant": variant.name,
            "seed": seed,
            "parameters": _size(model),
            "steps": loop.steps,
            "made_with": made_with,
            "minutes": loop.steps * loop.batch_size / rate / 60,
            "curve": [[row["step"], row["loss"]] for row in log],
            "held_out": self._held_out(average, variant),
            "scores": {which: self._score(average, variant, which) for which in samplers(variant)},
        }
        result.write_text(json.dumps(facts, indent=1), "utf-8")

    @torch.no_grad()
    def _held_out(self, model: nn.Module, variant: Variant) -> float:
        """The loss over unseen scenes at times and noise that are the same for all."""
        total, count = 0.0, len(self.held_out.captions)
        for repeat in range(4):
            generator = step_generator(0, repeat, "held out")
            batch = self.held_out.batch(range(count), [False] * count)
            total += float(loss(model, variant, *batch, generator).mean())
        return total / 4

    def _score(self, model: nn.Module, variant: Variant, sampler: str) -> dict[str, float | None]:
        """The share of what was asked for that is in the pictures."""

        @torch.no_grad()
        def generate(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
            text, mask = self.encoder.encode([""] * len(prompts) + list(prompts))
            noise = seeded_noise(self.pool.latents.shape[1:], seeds)
            velocity = guided(network(model, variant, text, mask), GUIDANCE)
            *_, last = samplers(variant)[sampler](velocity, noise)
            return self.autoencoder.decode(last.latents.float())

        score = score_scenes(generate, SceneDetector.load(), self.unseen, self.options.scenes)
        return {measure: rate.share if rate.asked else None for measure, rate in score.generated.items()}


def page(results: Sequence[Mapping[str, Any]], stamp: str) -> str:
    """Tables and sentences of what came out."""
    rows, names = [], [v.name for v in VARIANTS if any(each["variant"] == v.name for each in results)]
    for name in names:
        mine = [each for each in results if each["variant"] == name]
        first = next(iter(mine[0]["scores"]))
        rows.append(
            [
                name,
                f"{len(mine)}",
                f"{mine[0]['parameters'] / 1e6:.2f}",
                spread([each["held_out"] for each in mine]),
                *(spread(scores(mine, first, measure), 100) for measure in ("all right", "single object")),
                spread([mean_score(each["scores"][first]) for each in mine], 100),
                significant(statistics.mean(each["minutes"] for each in mine)),
            ]
        )
    header = [
        "network",
        "seeds",
        "parameters, M",
        "held-out loss",
        "all right, %",
        "single object, %",
        "mean of measures, %",
        "minutes of training",
    ]
    made = {
        f"--{name.replace('_', '-')} {value}": None
        for each in results
        for name, value in each["made_with"].items()
    }
    return "\n\n".join(
        [
            "# Linear against softmax attention, small and equal",
            f"`python benchmarks/linear_against_softmax.py FOLDER {' '.join(made)}`; {stamp}.",
            markdown_table(header, rows),
            "Means and, after +-, standard deviations over seeds. The held-out loss of DDPM is that of "
            "another target and does not compare with the others. Scores count what a detector finds of what "
            "was asked for, on held-out scenes, guided, in 20 steps of DPM-Solver++.",
            sampler_table(results),
            "\n".join(f"- {sentence}" for sentence in verdicts(results)),
            "",
        ]
    )


def sampler_table(results: Sequence[Mapping[str, Any]]) -> str:
    """The reference under every sampler."""
    mine = [each for each in results if each["variant"] == REFERENCE.name]
    if not mine:
        return ""
    rows = [
        [
            which,
            spread(scores(mine, which, "all right"), 100),
            spread([mean_score(each["scores"][which]) for each in mine], 100),
        ]
        for which in mine[0]["scores"]
    ]
    return markdown_table([f"sampler of {REFERENCE.name}", "all right, %", "mean of measures, %"], rows)


def verdicts(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """What came out, whichever way."""
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for each in results:
        by_name.setdefault(each["variant"], []).append(each)
    sentences = []
    for feed_forward in FEED_FORWARDS:
        pair = [Variant(attention, feed_forward).name for attention in ("linear ReLU", "softmax")]
        if all(name in by_name for name in pair):
            losses = ([each["held_out"] for each in by_name[name]] for name in pair)
            sentences.append(_compared(*pair, *losses, "held-out loss", 1, 4))
            sentences.append(_compared(*pair, *(_means(by_name[name]) for name in pair)))
    for other in (Variant("linear ELU+1", "GLUMBConv"), Variant("linear learned", "GLUMBConv"), DDPM):
        if other.name in by_name and REFERENCE.name in by_name:
            both = (_means(by_name[REFERENCE.name]), _means(by_name[other.name]))
            sentences.append(_compared(REFERENCE.name, other.name, *both))
    if REFERENCE.name in by_name:
        mine = by_name[REFERENCE.name]
        fast, slow = "DPM-Solver++, 20 steps", "Euler, 50 steps"
        sentences.append(
            _compared(
                fast, slow, *([mean_score(each["scores"][which]) for each in mine] for which in (fast, slow))
            )
        )
    return sentences


def _means(results: Sequence[Mapping[str, Any]]) -> list[float]:
    return [mean_score(next(iter(each["scores"].values()))) for each in results]


def _compared(
    first: str,
    second: str,
    left: Sequence[float],
    right: Sequence[float],
    what: str = "mean of measures in points",
    unit: int = 100,
    digits: int = 1,
) -> str:
    difference = unit * (statistics.mean(left) - statistics.mean(right))
    title = f"{first} against {second}, {what}: {difference:+.{digits}f}"
    if min(len(left), len(right)) < 2:
        return f"{title}; one seed has no spread to hold that against."
    noise = unit * (statistics.variance(left) / len(left) + statistics.variance(right) / len(right)) ** 0.5
    beyond = "beyond" if abs(difference) > 2 * noise else "within"
    return f"{title}, {beyond} twice its standard error of {noise:.{digits}f}."


def scores(results: Sequence[Mapping[str, Any]], sampler: str, measure: str) -> list[float]:
    """One measure of every run that asked for it."""
    found = (each["scores"][sampler][measure] for each in results)
    return [share for share in found if share is not None]


def mean_score(shares: Mapping[str, float | None]) -> float:
    """The mean of the measures that were asked for, but for the one that sums up the others."""
    return statistics.mean(
        share for name, share in shares.items() if share is not None and name != "all right"
    )


def spread(values: Sequence[float], scale: float = 1.0) -> str:
    """Mean and deviation."""
    if not values:
        return "-"
    mean = significant(scale * statistics.mean(values))
    return mean if len(values) < 2 else f"{mean} +- {significant(scale * statistics.stdev(values), 2)}"


def curves(results: Sequence[Mapping[str, Any]]) -> str:
    """Losses over steps, the mean over seeds, without DDPM, whose loss is another."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for variant in VARIANTS[:-1]:
        mine = [dict(map(tuple, each["curve"])) for each in results if each["variant"] == variant.name]
        shared = sorted(set.intersection(*(set(curve) for curve in mine))) if mine else []
        # The first tenth would press the rest together.
        line = [(float(at), statistics.mean(curve[at] for curve in mine)) for at in shared]
        if line:
            lines[variant.name] = line[len(line) // 10 :]
    return line_plot(
        lines, title="Flow-matching loss, mean over seeds", x_label="training step", y_label="loss"
    )


def main() -> None:
    """Run what is missing, then write the table and the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", help="where runs are kept")
    parser.add_argument("--only", default="", help="variants whose name holds this")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where table and plot go")
    for name, value in NUMBERS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    options = parser.parse_args()
    study = Study(options)
    for seed in range(options.seeds):
        for variant in VARIANTS:
            if options.only in variant.name:
                study.run(variant, seed)
    found = sorted(study.folder.glob("*/result.json"))
    results = [json.loads(path.read_text("utf-8")) for path in found]
    options.results.mkdir(parents=True, exist_ok=True)
    text = page(results, stamp_line(hardware_stamp()))
    (options.results / "linear-against-softmax.md").write_text(text, "utf-8")
    if any(each["variant"] != DDPM.name for each in results):
        (options.results / "linear-against-softmax.svg").write_text(curves(results), "utf-8")
    print(text)  # noqa: T201


if __name__ == "__main__":
    main()
