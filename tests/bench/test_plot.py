"""Plots and tables: what they draw lies where it should."""

import math
import re
from xml.etree import ElementTree

import pytest

from lineardit.bench.plot import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, line_plot
from lineardit.bench.table import markdown_table, significant
from lineardit.errors import InputError

SVG = "{http://www.w3.org/2000/svg}"
LABELS = {"title": "Times", "x_label": "tokens", "y_label": "seconds"}


def places(svg: str) -> list[list[tuple[float, float]]]:
    lines = ElementTree.fromstring(svg).iter(f"{SVG}polyline")
    return [[tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()] for line in lines]


def words(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_a_power_is_a_straight_line_on_logarithmic_axes() -> None:
    points = [(10.0**k, 0.01 * 10.0 ** (2 * k)) for k in (3, 1, 2)]
    ((first, second, third),) = places(line_plot({"a": points}, **LABELS, log_x=True, log_y=True))
    assert first == (LEFT, HEIGHT - BOTTOM) and third == (WIDTH - RIGHT, TOP)
    assert math.isclose(second[0], (first[0] + third[0]) / 2) and math.isclose(
        second[1], (first[1] + third[1]) / 2
    )


def test_linear_axes_end_at_round_numbers_around_the_points() -> None:
    svg = line_plot({"a": [(0.0, 0.31), (50.0, 0.94)], "b": [(25.0, 0.5)]}, **LABELS)
    line, dot = places(svg)
    ticks = [word for word in words(svg) if re.fullmatch(r"[\d.]+", word)]
    assert ticks == ["0", "10", "20", "30", "40", "50", "0.2", "0.4", "0.6", "0.8", "1"]
    assert line[0][0] == LEFT and dot[0][0] == pytest.approx((LEFT + WIDTH - RIGHT) / 2)
    assert line[1][1] == pytest.approx(HEIGHT - BOTTOM + (TOP + BOTTOM - HEIGHT) * 0.74 / 0.8, abs=0.1)


def test_names_stand_in_the_legend_as_they_are() -> None:
    svg = line_plot({"a < b & c": [(1.0, 1.0)], "d": [(2.0, 3.0)]}, **LABELS)
    assert {"a < b & c", "d", "Times", "tokens", "seconds"} <= set(words(svg))


@pytest.mark.parametrize("series", [{}, {"a": []}, {"a": [(1.0, math.nan)]}, {"a": [(0.0, 1.0)]}])
def test_what_cannot_be_drawn_is_refused(series: dict[str, list[tuple[float, float]]]) -> None:
    with pytest.raises(InputError, match="no points|finite"):
        line_plot(series, **LABELS, log_x=True)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0, "0"),
        (0.012345, "0.0123"),
        (9.996, "10.0"),
        (99.96, "100"),
        (1234.5, "1,230"),
        (-2.5, "-2.50"),
        (1e-7, "0.000000100"),
    ],
)
def test_numbers_have_three_significant_digits(value: float, written: str) -> None:
    assert significant(value) == written


def test_rows_stand_under_their_header() -> None:
    assert markdown_table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    with pytest.raises(AssertionError):
        markdown_table(["a", "b"], [["1"]])
