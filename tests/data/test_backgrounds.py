"""Backgrounds are told apart by eye and by a detector, and by name."""

import re

import torch

from lineardit.data.backgrounds import BACKGROUNDS, background_rows


def test_any_two_backgrounds_are_far_apart() -> None:
    rows = background_rows(32).double()
    distances = (rows[:, None] - rows[None]).pow(2).sum(2).mean(2).sqrt() + 9 * torch.eye(len(rows))
    assert distances.min() > 0.3, (
        distances.min(),
        [BACKGROUNDS[i].name for i in divmod(int(distances.argmin()), len(rows))],
    )


def test_a_plain_background_has_one_colour_and_a_graded_one_many() -> None:
    for each, rows in zip(BACKGROUNDS, background_rows(24), strict=True):
        assert (len(rows.unique(dim=1)[0]) == 1) == each.plain


def test_colours_are_interpolated_between_the_stops() -> None:
    ocean = next(each for each in BACKGROUNDS if each.name == "ocean")
    top, bottom = (torch.tensor(list(bytes.fromhex(colour))).double() / 255 for _, colour in ocean.stops)
    expected = torch.stack([top + (bottom - top) * share for share in (1 / 6, 3 / 6, 5 / 6)], dim=1)
    torch.testing.assert_close(ocean.colours(3).double(), expected, atol=1e-6, rtol=0)


def test_colours_at_any_height_agree_on_the_same_places() -> None:
    for each in BACKGROUNDS:
        torch.testing.assert_close(each.colours(5)[:, 2], each.colours(15)[:, 7])


def test_there_are_fourteen_plain_and_some_graded_backgrounds_in_range() -> None:
    assert sum(each.plain for each in BACKGROUNDS) >= 14
    assert sum(not each.plain for each in BACKGROUNDS) >= 4
    assert background_rows(7).abs().max() <= 1


def test_no_two_backgrounds_share_a_word() -> None:
    words = [word for each in BACKGROUNDS for word in (*each.words, *each.reserved, *each.places)]
    assert len(set(words)) == len(words)


def test_words_of_graded_backgrounds_can_follow_a_preposition() -> None:
    for each in BACKGROUNDS:
        for word in each.words:
            assert each.plain != bool(re.match(r"(an?|the) ", word)), word
