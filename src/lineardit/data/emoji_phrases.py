"""Phrases that captions are made of.

Each table has those of training under `train` and, under `unseen`, those that training never has. A phrase
that stands several times is that much more common.
"""

from lineardit.data.emoji_layout import Arrangement, Place, Size

PREFIXES = {
    "train": (
        "a picture of ",
        "a picture of ",
        "an image of ",
        "a drawing of ",
        "an illustration of ",
        "a photo of ",
        "a scene with ",
        "draw ",
    ),
    "unseen": ("a painting of ", "please show me ", "generate ", "an artwork of ", "a rendering of "),
}
SINGLE = {
    "train": ("{a}",),
    "unseen": ("just {a}", "only {a}", "nothing but {a}", "{a}, alone"),
}
SIDE_BY_SIDE = {
    "train": (
        *("{a} left of {b}",) * 3,
        *("{a} to the left of {b}",) * 3,
        *("{b} right of {a}",) * 3,
        *("{b} to the right of {a}",) * 3,
        *("{a} on the left and {b} on the right",) * 2,
        "{a} on the left, {b} on the right",
        "{b} on the right and {a} on the left",
        "{a} next to {b}",
        "{b} beside {a}",
        "{a} and {b}",
        "{b} and {a}",
        "{b} with {a}",
    ),
    "unseen": (
        "{a} with {b} to its right",
        "{b} with {a} to its left",
        "left: {a}, right: {b}",
        "{a}, and to the right of it {b}",
        "to the left of {b} there is {a}",
        "{a} placed left of {b}",
        "on the left {a} and on the right {b}",
    ),
}
STACKED = {
    "train": (
        *("{a} above {b}",) * 4,
        *("{a} over {b}",) * 2,
        *("{b} below {a}",) * 4,
        *("{b} under {a}",) * 2,
        *("{a} at the top and {b} at the bottom",) * 2,
        "{b} at the bottom and {a} at the top",
        "{a} above and {b} below",
        "{a} and {b}",
        "{b} and {a}",
        "{a} with {b}",
    ),
    "unseen": (
        "{b} beneath {a}",
        "{b} underneath {a}",
        "{a} with {b} below it",
        "top: {a}, bottom: {b}",
        "above {b} there is {a}",
        "{b} placed below {a}",
        "at the top {a} and at the bottom {b}",
    ),
}
COUNTS: dict[str, dict[int, tuple[str, ...]]] = {
    "train": {
        2: ("two {s}", "two {s}", "2 {s}", "a pair of {s}", "a couple of {s}"),
        3: ("three {s}", "three {s}", "3 {s}", "a group of three {s}"),
        4: ("four {s}", "four {s}", "4 {s}", "a group of four {s}"),
    },
    "unseen": {
        2: ("exactly two {s}", "{s}, two of them", "a duo of {s}", "a set of 2 {s}"),
        3: ("exactly three {s}", "{s}, three of them", "a trio of {s}", "a set of 3 {s}"),
        4: ("exactly four {s}", "{s}, four of them", "a quartet of {s}", "a set of 4 {s}"),
    },
}
ARRANGEMENTS: dict[str, dict[Arrangement, tuple[str, ...]]] = {
    "train": {
        "row": ("in a row", "side by side", "next to each other"),
        "column": ("in a column", "one above the other"),
        "diagonal": ("in a diagonal line", "placed diagonally"),
        "triangle": ("in a triangle", "forming a triangle"),
        "square": ("in a square", "forming a square"),
    },
    "unseen": {
        "row": ("lined up from left to right",),
        "column": ("stacked from top to bottom",),
        "diagonal": ("along a diagonal",),
        "triangle": ("arranged as a triangle",),
        "square": ("arranged as a square",),
    },
}
LISTS = {
    "train": ("{list}",),
    "unseen": ("all of these: {list}", "{list} together", "a collection of {list}"),
}
IN_ORDER: dict[str, dict[Arrangement, tuple[str, ...]]] = {
    "train": {
        "row": ("from left to right: {list}", "{list} in a row", "{list} side by side"),
        "column": ("from top to bottom: {list}", "{list} in a column", "{list} from top to bottom"),
    },
    "unseen": {
        "row": ("left to right, {list}", "lined up: {list}"),
        "column": ("top to bottom, {list}", "stacked up: {list}"),
    },
}
BETWEEN = {"train": ("{b} between {a} and {c}",), "unseen": ("{a} and {c} with {b} in the middle",)}
PLACES: dict[str, dict[Place, tuple[str, ...]]] = {
    "train": {
        "centre": ("in the centre", "in the center", "in the middle"),
        "left": ("on the left", "on the left side"),
        "right": ("on the right", "on the right side"),
        "top": ("at the top",),
        "bottom": ("at the bottom",),
        "top left": ("in the top left corner", "at the top left", "in the top left"),
        "top right": ("in the top right corner", "at the top right", "in the top right"),
        "bottom left": ("in the bottom left corner", "at the bottom left", "in the bottom left"),
        "bottom right": ("in the bottom right corner", "at the bottom right", "in the bottom right"),
    },
    "unseen": {
        "centre": ("right in the center", "centred"),
        "left": ("at the left edge",),
        "right": ("at the right edge",),
        "top": ("near the top",),
        "bottom": ("near the bottom",),
        "top left": ("in the upper left corner", "in the upper left"),
        "top right": ("in the upper right corner", "in the upper right"),
        "bottom left": ("in the lower left corner", "in the lower left"),
        "bottom right": ("in the lower right corner", "in the lower right"),
    },
}
ON_PLAIN = {
    "train": (
        *("{core} on {a_c} background",) * 7,
        *("{core} on {c}",) * 2,
        "{core} against {a_c} background",
        "{core} in front of {a_c} background",
        *("{core} with {a_c} background",) * 2,
        *("{core}, {c} background",) * 2,
        *("{core}, on {a_c} background",) * 3,
        "on {a_c} background, {core}",
        "{a_c} background with {core}",
    ),
    "unseen": (
        "{core} set against {c}",
        "{core} over {a_c} backdrop",
        "{core}, the background is {c}",
        "{core}, background: {c}",
        "in front of {a_c} backdrop, {core}",
    ),
}
OF_PLAIN = "{core} of {a_c} background"
"""After a place: a cat in the centre of a white background."""
ON_GRADED = {
    "train": (
        *("{core} in front of {w}",) * 3,
        *("{core} against {w}",) * 2,
        *("{core} with {w} in the background",) * 2,
        *("{core} on {a_bare} background",) * 2,
        "{core}, {bare} background",
        "{w} with {core}",
    ),
    "unseen": ("{core} set against {w}", "{core}, behind it {w}", "{core} before {w}", "before {w}, {core}"),
}
OPENINGS = (
    "from ",
    "left:",
    "left to",
    "top:",
    "top to",
    "to ",
    "on ",
    "at ",
    "above ",
    "lined ",
    "stacked ",
    "just ",
    "only ",
    "nothing ",
)
SIZES: dict[str, dict[Size, tuple[str, ...]]] = {
    "train": {"small": ("small", "small", "little"), "large": ("large", "large", "big")},
    "unseen": {"small": ("tiny",), "large": ("huge",)},
}
