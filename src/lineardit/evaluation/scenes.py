"""Whether generated emoji scenes show what their prompts ask for: objects, background, count and relation.

In the manner of GenEval (arXiv:2310.11513), with a detector of our own that was trained on drawn scenes. The
same code reads the drawn truth of the very same scenes, so that each rate stands beside what the detector
itself would score for perfect pictures.
"""

import math
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from rich.table import Table
from torch import Tensor

from lineardit.data.backgrounds import BACKGROUNDS
from lineardit.data.emoji_layout import Relation
from lineardit.data.emoji_scenes import EmojiScenes
from lineardit.data.pictures import to_picture
from lineardit.data.scene import Scene
from lineardit.errors import InputError
from lineardit.evaluation.detector import Detection, Found, SceneDetector

Measure = Literal["single object", "background", "count", "relation", "two objects", "all right"]
MEASURES: tuple[Measure, ...] = get_args(Measure)

Generate = Callable[[Sequence[str], Sequence[int]], Tensor]
"""Prompts and seeds, one each per picture, to pixels (b 3 H W) in [-1, 1]."""

LEAST_OFFSET = 0.1
"""Of the centres of a related pair, over the side of the picture; truth has 0.3 or more."""
NORMAL_95 = 1.959964
"""The standard normal variable lies within plus and minus this in 95 % of all cases."""

_SIDEWAYS = re.compile(r"\b(left|right)\b")
_STACKED = re.compile(r"\b(above|below|over|under|beneath|underneath|top|bottom)\b")
# What holds such a word and says nothing of a relation.
_NEUTRAL = re.compile(r"\b(over an? (?:(?!over )[\w -])+ backdrop|top hats?)\b")


class Question(NamedTuple):
    """One prompt, the scene that it was written for, and what of that scene it states."""

    prompt: str
    seed: int
    scene: Scene
    states_background: bool
    states_relation: bool


class Answer(NamedTuple):
    """One generated picture and what is right in it."""

    question: Question
    image: Float[Tensor, "3 H W"]
    detection: Detection
    right: Mapping[Measure, bool]
    """Only what was asked for: the prompt of a single object says nothing about relations."""


@dataclass(frozen=True)
class Rate:
    """How many of the pictures that were asked for something show it."""

    right: int
    asked: int

    @property
    def share(self) -> float:
        """right / asked; NaN where nothing was asked."""
        return self.right / self.asked if self.asked else math.nan

    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the true share; all of [0, 1] where nothing was asked."""
        if not self.asked:
            return 0.0, 1.0
        n, p, z = self.asked, self.share, NORMAL_95
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        reach = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, middle - reach), min(1.0, middle + reach)


@dataclass(frozen=True)
class SceneScore:
    """Rates of a generator, and of the drawn truth of the same scenes."""

    split: str
    phrasing: str
    count: int
    seed: int
    generated: Mapping[Measure, Rate]
    drawn: Mapping[Measure, Rate]

    def as_json(self) -> dict[str, Any]:
        """Plain numbers: right, asked, share and interval of each measure, and the detector's own share."""
        rates = {}
        for measure in MEASURES:
            rate, ceiling = self.generated[measure], self.drawn[measure]
            rates[measure.replace(" ", "_")] = {
                "right": rate.right,
                "asked": rate.asked,
                "share": _rounded(rate.share),
                "interval_95": [_rounded(bound) for bound in rate.interval()],
                "detector_on_drawings": _rounded(ceiling.share),
            }
        return {
            "split": self.split,
            "phrasing": self.phrasing,
            "count": self.count,
            "seed": self.seed,
            "rates": rates,
        }

    def table(self) -> Table:
        """The same for a terminal."""
        title = f"{self.count} scenes, split {self.split}, phrasing {self.phrasing}, seed {self.seed}"
        table = Table(title=title, title_justify="left")
        table.add_column("asked for")
        for heading in ("pictures", "right", "95 % interval", "detector on drawings"):
            table.add_column(heading, justify="right")
        for measure in MEASURES:
            rate, ceiling = self.generated[measure], self.drawn[measure]
            low, high = rate.interval()
            row = (_percent(rate.share), f"{_percent(low)} to {_percent(high)}", _percent(ceiling.share))
            table.add_row(measure, str(rate.asked), *(row if rate.asked else ("", "", "")))
        return table


def questions(scenes: EmojiScenes, count: int, seed: int = 0) -> list[Question]:
    """The first `count` scenes of a source with their first captions; picture i is drawn with seed + i.

    Raises: InputError for a count below 1.
    """
    if count < 1:
        raise InputError(f"count={count}: ask for at least one scene.")
    asked = []
    for index in range(count):
        scene, prompt = scenes[index]
        states_relation = scene.relation is not None and says_relation(prompt, scene.relation)
        background = says_background(prompt, scene.background)
        asked.append(Question(prompt, seed + index, scene, background, states_relation))
    return asked


def says_background(prompt: str, name: str) -> bool:
    """Whether a caption written for a scene on this background names it; an object's colour does not."""
    background = next(each for each in BACKGROUNDS if each.name == name)
    words = "|".join(
        re.escape(re.sub(r"^(an?|the) ", "", word))
        for word in (*background.words, *background.reserved, *background.places)
    )
    if background.plain:
        return bool(re.search(rf"\b({words}) back(ground|drop)\b|(\b(on|against|is)|:) ({words})$", prompt))
    return bool(re.search(rf"\b({words})\b", prompt))


def says_relation(prompt: str, relation: Relation) -> bool:
    """Whether a caption written for a pair says how it stands; `a cat and a dog` does not."""
    words = _SIDEWAYS if relation in ("left of", "right of") else _STACKED
    return bool(words.search(_NEUTRAL.sub("", prompt)))


def judge(question: Question, detection: Detection) -> dict[Measure, bool]:
    """What was asked for, and whether the picture shows it.

    single object, two objects: there, whatever else is. count: exactly as many of that object. relation: both
    there, further apart along the stated axis than along the other. all right: the same objects as often as
    asked and no others, and the background and relation where stated.
    """
    scene = question.scene
    wanted = Counter(each.name for each in scene.objects)
    found = Counter(each.name for each in detection.objects)
    right: dict[Measure, bool] = {}
    if scene.kind == "single":
        right["single object"] = all(found[name] for name in wanted)
    if scene.kind == "count":
        right["count"] = all(found[name] == number for name, number in wanted.items())
    if scene.kind == "pair":
        right["two objects"] = all(found[name] for name in wanted)
    if question.states_relation and scene.relation is not None:
        first, second = (_surest(detection, each.name) for each in scene.objects)
        right["relation"] = bool(first and second and stands(first, second, scene.relation))
    if question.states_background:
        right["background"] = detection.background == scene.background
    stated = [right[measure] for measure in ("relation", "background") if measure in right]
    right["all right"] = found == wanted and all(stated)
    return right


def stands(first: Found, second: Found, relation: Relation) -> bool:
    """Whether the first is clearly `relation` the second, and more so than anything else."""
    across, down = second.x - first.x, second.y - first.y
    if relation in ("right of", "below"):
        across, down = -across, -down
    along, aside = (across, down) if relation in ("left of", "right of") else (down, across)
    return along > LEAST_OFFSET and along > abs(aside)


def answers(
    asked: Sequence[Question], generate: Generate, detector: SceneDetector, *, batch_size: int = 16
) -> Iterator[Answer]:
    """Generate, read and judge, one answer after the other."""
    for start in range(0, len(asked), batch_size):
        batch = asked[start : start + batch_size]
        images = generate([each.prompt for each in batch], [each.seed for each in batch]).float().cpu()
        for question, image, detection in zip(batch, images, detector.detect(images), strict=True):
            yield Answer(question, image, detection, judge(question, detection))


def tally(answered: Iterable[Answer]) -> dict[Measure, Rate]:
    """The rate of every measure."""
    asked: Counter[Measure] = Counter()
    right: Counter[Measure] = Counter()
    for answer in answered:
        asked.update(list(answer.right))
        right.update(measure for measure, holds in answer.right.items() if holds)
    return {measure: Rate(right[measure], asked[measure]) for measure in MEASURES}


def drawn_truth(scenes: EmojiScenes, asked: Sequence[Question], size: int | None = None) -> Generate:
    """A generator that cheats: it draws the scene that each prompt was written for."""
    by_seed = {each.seed: each.scene for each in asked}

    def generate(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        return scenes.draw([by_seed[seed] for seed in seeds], size=size)

    return generate


def check_names(scenes: EmojiScenes, detector: SceneDetector) -> None:
    """Raises: InputError where the scenes may show what the detector cannot name."""
    unknown = sorted(set(scenes.names) - set(detector.config.objects))
    if unknown:
        raise InputError(
            f"the detector does not know {unknown[0]!r}, one of the {len(scenes.names)} objects asked for: "
            f"ask for the first {len(detector.config.objects)} objects at most."
        )


def score_scenes(
    generate: Generate, detector: SceneDetector, scenes: EmojiScenes, count: int, *, seed: int = 0
) -> SceneScore:
    """Ask for `count` scenes and measure the answers, and the drawn truth with the same code."""
    check_names(scenes, detector)
    asked = questions(scenes, count, seed)
    return compare(scenes, asked, answers(asked, generate, detector), detector)


def compare(
    scenes: EmojiScenes, asked: Sequence[Question], answered: Iterable[Answer], detector: SceneDetector
) -> SceneScore:
    """The score of answers, beside that of the drawn truth."""
    truth = answers(asked, drawn_truth(scenes, asked), detector)
    return SceneScore(
        split=scenes.split,
        phrasing=scenes.phrasing,
        count=len(asked),
        seed=asked[0].seed,
        generated=tally(answered),
        drawn=tally(truth),
    )


CAPTION_SIZE = 11
LEAST_WIDTH = 176
_RIGHT, _WRONG = (24, 140, 60), (200, 30, 40)


def answer_sheet(answered: Sequence[Answer], *, columns: int = 6) -> Image.Image:
    """Pictures in a grid, each with its prompt, and with a tick or a cross before all that was asked for.

    Raises: InputError for nothing to show.
    """
    if not answered:
        raise InputError("there is no answer to show. Ask for at least one scene.")
    font = ImageFont.load_default(CAPTION_SIZE)
    pictures = [_enlarged(to_picture(answer.image)) for answer in answered]
    width, height = pictures[0].size
    line = CAPTION_SIZE + 3
    captions = [textwrap.wrap(answer.question.prompt, width // 6) for answer in answered]
    verdicts = [[measure for measure in MEASURES if measure in answer.right] for answer in answered]
    lines = max(len(caption) + len(verdict) for caption, verdict in zip(captions, verdicts, strict=True))
    below = lines * line
    gap = 8
    columns = min(columns, len(answered))
    rows = math.ceil(len(answered) / columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + below + gap) + gap), "white")
    pen = ImageDraw.Draw(sheet)
    for index, answer in enumerate(answered):
        left = gap + index % columns * (width + gap)
        top = gap + index // columns * (height + below + gap)
        sheet.paste(pictures[index], (left, top))
        y = top + height + 2
        for text in captions[index]:
            pen.text((left, y), text, fill="black", font=font)
            y += line
        for measure in verdicts[index]:
            colour = _RIGHT if answer.right[measure] else _WRONG
            _mark(pen, left, y + 2, answer.right[measure])
            pen.text((left + line, y), measure, fill=colour, font=font)
            y += line
    return sheet


def _mark(pen: ImageDraw.ImageDraw, x: int, y: int, right: bool) -> None:
    """A tick or a cross: the default font has neither."""
    side = CAPTION_SIZE - 2
    if right:
        pen.line([(x, y + side // 2), (x + side // 3, y + side), (x + side, y)], fill=_RIGHT, width=2)
    else:
        pen.line([(x, y), (x + side, y + side)], fill=_WRONG, width=2)
        pen.line([(x, y + side), (x + side, y)], fill=_WRONG, width=2)


def _enlarged(picture: Image.Image) -> Image.Image:
    if picture.width >= LEAST_WIDTH:
        return picture
    return picture.resize((LEAST_WIDTH, round(picture.height * LEAST_WIDTH / picture.width)))


def _surest(detection: Detection, name: str) -> Found | None:
    """Objects are sorted by their score."""
    return next((each for each in detection.objects if each.name == name), None)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _rounded(share: float) -> float | None:
    """JSON knows no NaN."""
    return None if math.isnan(share) else round(share, 4)
