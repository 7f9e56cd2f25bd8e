"""Which text encoder ships: one trained here or a pre-trained MiniLM, frozen, read by the same probe.

    python benchmarks/text_encoders.py "MiniLM=src/lineardit/weights/emoji" "small=runs/emoji-text/model"

writes benchmarks/results/text_encoders.md. The probe is the head that the small encoder was trained with,
made anew and trained for the same steps on captions of training for each of them.
"""

import argparse
import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lineardit.bench.stamp import hardware_stamp, stamp_line
from lineardit.config.scenes import SceneConfig
from lineardit.data.draws import Draws
from lineardit.data.emoji_scenes import EmojiScenes
from lineardit.interop.text import load_text_encoder
from lineardit.text.embedding import TextEmbedding, TextEncoder
from lineardit.training.scene_text import PHRASINGS, Answers, ReadingHead, accuracy, ask, reading_losses

PROBE_WIDTH, BATCH, MEASURED, SEED = 192, 128, 500, 11
RESULT = Path(__file__).parent / "results" / "text_encoders.md"

_log = logging.getLogger("text_encoders")


class Probe(nn.Module):
    """Normalise, project to one width, then the reading head, which starts by looking for objects' names."""

    def __init__(self, encoder: TextEncoder, names: Sequence[str]) -> None:
        super().__init__()
        self.project = nn.Linear(encoder.width, PROBE_WIDTH)
        self.head = ReadingHead(len(names), PROBE_WIDTH, 32)
        embedding = encode(encoder, names)
        with torch.no_grad():
            words = self.projected(embedding.embeddings)
            inner = embedding.mask.clone()
            inner[:, 0] = False
            self.head.look_for((words * inner[..., None]).sum(1) / inner.sum(1, keepdim=True))

    def projected(self, embeddings: Tensor) -> Tensor:
        return self.project(functional.layer_norm(embeddings, embeddings.shape[-1:]))

    def forward(self, embeddings: Tensor, mask: Tensor, queries: Tensor) -> Answers:
        return self.head(self.projected(embeddings), mask, queries)


class Result(NamedTuple):
    """One row of the table."""

    name: str
    parameters: int
    milliseconds: float
    found_by_name: float
    scores: dict[str, dict[str, float]]


def encode(encoder: TextEncoder, prompts: Sequence[str]) -> TextEmbedding:
    """Many prompts, those of one length together."""
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    rows: list[Tensor] = [torch.empty(0)] * len(prompts)
    for start in range(0, len(order), 64):
        part = order[start : start + 64]
        embeddings, mask = encoder.encode([prompts[place] for place in part])
        for place, row, there in zip(part, embeddings, mask, strict=True):
            rows[place] = row[there]
    mask = nn.utils.rnn.pad_sequence(
        [torch.ones(len(row), dtype=torch.bool) for row in rows], batch_first=True
    )
    return TextEmbedding(nn.utils.rnn.pad_sequence(rows, batch_first=True), mask)


@torch.no_grad()
def found_by_name(encoder: TextEncoder, count: int = 300) -> float:
    """Share of objects in captions with a token nearer to their name alone than to any absent object's."""
    scenes = EmojiScenes(SceneConfig(), SEED + 2)
    drawn, texts = zip(*(scenes[index] for index in range(count)), strict=True)
    alone, caption = encode(encoder, scenes.names), encode(encoder, texts)
    words = alone.mask.clone()
    words[:, 0] = False
    names = (alone.embeddings * words[..., None]).sum(1) / words.sum(1, keepdim=True)
    found = []
    for scene, tokens, there in zip(drawn, *caption, strict=True):
        near = functional.normalize(names, dim=-1) @ functional.normalize(tokens[there], dim=-1).T
        best = near.amax(1)
        own = {scenes.names.index(each.name) for each in scene.objects}
        absent = torch.tensor([number not in own for number in range(len(names))])
        found += [bool(best[number] > best[absent].max()) for number in own]
    return sum(found) / len(found)


def probe(name: str, encoder: TextEncoder, parameters: int, captions: int, steps: int) -> Result:
    """Train a probe on frozen embeddings of training captions, and measure it on all phrasings."""
    torch.manual_seed(SEED)
    scenes = EmojiScenes(SceneConfig(), SEED)
    drawn, texts = zip(*(scenes[index] for index in range(captions)), strict=True)
    since = time.perf_counter()
    embeddings, mask = encode(encoder, texts)
    milliseconds = (time.perf_counter() - since) / captions * 1000
    _log.info("%s: %d captions encoded", name, captions)
    model = Probe(encoder, scenes.names)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        places = torch.randint(captions, (BATCH,)).tolist()
        truth = ask(
            [texts[place] for place in places],
            [drawn[place] for place in places],
            scenes.names,
            Draws("probe", step),
        )
        length = int(mask[places].sum(1).max())
        loss = sum(
            reading_losses(
                model(embeddings[places, :length], mask[places, :length], truth.queries), truth
            ).values(),
            torch.zeros(()),
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            _log.info("%s: step %d, loss %.3f", name, step + 1, loss.item())
    model.eval()

    def read(asked: Sequence[str], queries: Tensor) -> Answers:
        return model(*encode(encoder, asked), queries)

    scores = {
        phrasing: accuracy(read, EmojiScenes(SceneConfig(), SEED + 1, split=split, phrasing=words), MEASURED)
        for phrasing, (split, words) in PHRASINGS.items()
    }
    return Result(name, parameters, milliseconds, found_by_name(encoder), scores)


def report(results: Sequence[Result], captions: int, steps: int) -> str:
    """The table, the winner and what it was measured on."""
    means = {row.name: sum(row.scores["unseen phrasings"].values()) / 4 for row in results}
    winner = max(means, key=lambda name: means[name])
    lines = [
        "# Text encoders on unseen phrasings",
        "",
        f"All encoders frozen, the same probe trained on {captions} training captions for {steps} "
        f"steps of {BATCH},",
        f"then measured on {MEASURED} captions of each kind. Shares of right answers, in percent. "
        "Found by name: of",
        "the objects in captions, how many of them have a token nearer to their name alone than "
        "any absent object has.",
        "",
        "| encoder | phrasing | object present | count | relation | background | mean |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results:
        for phrasing, scores in row.scores.items():
            cells = [*scores.values(), sum(scores.values()) / len(scores)]
            lines.append(
                f"| {row.name} | {phrasing} | " + " | ".join(f"{100 * cell:.1f}" for cell in cells) + " |"
            )
    lines += ["", "| encoder | parameters | milliseconds per prompt | found by name |", "|---|---|---|---|"]
    lines += [
        f"| {row.name} | {row.parameters / 1e6:.2f}M | {row.milliseconds:.1f} | "
        f"{100 * row.found_by_name:.1f} |"
        for row in results
    ]
    others = ", ".join(f"{name} {100 * mean:.1f} %" for name, mean in means.items())
    lines += [
        "",
        f"Best on unseen phrasings, by the mean of the four: **{winner}** ({others}).",
        "",
        stamp(),
        "",
    ]
    return "\n".join(lines)


def stamp() -> str:
    """Where and when this was measured."""
    return (
        f"Measured on {datetime.now(UTC):%Y-%m-%d}, float32, {stamp_line(hardware_stamp())}. "
        "Other work ran on the machine, so the times are upper bounds."
    )


def main() -> None:
    """Measure both and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "encoders", nargs="+", metavar="NAME=FOLDER", help="folders of encoders or of whole models"
    )
    parser.add_argument("--captions", type=int, default=4000, help="captions that the probes are trained on")
    parser.add_argument("--steps", type=int, default=400, help="steps of each probe")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    results = []
    for name, _, folder in (each.partition("=") for each in given.encoders):
        encoder = load_text_encoder(Path(folder))
        parameters = sum(parameter.numel() for parameter in encoder.parameters())
        results.append(probe(name, encoder, parameters, given.captions, given.steps))
    RESULT.write_text(report(results, given.captions, given.steps), "utf-8")


if __name__ == "__main__":
    main()
