import string

from hypothesis import given
from hypothesis import strategies as st

from lineardit.text.word_pieces import PAD, START, UNKNOWN, build_tokenizer

TEXTS = ["a red apple left of a cat", "two cats", "A CAT, on a sky-blue background"]
TOKENIZER = build_tokenizer(TEXTS, 300)


def test_common_words_are_whole_and_lower_case():
    assert TOKENIZER.encode("A cat left of two Cats").tokens == [
        START,
        "a",
        "cat",
        "left",
        "of",
        "two",
        "cats",
    ]


def test_an_unknown_word_is_spelled_with_pieces():
    assert TOKENIZER.encode("skyground").tokens == [START, "sky", "##ground"]
    assert TOKENIZER.encode("zcat").tokens == [START, "z", "##c", "##at"]


@given(st.text(alphabet=string.printable, max_size=60))
def test_nothing_that_a_keyboard_types_is_unknown(text):
    tokens = TOKENIZER.encode(text).tokens
    assert UNKNOWN not in tokens
    assert "".join(token.removeprefix("##") for token in tokens[1:]) == "".join(text.lower().split())


def test_accents_do_not_matter():
    assert TOKENIZER.encode("Cät").ids == TOKENIZER.encode("cat").ids


def test_the_empty_prompt_is_one_token():
    assert TOKENIZER.encode("").tokens == [START]
    assert TOKENIZER.token_to_id(PAD) == 0


def test_the_vocabulary_depends_on_the_texts_alone_and_keeps_its_size():
    assert build_tokenizer(TEXTS, 300).to_str() == TOKENIZER.to_str()
    assert TOKENIZER.get_vocab_size() <= 300
    small = build_tokenizer(TEXTS, 150)
    assert small.get_vocab_size() == 150
    assert small.get_vocab().items() <= TOKENIZER.get_vocab().items()
