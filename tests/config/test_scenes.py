"""Options of emoji scenes that could not be drawn are refused, with what would pass."""

import pytest

from lineardit.config.scenes import SceneConfig
from lineardit.errors import ConfigError


def test_the_defaults_hold_for_every_common_size() -> None:
    for size in (64, 96, 128, 256, 1024):
        assert SceneConfig(size=size, placement_step=size // 8).size == size


@pytest.mark.parametrize(
    ("fields", "remedy"),
    [
        ({"small": 0.4}, "each must be below the next"),
        ({"small": 0.3}, "Use 0.28 or less"),
        ({"medium": 0.46}, "Use 0.44 or less"),
        ({"placement_step": 12}, "Use 1 or 16"),
        ({"placement_step": 32}, "Use 1 or 16"),
        ({"size": 100}, "a size that is a multiple of 16"),
        ({"max_object": 3}, "did you mean max_objects?"),
        ({"max_objects": 5}, "max_objects"),
        ({"held_out_share": 0.0}, "held_out_share"),
    ],
)
def test_an_impossible_option_is_refused_with_what_would_pass(fields: dict[str, float], remedy: str) -> None:
    with pytest.raises(ConfigError, match=remedy.replace("?", r"\?")):
        SceneConfig(**fields)


def test_sides_follow_the_size_words() -> None:
    config = SceneConfig()
    assert [config.side(word) for word in ("small", "medium", "large")] == [0.25, 0.375, 0.5]
