import inspect
import logging

import pytest

from lineardit.errors import PromptError
from lineardit.text.prompt import check_prompts, check_text, sana_instruction, warn_of_cut


def test_prompts_that_say_something_pass():
    check_prompts(["a cat", " a dog "])


@pytest.mark.parametrize("prompt", ["", "  ", "\n\t"])
def test_an_empty_prompt_is_refused_with_an_example_of_one_that_passes(prompt):
    with pytest.raises(PromptError, match=r"^the prompt is empty\. Say what to draw, as in \"a red apple"):
        check_prompts([prompt])


def test_among_several_prompts_the_empty_one_is_named():
    with pytest.raises(PromptError, match="prompt 2 of 3 is empty"):
        check_prompts(["a cat", " ", "a dog"])


@pytest.mark.parametrize("half", ["\ud83d", "\udc08", "\udcff"])
def test_half_of_a_character_is_refused_with_its_place(half):
    complaint = r"^the prompt has half of a character, '.ud.{3}' at place 3\. Give the whole"
    with pytest.raises(PromptError, match=complaint) as one:
        check_prompts([f"a {half} cat"])
    assert str(one.value).isascii()
    with pytest.raises(PromptError, match="prompt 2 of 2 has half of a character"):
        check_prompts(["a cat", half])
    with pytest.raises(PromptError, match="^the negative prompt has half of a character"):
        check_text(f"blurry{half}", "the negative prompt")


def test_whole_characters_of_any_script_and_no_text_at_all_pass():
    check_prompts(["\U0001f408 \u00e4\u4e2d"])
    check_text("")


def test_no_prompt_at_all_is_refused():
    with pytest.raises(PromptError, match="no prompt was given"):
        check_prompts([])


@pytest.mark.parametrize(
    ("prompt", "end", "named"),
    [
        ("a cat and a dog", 5, "and a dog"),
        ("a cat and a dog", 6, "and a dog"),
        ("a cat and a dog", 8, "and a dog"),
        ("a cat and a dog", 9, "a dog"),
        ("hippopotamus", 4, "hippopotamus"),
        ("a cat", 0, "a cat"),
    ],
)
def test_a_cut_names_every_word_that_was_not_kept_whole(caplog, prompt, end, named):
    with caplog.at_level(logging.WARNING):
        warn_of_cut(prompt, end, 3)
    assert caplog.messages == [
        f"the prompt is longer than 3 tokens; cut off, and not in the picture: {named}"
    ]


def test_a_long_cut_names_the_first_words_and_counts_the_others(caplog):
    with caplog.at_level(logging.WARNING):
        warn_of_cut("x " + " ".join(f"w{number}" for number in range(20)), 1, 3)
    assert caplog.messages[0].endswith("w10 w11 and 8 more words")


def test_blanks_at_the_end_are_no_cut(caplog):
    with caplog.at_level(logging.WARNING):
        warn_of_cut("a cat   ", 5, 3)
    assert not caplog.messages


def test_the_instruction_is_the_published_one_to_the_byte():
    diffusers = pytest.importorskip("diffusers")
    signature = inspect.signature(diffusers.SanaPipeline.__call__)
    published = signature.parameters["complex_human_instruction"].default
    assert sana_instruction() == "\n".join(published)
    assert len(published) == 8
