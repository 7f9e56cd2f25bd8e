"""The scene score: what a prompt states, what a picture shows, and the arithmetic between them."""

import json
import math
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from lineardit.config.detector import DetectorConfig
from lineardit.config.scenes import SceneConfig
from lineardit.data import emoji_captions
from lineardit.data.backgrounds import BACKGROUND_NAMES
from lineardit.data.emoji_layout import Relation
from lineardit.data.emoji_phrases import SIDE_BY_SIDE, STACKED
from lineardit.data.emoji_scenes import EmojiScenes
from lineardit.data.scene import PlacedObject, Scene
from lineardit.errors import InputError
from lineardit.evaluation.detector import Detection, Found, SceneDetector
from lineardit.evaluation.scenes import (
    MEASURES,
    Answer,
    Question,
    Rate,
    SceneScore,
    answer_sheet,
    answers,
    check_names,
    drawn_truth,
    judge,
    questions,
    says_background,
    says_relation,
    score_scenes,
    stands,
    tally,
)

PHRASINGS = ("train", "unseen", "unseen_templates", "unseen_words")
COUNT = 60


def placed(name: str, x: float, y: float) -> PlacedObject:
    return PlacedObject(name, "medium", x, y, 0.375)


SINGLE = Scene("white", (placed("cat", 0.5, 0.5),), "single")
PAIR = Scene("ocean", (placed("cat", 0.25, 0.5), placed("dog", 0.75, 0.5)), "pair", relation="left of")
THREE = Scene("navy", tuple(placed("cat", x, 0.5) for x in (0.2, 0.5, 0.8)), "count", arrangement="row")
GROUP = Scene("teal", (placed("cat", 0.2, 0.2), placed("dog", 0.8, 0.8)), "group", arrangement="diagonal")


def asking(scene: Scene, background: bool = False, relation: bool = False) -> Question:
    return Question("a prompt", 0, scene, background, relation)


def showing(*objects: tuple[str, float, float], background: str = "red") -> Detection:
    return Detection(tuple(Found(name, 0.9, x, y) for name, x, y in objects), background, 0.8)


@pytest.mark.parametrize(
    ("question", "detection", "right"),
    [
        (asking(SINGLE), showing(("cat", 0.1, 0.9)), {"single object": True, "all right": True}),
        (asking(SINGLE), showing(("dog", 0.5, 0.5)), {"single object": False, "all right": False}),
        (
            asking(SINGLE),
            showing(("dog", 0.5, 0.5), ("cat", 0.1, 0.1)),
            {"single object": True, "all right": False},
        ),
        (
            asking(SINGLE, background=True),
            showing(("cat", 0.5, 0.5), background="white"),
            {"single object": True, "background": True, "all right": True},
        ),
        (
            asking(SINGLE, background=True),
            showing(("cat", 0.5, 0.5)),
            {"single object": True, "background": False, "all right": False},
        ),
        (asking(THREE), showing(*[("cat", 0.1, 0.1)] * 3), {"count": True, "all right": True}),
        (asking(THREE), showing(*[("cat", 0.1, 0.1)] * 2), {"count": False, "all right": False}),
        (asking(THREE), showing(*[("cat", 0.1, 0.1)] * 4), {"count": False, "all right": False}),
        (
            asking(THREE),
            showing(*[("cat", 0.1, 0.1)] * 3, ("dog", 0.9, 0.9)),
            {"count": True, "all right": False},
        ),
        (
            asking(PAIR, relation=True),
            showing(("dog", 0.7, 0.5), ("cat", 0.3, 0.5)),
            {"two objects": True, "relation": True, "all right": True},
        ),
        (
            asking(PAIR, relation=True),
            showing(("cat", 0.7, 0.5), ("dog", 0.3, 0.5)),
            {"two objects": True, "relation": False, "all right": False},
        ),
        (
            asking(PAIR, relation=True),
            showing(("cat", 0.3, 0.5)),
            {"two objects": False, "relation": False, "all right": False},
        ),
        (
            asking(PAIR),
            showing(("cat", 0.7, 0.5), ("dog", 0.3, 0.5)),
            {"two objects": True, "all right": True},
        ),
        (asking(GROUP), showing(("cat", 0.7, 0.5), ("dog", 0.3, 0.5)), {"all right": True}),
        (asking(GROUP), showing(("cat", 0.7, 0.5)), {"all right": False}),
    ],
)
def test_a_picture_is_judged_by_what_was_asked_and_nothing_else(
    question: Question, detection: Detection, right: dict[str, bool]
) -> None:
    assert judge(question, detection) == right


@pytest.mark.parametrize(
    ("second", "true_relation"),
    [((0.8, 0.5), "left of"), ((0.2, 0.5), "right of"), ((0.5, 0.8), "above"), ((0.5, 0.2), "below")],
)
def test_a_relation_holds_where_it_is_drawn_and_no_other_does(
    second: tuple[float, float], true_relation: Relation
) -> None:
    first, other = Found("cat", 1.0, 0.5, 0.5), Found("dog", 1.0, *second)
    relations: tuple[Relation, ...] = ("left of", "right of", "above", "below")
    assert [relation for relation in relations if stands(first, other, relation)] == [true_relation]


def test_close_or_diagonal_objects_have_no_relation() -> None:
    cat = Found("cat", 1.0, 0.5, 0.5)
    assert not stands(cat, Found("dog", 1.0, 0.58, 0.5), "left of")
    assert not stands(cat, Found("dog", 1.0, 0.7, 0.75), "left of")
    assert stands(cat, Found("dog", 1.0, 0.75, 0.7), "left of")


@pytest.mark.parametrize("phrasing", PHRASINGS)
def test_backgrounds_are_found_in_exactly_the_captions_that_name_them(
    phrasing: emoji_captions.Phrasing, monkeypatch: pytest.MonkeyPatch
) -> None:
    named: list[bool] = []
    write = emoji_captions.Captions._with_background
    monkeypatch.setattr(
        emoji_captions.Captions,
        "_with_background",
        lambda *arguments: named.append(True) or write(*arguments),  # type: ignore[func-returns-value]
    )
    scenes = EmojiScenes(SceneConfig(), seed=8, phrasing=phrasing)
    wrong = []
    for index in range(600):
        named.clear()
        scene, prompt = scenes[index]
        if says_background(prompt, scene.background) != bool(named):
            wrong.append((prompt, scene.background))
    assert not wrong


@pytest.mark.parametrize("phrasing", ["train", "unseen"])
def test_relations_are_found_in_every_template_that_states_one(phrasing: str) -> None:
    silent = {
        "{a} next to {b}",
        "{b} beside {a}",
        "{a} and {b}",
        "{b} and {a}",
        "{b} with {a}",
        "{a} with {b}",
    }
    tables: dict[Relation, dict[str, tuple[str, ...]]] = {
        "left of": SIDE_BY_SIDE,
        "above": STACKED,
    }
    seen = 0
    for relation, table in tables.items():
        for template in table[phrasing]:
            pair = template.format(a="a top hat", b="a red apple")
            for prompt in (pair, f"{pair} over a red backdrop", f"{pair} on a white background"):
                assert says_relation(prompt, relation) == (template not in silent), prompt
                seen += 1
    assert seen >= 36


def test_questions_are_asked_in_the_order_of_the_scenes_with_a_seed_each() -> None:
    scenes = EmojiScenes(SceneConfig(), seed=3, split="held_out")
    asked = questions(scenes, COUNT, seed=70)
    assert [each.seed for each in asked] == list(range(70, 70 + COUNT))
    assert [(each.scene, each.prompt) for each in asked] == [scenes[index] for index in range(COUNT)]
    assert {each.states_background for each in asked} == {True, False}
    assert {each.states_relation for each in asked if each.scene.kind == "pair"} == {True, False}
    assert not any(each.states_relation for each in asked if each.scene.kind != "pair")
    with pytest.raises(InputError, match="count=0"):
        questions(scenes, 0)


def test_wilson_bounds_are_where_the_share_is_just_not_refuted() -> None:
    for right, asked in ((3, 10), (99, 100), (1, 7)):
        rate = Rate(right, asked)
        for bound in rate.interval():
            deviation = math.sqrt(bound * (1 - bound) / asked)
            assert abs(rate.share - bound) == pytest.approx(1.959964 * deviation, rel=1e-6)


def test_wilson_intervals_stay_in_reach_and_shrink() -> None:
    assert Rate(0, 10).interval() == pytest.approx((0.0, 0.27753), abs=1e-5)
    assert Rate(10, 10).interval() == pytest.approx((0.72247, 1.0), abs=1e-5)
    assert Rate(0, 0).interval() == (0.0, 1.0)
    assert math.isnan(Rate(0, 0).share)
    low, high = Rate(500, 1000).interval()
    assert high - low < 0.07


class Told(SceneDetector):
    """A detector that is told which scene each picture shows, by the number in its first pixel."""

    def __init__(self, scenes: Sequence[Scene]) -> None:
        super().__init__(
            DetectorConfig(
                widths=(2, 3, 5),
                depths=(0, 0, 0),
                objects=EmojiScenes(SceneConfig()).names,
                backgrounds=BACKGROUND_NAMES,
            )
        )
        self.told = scenes

    def detect(self, images: Tensor, *, batch_size: int = 64) -> list[Detection]:
        return [
            Detection(
                tuple(Found(each.name, 1.0, each.x, each.y) for each in self.told[int(number)].objects),
                self.told[int(number)].background,
                1.0,
            )
            for number in images[:, 0, 0, 0]
        ]


def numbered(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
    return torch.tensor(seeds).float()[:, None, None, None].expand(-1, 3, 16, 16)


@pytest.fixture(scope="module")
def asked() -> list[Question]:
    return questions(EmojiScenes(SceneConfig(), seed=4, split="held_out"), COUNT)


def test_pictures_of_the_truth_are_right_in_everything(asked: list[Question]) -> None:
    detector = Told([each.scene for each in asked])
    rates = tally(answers(asked, numbered, detector, batch_size=7))
    assert all(rate.right == rate.asked for rate in rates.values())
    kinds = Counter(each.scene.kind for each in asked)
    assert rates["all right"].asked == COUNT
    assert rates["single object"].asked == kinds["single"]
    assert rates["count"].asked == kinds["count"]
    assert rates["two objects"].asked == kinds["pair"]
    assert rates["relation"].asked == sum(each.states_relation for each in asked) < kinds["pair"]
    assert rates["background"].asked == sum(each.states_background for each in asked) < COUNT


def test_pictures_of_something_else_are_right_in_nothing(asked: list[Question]) -> None:
    alien = Scene("nowhere", (placed("dodo", 0.5, 0.5),), "single")
    rates = tally(answers(asked, numbered, Told([alien] * COUNT)))
    assert {measure for measure, rate in rates.items() if rate.right or not rate.asked} == set()


@pytest.mark.font
def test_drawn_truth_scores_what_the_detector_can_and_wrong_drawings_nothing(
    font: None, bundled: SceneDetector
) -> None:
    scenes = EmojiScenes(SceneConfig(objects=len(bundled.config.objects)), seed=31, split="held_out")
    asked = questions(scenes, COUNT)
    score = score_scenes(drawn_truth(scenes, asked), bundled, scenes, COUNT)
    assert score.generated == score.drawn
    assert all(score.drawn[measure].share >= 0.95 for measure in MEASURES)

    def shuffled(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        return drawn_truth(scenes, asked)(prompts, [(seed + 1) % COUNT for seed in seeds])

    wrong = score_scenes(shuffled, bundled, scenes, COUNT)
    assert wrong.drawn == score.drawn
    assert wrong.generated["all right"].right == 0
    assert wrong.generated["single object"].share < 0.1


def test_scenes_that_the_detector_cannot_name_are_refused() -> None:
    scenes = EmojiScenes(SceneConfig(objects=120))
    with pytest.raises(InputError, match="ask for the first 104 objects at most"):
        check_names(scenes, Told([]))


def score() -> SceneScore:
    generated = {measure: Rate(0, 0) for measure in MEASURES} | {"count": Rate(3, 4), "all right": Rate(3, 4)}
    drawn = {measure: Rate(0, 0) for measure in MEASURES} | {"count": Rate(4, 4), "all right": Rate(4, 4)}
    return SceneScore("held_out", "train", 4, 9, generated, drawn)


def test_the_score_as_json_has_every_measure_and_no_nan() -> None:
    facts = json.loads(json.dumps(score().as_json(), allow_nan=False))
    assert list(facts["rates"]) == [measure.replace(" ", "_") for measure in MEASURES]
    assert facts["rates"]["count"] == {
        "right": 3,
        "asked": 4,
        "share": 0.75,
        "interval_95": [0.3006, 0.9544],
        "detector_on_drawings": 1.0,
    }
    assert facts["rates"]["relation"]["share"] is None


def test_the_table_has_a_row_per_measure_and_the_detectors_own_share() -> None:
    table = score().table()
    assert table.row_count == len(MEASURES)
    row = [list(column.cells)[MEASURES.index("count")] for column in table.columns]
    assert row == ["count", "4", "75.0 %", "30.1 % to 95.4 %", "100.0 %"]


def test_the_sheet_has_a_green_tick_for_right_and_a_red_cross_for_wrong() -> None:
    image, detection = torch.zeros(3, 16, 16), showing()

    def colours(holds: bool) -> set[tuple[int, int, int]]:
        sheet = answer_sheet([Answer(asking(SINGLE), image, detection, {"single object": holds})])
        return {colour for _, colour in sheet.getcolors(100_000)}  # type: ignore[union-attr, misc]

    green, red = (24, 140, 60), (200, 30, 40)
    assert green in colours(True) and red not in colours(True)
    assert red in colours(False) and green not in colours(False)
    with pytest.raises(InputError, match="no answer"):
        answer_sheet([])
