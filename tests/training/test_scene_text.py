"""Captions in, the truth of their scenes out: questions, answers, losses, and what is measured."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from lineardit.config.models import SceneTextConfig
from lineardit.config.runs import LoopConfig, TextRun
from lineardit.config.scenes import SceneConfig
from lineardit.data.backgrounds import BACKGROUND_NAMES, BACKGROUNDS
from lineardit.data.draws import Draws
from lineardit.data.emoji_scenes import EmojiScenes
from lineardit.data.scene import PlacedObject, Scene
from lineardit.errors import ConfigError
from lineardit.interop.text import load_text_encoder, save_text_encoder
from lineardit.training import checkpoint, scene_text
from lineardit.training.scene_text import (
    Answers,
    Reader,
    SceneTextTask,
    Truth,
    accuracy,
    ask,
    build_reader,
    cell,
    reading_losses,
    roughened,
    says_background,
    train_scene_text,
)

RUN = TextRun(
    model=SceneTextConfig(vocabulary=700, width=32, depth=1, head_dim=16),
    scenes=SceneConfig(objects=12),
    train=LoopConfig(
        steps=30, batch_size=48, seed=3, dtype="fp32", warmup_steps=5, learning_rate=5e-3, sample_every=1000
    ),
    captions_per_scene=2,
)


@pytest.fixture(scope="module")
def scenes() -> EmojiScenes:
    return EmojiScenes(RUN.scenes, RUN.train.seed)


@pytest.fixture(scope="module", autouse=True)
def few_captions():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scene_text, "VOCABULARY_CAPTIONS", 300)
        patch.setattr(scene_text, "MEASURED_SCENES", 8)
        yield


@pytest.fixture(scope="module")
def reader(scenes: EmojiScenes) -> Reader:
    torch.manual_seed(0)
    return build_reader(RUN, scenes)


def pair(relation: str, first: PlacedObject, second: PlacedObject, background: str = "red") -> Scene:
    return Scene(background, (first, second), "pair", relation=relation)


CAT, DOG = PlacedObject("cat", "small", 0.25, 0.5, 0.25), PlacedObject("dog", "large", 0.99, 0.5, 0.5)


def perfect(truth: Truth) -> Answers:
    return Answers(
        100.0 * functional.one_hot(truth.counts, scene_text.COUNTS),
        100 * truth.columns,
        100 * truth.rows,
        100 * truth.sizes,
        100.0 * functional.one_hot(truth.background, len(BACKGROUNDS) + 1),
    )


def test_questions_are_about_the_scene_and_about_what_is_not_in_it(scenes: EmojiScenes) -> None:
    two_cats = Scene("red", (CAT, PlacedObject("cat", "small", 0.75, 0.6, 0.25)), "count")
    truth = ask(
        ["a cat left of a dog on red", "two cats"],
        [pair("left of", CAT, DOG), two_cats],
        scenes.names,
        Draws("absent"),
    )
    asked = [[scenes.names[number] for number in row] for row in truth.queries.tolist()]
    assert asked[0][:2] == ["cat", "dog"] and asked[1][0] == "cat"
    assert all(len(set(row)) == scene_text.QUERIES for row in asked)
    assert truth.counts.tolist() == [[1, 1, 0, 0, 0, 0, 0, 0], [2, 0, 0, 0, 0, 0, 0, 0]]
    assert truth.columns[0, 0].tolist() == [0, 0, 1, 0, 0, 0, 0, 0]
    assert truth.columns[0, 1].tolist() == [0, 0, 0, 0, 0, 0, 0, 1]
    assert truth.columns[1, 0].tolist() == [0, 0, 0.5, 0, 0, 0, 0.5, 0]
    assert truth.rows[1, 0].tolist() == [0, 0, 0, 0, 1, 0, 0, 0]
    assert truth.sizes[0, :2].tolist() == [[1, 0, 0], [0, 0, 1]]
    assert truth.background.tolist() == [BACKGROUND_NAMES.index("red"), len(BACKGROUNDS)]
    assert not truth.columns[truth.counts == 0].any()


@pytest.mark.parametrize(("position", "number"), [(0.0, 0), (0.124, 0), (0.125, 1), (0.5, 4), (1.0, 7)])
def test_a_place_lies_in_one_of_eight_cells(position: float, number: int) -> None:
    assert cell(position) == number


@pytest.mark.parametrize("phrasing", ["train", "unseen_templates", "unseen_words", "unseen"])
def test_three_in_four_captions_say_the_background(phrasing) -> None:
    source = EmojiScenes(SceneConfig(), 5, phrasing=phrasing)
    said = []
    for index in range(600):
        scene, caption = source[index]
        said.append(says_background(caption, scene.background))
        assert said[-1] or "background" not in caption and "backdrop" not in caption, caption
    assert 0.68 < sum(said) / len(said) < 0.82


@pytest.mark.parametrize(
    ("caption", "background"),
    [("a red apple", "red"), ("an orange left of a cat", "orange"), ("an orange on white", "orange")],
)
def test_a_colour_of_something_else_is_no_background(caption: str, background: str) -> None:
    assert not says_background(caption, background)


def test_losses_are_cross_entropies_of_what_is_there() -> None:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    answers = Answers(random(2, 8, 5), random(2, 8, 8), random(2, 8, 8), random(2, 8, 3), random(2, 22))
    counts = torch.zeros(2, 8, dtype=torch.long)
    counts[0, :2], counts[1, 0] = 1, 3
    truth = Truth(
        torch.zeros(2, 8, dtype=torch.long),
        counts,
        random(2, 8, 8).softmax(-1),
        random(2, 8, 8).softmax(-1),
        random(2, 8, 3).softmax(-1),
        torch.tensor([4, 21]),
    )
    losses = reading_losses(answers, truth)
    there = [(0, 0), (0, 1), (1, 0)]

    def mean_entropy(logits: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        each = [-(shares[place] * logits[place].log_softmax(-1)).sum() for place in there]
        return torch.stack(each).mean()

    torch.testing.assert_close(losses["column"], mean_entropy(answers.columns, truth.columns))
    torch.testing.assert_close(losses["row"], mean_entropy(answers.rows, truth.rows))
    torch.testing.assert_close(losses["size"], mean_entropy(answers.sizes, truth.sizes))
    counted = answers.counts.log_softmax(-1).gather(-1, counts[..., None])
    torch.testing.assert_close(losses["count"], -counted.mean())
    background = answers.background.log_softmax(-1)
    torch.testing.assert_close(losses["background"], -(background[0, 4] + background[1, 21]) / 2)


def test_a_batch_is_a_function_of_the_step(scenes: EmojiScenes, reader: Reader) -> None:
    task, again = SceneTextTask(RUN, scenes, reader), SceneTextTask(RUN, scenes, reader)
    captions, drawn = task.batch(3)
    torch.manual_seed(99)
    assert again.batch(3) == (captions, drawn)
    assert drawn == [scenes.scene(index) for index in range(72, 96) for _ in range(2)]
    assert task.batch(4)[0] != captions


def test_the_position_tells_what_decides_the_batches(scenes: EmojiScenes, reader: Reader) -> None:
    before = SceneTextTask(RUN, scenes, reader).position(7)
    assert before["step"] == 7 and json.loads(json.dumps(before)) == before
    larger = RUN.model_copy(update={"train": RUN.train.model_copy(update={"batch_size": 50})})
    others = {
        "batch_size": SceneTextTask(larger, scenes, reader),
        "captions_per_scene": SceneTextTask(RUN.model_copy(update={"captions_per_scene": 3}), scenes, reader),
        "data": SceneTextTask(RUN, EmojiScenes(RUN.scenes, 4), reader),
    }
    for key, other in others.items():
        after = other.position(7)
        assert [each for each in before if after[each] != before[each]] == [key]


def test_reading_in_chunks_of_one_length_changes_no_loss(scenes: EmojiScenes, reader: Reader) -> None:
    task = SceneTextTask(RUN, scenes, reader)
    in_four = task.losses(0)
    captions, drawn = task.batch(0)
    truth = ask(captions, drawn, scenes.names, Draws("absent", RUN.train.seed, 0))
    at_once = reading_losses(reader.read(captions, truth.queries), truth)
    for name, value in at_once.items():
        torch.testing.assert_close(in_four[name], value, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        in_four["loss"], sum(value for name, value in in_four.items() if name != "loss")
    )


def test_a_fresh_head_attends_to_the_word_that_is_asked_for(scenes: EmojiScenes) -> None:
    torch.manual_seed(0)
    config = SceneTextConfig(vocabulary=700, width=192, depth=3)
    reader = build_reader(RUN.model_copy(update={"model": config}), scenes)
    caption = "a cat left of a dog"
    words = reader.encoder.tokenizer.encode(caption).tokens
    (tokens,) = reader.encoder.encode([caption]).embeddings
    for name in ("cat", "dog"):
        question = reader.head.questions.weight[scenes.names.index(name)]
        assert words[int((tokens @ question).argmax())] == name


def test_roughening_leaves_most_captions_alone_and_says_the_same_twice() -> None:
    captions = ["a large cat left of the elephant on a red background"] * 1000
    rough = [roughened(caption, draws) for draws in [Draws("rough", 1)] for caption in captions]
    assert rough == [roughened(caption, draws) for draws in [Draws("rough", 1)] for caption in captions]
    assert 0.1 < sum(text != captions[0] for text in rough) / 1000 < 0.4
    assert any(text == "large cat left of elephant on red background" for text in rough)
    # No short word is mistyped: another could come of it.
    assert all({"cat", "of", "on", "red"} <= set(text.split()) for text in rough)


def test_right_answers_are_counted_right_and_others_wrong(scenes: EmojiScenes) -> None:
    truths: list[Truth] = []
    original = scene_text.ask

    def remembering(*arguments):
        truths.append(original(*arguments))
        return truths[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scene_text, "ask", remembering)
        right = accuracy(lambda captions, queries: perfect(truths[-1]), scenes, 100)
        assert right == {"presence": 1.0, "count": 1.0, "relation": 1.0, "background": 1.0}

        def mirrored(captions, queries):
            best = perfect(truths[-1])
            return best._replace(columns=best.columns.flip(-1), rows=best.rows.flip(-1))

        assert accuracy(mirrored, scenes, 100) == right | {"relation": 0.0}

        def nothing_there(captions, queries):
            best = perfect(truths[-1])
            return best._replace(counts=torch.zeros_like(best.counts))

        assert accuracy(nothing_there, scenes, 100) == right | {"presence": 0.5, "count": 0.0}


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory, scenes: EmojiScenes) -> Path:
    """The folder of an encoder of two blocks that is there already."""
    torch.manual_seed(0)
    config = SceneTextConfig(vocabulary=700, width=32, depth=2, head_dim=16)
    encoder = build_reader(RUN.model_copy(update={"model": config}), scenes).encoder
    folder = tmp_path_factory.mktemp("known")
    save_text_encoder(folder, encoder)
    return folder


def going_on(known: Path, **changes: Any) -> TextRun:
    usual = {"scenes": RUN.scenes, "train": RUN.train, "start": known, "trained_blocks": 1}
    return TextRun(**usual | changes)


def test_of_an_encoder_that_goes_on_only_the_last_blocks_learn(known: Path, tmp_path: Path) -> None:
    run = going_on(known, train=RUN.train.model_copy(update={"steps": 2, "ema_half_life": 0.01}))
    before = load_text_encoder(known).state_dict()
    after = load_text_encoder(train_scene_text(run, tmp_path / "run", resume=False)).state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if name.startswith("blocks.1.")}


def test_the_anchor_measures_how_far_vectors_have_moved(known: Path, scenes: EmojiScenes) -> None:
    run = going_on(known, anchor=3.0)
    task = SceneTextTask(run, scenes, build_reader(run, scenes))
    still = task.losses(0)
    assert float(still["anchor"].detach()) == 0
    torch.testing.assert_close(still["loss"], sum(value for name, value in still.items() if name != "loss"))
    encoder = task.model.get_submodule("encoder")
    with torch.no_grad():
        encoder.get_parameter("norm.weight").mul_(1.5)
        encoder.get_parameter("norm.bias").mul_(1.5)
    # Vectors of one and a half times the size have moved by half of their size.
    assert float(task.losses(0)["anchor"].detach()) == pytest.approx(3 * 0.5**2, rel=1e-4)
    free = going_on(known, anchor=0.0)
    assert "anchor" not in SceneTextTask(free, scenes, build_reader(free, scenes)).losses(0)


def test_an_encoder_that_goes_on_is_asked_for_what_its_words_mean(known: Path, scenes: EmojiScenes) -> None:
    reader = build_reader(going_on(known), scenes)
    (cat,) = reader.encoder.encode(["cat"]).embeddings
    own = functional.layer_norm(cat[1:].mean(0), (32,))
    torch.testing.assert_close(reader.head.questions.weight[scenes.names.index("cat")], own)


def test_more_blocks_than_there_are_cannot_learn(known: Path, scenes: EmojiScenes) -> None:
    with pytest.raises(ConfigError, match=r"trained_blocks=3, but .* has 2. Use trained_blocks=2 or less"):
        build_reader(going_on(known, trained_blocks=3), scenes)


def test_a_run_names_one_encoder(known: Path) -> None:
    with pytest.raises(ConfigError, match="both are given: give one of them"):
        going_on(known, model=RUN.model)
    with pytest.raises(ConfigError, match="neither is given: give one of them"):
        TextRun(train=RUN.train)


def test_training_learns_and_leaves_an_encoder_that_can_be_read(tmp_path: Path) -> None:
    folder = train_scene_text(RUN, tmp_path / "run", resume=False)
    encoder = load_text_encoder(folder)
    assert encoder.config == RUN.model
    saved = checkpoint.load_newest(tmp_path / "run")
    assert saved is not None
    assert torch.equal(encoder.pieces.weight, saved.tensors["ema"]["encoder.pieces.weight"])
    assert encoder.encode(["a cat left of a dog"]).embeddings.shape == (1, 7, 32)
    scenes = EmojiScenes(RUN.scenes, RUN.train.seed)
    torch.manual_seed(0)
    task = SceneTextTask(RUN, scenes, build_reader(RUN, scenes))
    before = task.losses(1000)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert f'"step": {RUN.train.steps}' in lines[-1]
    after = float(lines[-1].split('"loss": ')[1].split(",")[0])
    assert after < 0.75 * float(before["loss"].detach())
