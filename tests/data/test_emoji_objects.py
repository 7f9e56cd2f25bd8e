"""The tables of objects are complete, unambiguous and agree with each other."""

import doctest

import pytest

from lineardit.data import emoji_captions, emoji_objects
from lineardit.data.backgrounds import BACKGROUND_NAMES
from lineardit.data.emoji_objects import objects_by_name, read_table, regular_plural

OBJECTS = emoji_objects.emoji_objects()


def test_there_are_at_least_two_hundred_objects_with_glyphs_of_their_own() -> None:
    assert len(OBJECTS) >= 200
    assert len({each.glyph for each in OBJECTS}) == len(OBJECTS) == len(objects_by_name())


def test_every_word_means_one_object_only() -> None:
    meanings: dict[str, set[str]] = {}
    for each in OBJECTS:
        for noun in (*each.nouns, *each.reserved):
            for form in (noun.singular, noun.plural):
                for phrase in (form, f"{each.colour} {form}".strip()):
                    meanings.setdefault(phrase, set()).add(each.name)
    assert not {phrase: names for phrase, names in meanings.items() if len(names) > 1}


def test_no_word_is_both_trained_and_reserved() -> None:
    trained = {noun.singular for each in OBJECTS for noun in each.nouns}
    reserved = {noun.singular for each in OBJECTS for noun in each.reserved}
    assert len(reserved) > 70
    assert not trained & reserved


def test_every_object_is_seen_on_most_backgrounds() -> None:
    for each in OBJECTS:
        assert each.hidden_on <= set(BACKGROUND_NAMES)
        assert len(each.hidden_on) <= len(BACKGROUND_NAMES) / 2, each.name


def test_the_measured_table_covers_the_list_in_its_order() -> None:
    assert [row["noun"] for row in read_table("emoji_visibility.tsv")] == [each.name for each in OBJECTS]


def test_no_colour_word_contradicts_a_glyph_that_is_all_of_another_colour() -> None:
    measured = {row["noun"]: row for row in read_table("emoji_visibility.tsv")}
    for each in OBJECTS:
        row = measured[each.name]
        if each.colour and float(row["share"]) >= 0.8:
            assert each.colour == row["colour"], each.name


def test_every_object_is_in_the_table_of_the_unicode_words() -> None:
    words = emoji_objects.emoji_words()
    assert len(words) > 1300
    assert words["🐱"] == ("cat face", ("cat", "face", "pet"))
    for each in OBJECTS:
        assert each.glyph.replace("\ufe0f", "") in words, each.name


def test_the_unicode_words_carry_their_notice() -> None:
    text = (emoji_objects.files("lineardit.data") / "emoji_words.tsv").read_text("utf-8")
    licence = (emoji_objects.files("lineardit.data") / "emoji_words.LICENSE").read_text("utf-8")
    assert "Unicode-DFS-2016" in text.split("\n")[2]
    assert "COPYRIGHT AND PERMISSION NOTICE" in licence


@pytest.mark.parametrize(
    ("singular", "plural"),
    [("bus", "buses"), ("fox", "foxes"), ("pony", "ponies"), ("toy", "toys"), ("hat", "hats")],
)
def test_plurals_follow_the_rules(singular: str, plural: str) -> None:
    assert regular_plural(singular) == plural


@pytest.mark.parametrize("module", [emoji_objects, emoji_captions])
def test_the_examples_in_the_documentation_hold(module: object) -> None:
    result = doctest.testmod(module)  # type: ignore[arg-type]
    assert result.attempted and not result.failed
