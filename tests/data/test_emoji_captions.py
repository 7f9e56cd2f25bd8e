"""Captions: true to their scenes, grammatical, varied, and some of them kept from training."""

import re
from collections import Counter
from functools import cache

import pytest

from lineardit.config.scenes import SceneConfig
from lineardit.data.backgrounds import BACKGROUNDS
from lineardit.data.draws import Draws
from lineardit.data.emoji_captions import Captions, Phrasing, article, check_choice, vocabulary, words_of
from lineardit.data.emoji_layout import place_of
from lineardit.data.emoji_objects import emoji_objects
from lineardit.data.emoji_phrases import PLACES
from lineardit.data.emoji_scenes import EmojiScenes
from lineardit.data.scene import PlacedObject, Scene
from lineardit.errors import InputError

PHRASINGS: tuple[Phrasing, ...] = ("train", "unseen", "unseen_templates", "unseen_words")
COLOURS = sorted({each.colour for each in emoji_objects() if each.colour}, key=len, reverse=True)


@cache
def written(phrasing: Phrasing) -> list[tuple[Scene, str]]:
    """Scenes of both splits, each with two captions."""
    pairs = []
    for split in ("train", "held_out"):
        source = EmojiScenes(
            SceneConfig(objects=len(emoji_objects())), seed=21, split=split, phrasing=phrasing
        )
        for index in range(150):
            scene = source.scene(index)
            pairs += [(scene, caption) for caption in source.captions(scene, index, 2)]
    return pairs


def without_background(scene: Scene, caption: str) -> str:
    """The caption with the words for the scene's background replaced by GROUND."""
    background = next(each for each in BACKGROUNDS if each.name == scene.background)
    words = sorted((*background.words, *background.reserved, *background.places), key=len, reverse=True)
    for word in words:
        bare = re.sub(r"^(an?|the) ", "", word)
        for pattern in (
            rf"\b{word} (background|backdrop)",
            rf"\b{bare} (background|backdrop)",
            rf"background: {word}$",
            rf"background is {word}$",
            rf"\b(on|against) {word}$",
            rf"^{word} ",
            rf"\b{word}\b" if not background.plain else "^$",
        ):
            caption, found = re.subn(pattern, "GROUND ", caption)
            if found:
                return caption
    return caption


FORMS = {
    form: each.name
    for each in emoji_objects()
    for noun in (*each.nouns, *each.reserved)
    for form in (noun.singular, noun.plural)
}
LONGEST_FIRST = sorted(FORMS, key=len, reverse=True)
COLOURED = [form for form in LONGEST_FIRST if form.startswith(tuple(f"{colour} " for colour in COLOURS))]
# A blue heart is an object; an orange fox is a fox, and no orange.
THING = re.compile(
    r"(?:\ban? )?(?<![-\w])(?:(?:small|little|large|big|tiny|huge) )?"
    rf"(?:({'|'.join(COLOURED)})|(?:(?:{'|'.join(COLOURS)}) )?({'|'.join(LONGEST_FIRST)}))(?![-\w])"
)


@cache
def tokens(scene: Scene, caption: str) -> tuple[str, list[str]]:
    """The caption with nouns, their articles and adjectives as THING; and the objects meant, in order."""
    text = without_background(scene, caption)
    return THING.sub("THING", text), [FORMS[found[1] or found[2]] for found in THING.finditer(text)]


@pytest.mark.parametrize("phrasing", PHRASINGS)
def test_every_object_is_named_and_nothing_else(phrasing: Phrasing) -> None:
    for scene, caption in written(phrasing):
        _, meant = tokens(scene, caption)
        if scene.kind == "count":
            assert meant == [scene.objects[0].name], caption
        else:
            assert sorted(meant) == sorted(each.name for each in scene.objects), caption


@pytest.mark.parametrize("phrasing", PHRASINGS)
def test_the_number_said_is_the_number_of_objects(phrasing: Phrasing) -> None:
    numbers = {
        2: {"two", "2", "pair", "couple", "duo"},
        3: {"three", "3", "trio"},
        4: {"four", "4", "quartet"},
    }
    for scene, caption in written(phrasing):
        if scene.kind == "count":
            said = [count for count, words in numbers.items() if words & set(words_of(caption))]
            assert said == [len(scene.objects)], caption


RELATIONS = (
    (r"THING (placed |to the )?left of THING", "left of"),
    (r"THING (to the )?right of THING", "right of"),
    (
        r"(THING )?on the left(,| and) (on the right )?THING|left: THING, right: THING|on the left THING and",
        "left of",
    ),
    (r"THING on the right and THING on the left|THING with THING to its left", "right of"),
    (r"THING with THING to its right|THING, and to the right of it THING", "left of"),
    (r"to the left of THING there is THING", "right of"),
    (
        r"THING (above|over) THING|THING at the top and THING at the bottom|THING above and THING below",
        "above",
    ),
    (
        r"THING with THING below it|top: THING, bottom: THING|at the top THING and at the bottom THING",
        "above",
    ),
    (
        r"THING (placed )?(below|under|beneath|underneath) THING|THING at the bottom and THING at the top",
        "below",
    ),
    (r"above THING there is THING", "below"),
)
NEUTRAL = r"THING (and|with|next to|beside) THING"


@pytest.mark.parametrize("phrasing", PHRASINGS)
def test_the_relation_said_is_the_geometry(phrasing: Phrasing) -> None:
    found: Counter[str] = Counter()
    for scene, caption in written(phrasing):
        if scene.kind != "pair":
            continue
        text, meant = tokens(scene, caption)
        at = {each.name: each for each in scene.objects}
        first, second = (at[name] for name in meant)
        holds = {
            "left of": second.x - first.x >= 0.3,
            "right of": first.x - second.x >= 0.3,
            "above": second.y - first.y >= 0.3,
            "below": first.y - second.y >= 0.3,
        }
        said = [relation for pattern, relation in RELATIONS if re.search(pattern, text)]
        assert said or re.search(NEUTRAL, text), caption
        assert all(holds[relation] for relation in said), (caption, text)
        found.update(said)
    assert len(found) == 4


@pytest.mark.parametrize("phrasing", PHRASINGS)
def test_the_place_said_is_the_place(phrasing: Phrasing) -> None:
    words = {
        phrase: place for table in PLACES.values() for place, phrases in table.items() for phrase in phrases
    }
    longest_first = sorted(words, key=len, reverse=True)
    found: Counter[str] = Counter()
    for scene, caption in written(phrasing):
        if scene.kind == "single":
            said = next((words[phrase] for phrase in longest_first if phrase in caption), None)
            if said and caption.endswith(("at the beach", "at the seaside")) and said not in caption:
                continue
            found[said or "nothing"] += 1
            assert said in (None, place_of(scene.objects[0].x, scene.objects[0].y)), caption
    assert len(found) == 10


@pytest.mark.parametrize("phrasing", PHRASINGS)
def test_sizes_said_are_those_of_the_scene(phrasing: Phrasing) -> None:
    sizes = {
        "small": "small",
        "little": "small",
        "tiny": "small",
        "large": "large",
        "big": "large",
        "huge": "large",
    }
    for scene, caption in written(phrasing):
        present = {each.size for each in scene.objects}
        assert {sizes[word] for word in words_of(caption) if word in sizes} <= present, caption


@pytest.mark.parametrize("phrasing", PHRASINGS)
def test_no_other_background_is_named(phrasing: Phrasing) -> None:
    others = {word: each.name for each in BACKGROUNDS for word in (*each.words, *each.reserved)}
    mentioned = 0
    for scene, caption in written(phrasing):
        found = re.search(r"(?:\ban? )([a-z -]+?) (?:background|backdrop)", caption)
        rest = without_background(scene, caption)
        mentioned += rest != caption
        if found and found[1] in others:
            assert others[found[1]] == scene.background, caption
        assert (
            not re.search(r"background|backdrop", rest.replace("in the background", "")) or "GROUND" in rest
        ), caption
    assert mentioned / len(written(phrasing)) == pytest.approx(0.75, abs=0.05)


def test_the_right_article_stands_before_every_word() -> None:
    assert [article(word) for word in ("orange", "unicorn", "hourglass", "ufo", "t-rex")] == [
        "an",
        "a",
        "an",
        "a",
        "a",
    ]
    vowels = re.compile(r"\ba (?!uni|ufo)[aeiou]|\ban [^aeiouh]|\ban uni|\b(\w+) \1\b")
    for phrasing in PHRASINGS:
        for _, caption in written(phrasing):
            assert not vowels.search(caption), caption


@pytest.mark.parametrize("phrasing", PHRASINGS)
def test_captions_are_clean_and_of_known_words(phrasing: Phrasing) -> None:
    known = set(vocabulary())
    for _, caption in written(phrasing):
        assert set(words_of(caption)) <= known
        assert caption == caption.strip().lower()
        assert not re.search(r"  | ,|[{}]|,,", caption), caption


def test_the_vocabulary_holds_no_word_that_is_never_said() -> None:
    said = {word for phrasing in PHRASINGS for _, caption in written(phrasing) for word in words_of(caption)}
    assert len(said) > 0.5 * len(vocabulary())
    assert "core" not in vocabulary()


def test_unseen_templates_never_come_up_in_training() -> None:
    trained = {tokens(scene, caption)[0] for scene, caption in written("train")}
    unseen = {
        tokens(scene, caption)[0] for scene, caption in written("unseen_templates") if scene.kind != "group"
    }
    assert not trained & unseen


def test_reserved_words_never_come_up_in_training() -> None:
    reserved = {noun.singular for each in emoji_objects() for noun in each.reserved} | {"tiny", "huge"}
    train = " | ".join(caption for _, caption in written("train"))
    unseen = " | ".join(caption for _, caption in written("unseen_words"))
    said = {word for word in reserved if re.search(rf"(?<![-\w]){re.escape(word)}(?![-\w])", train)}
    assert not said
    assert sum(word in unseen for word in reserved) > 35


def test_the_sentence_of_the_readme_is_one_of_training() -> None:
    source = EmojiScenes(SceneConfig(), seed=1)
    assert not source.composition.held_out_pairs("sky blue", ["apple", "cat"])
    index = next(i for i in range(10**6) if source.scene(i).relation == "left of")
    scene = source.scene(index)
    first, second = (
        type(each)(name, each.size, each.x, each.y, each.side)
        for each, name in zip(scene.objects, ("apple", "cat"), strict=True)
    )
    asked = Scene("sky blue", (first, second), "pair", "left of")
    writer, draws = Captions(), Draws("readme")
    captions = {writer.write(asked, draws) for _ in range(1200)}
    assert len(captions) > 250
    assert any("red apple left of a cat on a sky blue background" in caption for caption in captions)


def test_objects_that_share_a_noun_are_told_apart_by_their_colour() -> None:
    spots = [
        PlacedObject(name, "medium", x, 0.5, 0.375) for name, x in (("apple", 0.25), ("green apple", 0.75))
    ]
    writer, draws = Captions(), Draws("apples")
    for _ in range(100):
        caption = writer.write(Scene("white", tuple(spots), "pair", "left of"), draws)
        assert "red apple" in caption
        assert "green apple" in caption


def test_a_scene_has_many_captions_and_the_first_do_not_depend_on_how_many() -> None:
    source = EmojiScenes(SceneConfig(), seed=5)
    for index in range(20):
        scene = source.scene(index)
        many = source.captions(scene, index, 30)
        assert len(set(many)) > 10
        assert many[:4] == source.captions(scene, index, 4)


def test_captions_alone_are_those_of_the_scenes() -> None:
    source = EmojiScenes(SceneConfig(), seed=5)
    assert list(source.captions_only(10, 5)) == [source[index][1] for index in range(10, 15)]


def test_an_unknown_choice_is_refused_with_the_choices() -> None:
    with pytest.raises(InputError, match="phrasing='odd' is none of train, unseen"):
        check_choice("phrasing", "odd", ("train", "unseen"))
