"""A font that must be there to draw, and the detector that ships."""

import pytest

from lineardit.data.emoji_atlas import find_font
from lineardit.errors import MissingFontError
from lineardit.evaluation.detector import CONFIG_FILE, SceneDetector, bundled_folder


@pytest.fixture(scope="session")
def font() -> None:
    """Skips where scenes cannot be drawn."""
    try:
        find_font()
    except MissingFontError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def bundled() -> SceneDetector:
    """The detector in the package."""
    if not (bundled_folder() / CONFIG_FILE).is_file():
        pytest.skip(f"no detector in {bundled_folder()}: it is made by recipes/emoji-detector.toml")
    return SceneDetector.load()
