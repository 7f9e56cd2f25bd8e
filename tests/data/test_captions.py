"""Captions in files and rows: several, with weights, and refused where they are none."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lineardit.data.captions import (
    LONGEST,
    MOST_CAPTION_BYTES,
    captions_from,
    captions_of_row,
    description_in,
)
from lineardit.data.records import BadCaption, Caption


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a cat", [("a cat", 1.0)]),
        (["a cat", " a tom ", ""], [("a cat", 1.0), ("a tom", 1.0)]),
        ({"a cat": 3, "a tom": 1.5}, [("a cat", 3.0), ("a tom", 1.5)]),
        ([{"text": "a cat", "weight": 2}, {"caption": "a tom"}], [("a cat", 2.0), ("a tom", 1.0)]),
        ({"captions": ["a", "b"], "weight": 2}, [("a", 2.0), ("b", 2.0)]),
        (None, []),
        (float("nan"), []),
        ("  \n", []),
        ([], []),
    ],
)
def test_all_ways_to_write_captions_mean_the_same(value: object, expected: list[tuple[str, float]]) -> None:
    assert captions_from(value) == tuple(Caption(*each) for each in expected)


@pytest.mark.parametrize(
    ("value", "weights", "message"),
    [
        (3, None, "not 3"),
        (b"a cat", None, "not b'a cat'"),
        ({"a cat": "much"}, None, "a weight is a number, not 'much'"),
        ({"a cat": True}, None, "a weight is a number"),
        ({"a cat": -1}, None, "lies between 0 and 1e9"),
        ({"a cat": float("nan")}, None, "lies between 0 and 1e9"),
        ({"a cat": 0}, None, "the weights of all captions are 0"),
        (["a", "b"], [1], "do not fit 2 captions"),
        (["a", "b"], "ab", "do not fit"),
        ("x" * (LONGEST + 1), None, "at most 20000 characters"),
        ("half \ud800", None, "half of a character"),
        ([[[["deep"]]]], None, "a text or a list of texts"),
    ],
)
def test_what_is_no_caption_is_named(value: object, weights: object, message: str) -> None:
    with pytest.raises(BadCaption, match=message):
        captions_from(value, weights)


def test_a_row_gives_the_columns_that_are_asked_for_or_the_usual_ones() -> None:
    row = {
        "file_name": "a.png",
        "short": "cat",
        "long": ["a cat on a mat"],
        "text": "animal",
        "weights": None,
    }
    assert captions_of_row(row) == (("animal", 1.0),)
    assert captions_of_row(row, {"short": 0.25, "long": 0.75}) == (("cat", 0.25), ("a cat on a mat", 0.75))
    assert captions_of_row({"file_name": "a.png"}) == ()
    assert captions_of_row({"captions": ["a", "b"], "weights": [1, 3]}) == (("a", 1.0), ("b", 3.0))
    with pytest.raises(BadCaption, match="there is no tall, only file_name, short"):
        captions_of_row(row, {"tall": 1.0})
    with pytest.raises(BadCaption, match="are 0"):
        captions_of_row(row, {"short": 0.0})
    with pytest.raises(BadCaption, match="are 0"):
        captions_of_row({"text": "a cat", "weight": 0})


def test_files_of_captions_are_lines_or_json() -> None:
    assert description_in(b"\xef\xbb\xbfa cat\r\n\n a tom\n", ".txt", "c.txt").captions == (
        ("a cat", 1.0),
        ("a tom", 1.0),
    )
    assert description_in(b'{"short": "cat"}', ".json", "c.json", {"short": 0.5}).captions == (("cat", 0.5),)
    assert description_in(b'["cat"]', ".json", "c.json").captions == (("cat", 1.0),)


@pytest.mark.parametrize(
    ("content", "suffix", "message"),
    [
        (b"\xff\xfe", ".txt", "c.txt is no UTF-8 text"),
        (b"{", ".json", "c.json is no JSON"),
        (b"[" * 100_000, ".json", "c.json is no JSON"),
        (b"7", ".json", "c.json: a caption is a text"),
        (b" " * (MOST_CAPTION_BYTES + 1), ".txt", "more than"),
    ],
)
def test_files_that_are_none_are_named(content: bytes, suffix: str, message: str) -> None:
    with pytest.raises(BadCaption, match=message):
        description_in(content, suffix, "c" + suffix)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["text", "caption", "captions", "weight", "weights", "x"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@given(json_values | st.dictionaries(st.text(max_size=4), json_values, max_size=3), st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_json_gives_captions_or_says_why_not(value: object, asked: bool) -> None:
    content = json.dumps(value).encode()
    try:
        found = description_in(content, ".json", "c.json", {"text": 1.0} if asked else None)
    except BadCaption:
        return
    assert all(caption.text.strip() and caption.weight >= 0 for caption in found.captions)
