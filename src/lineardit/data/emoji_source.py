"""Drawn emoji scenes as a source: endless pictures with captions that are true."""

import io
from functools import cache
from typing import NamedTuple

from lineardit.config.scenes import SceneConfig
from lineardit.data.emoji_scenes import EmojiScenes
from lineardit.data.pictures import to_picture
from lineardit.data.records import Caption, Record
from lineardit.errors import InputError

SEED = 0
CAPTIONS = 4
"""Phrasings of each scene."""


class ScenePicture(NamedTuple):
    """A scene that is drawn when it is read."""

    number: int

    @property
    def fingerprint(self) -> str:
        """Scenes are drawn the same every time."""
        return f"scene:{SEED}:{self.number}"

    def read(self) -> bytes:
        """The scene as PNG."""
        stream = io.BytesIO()
        scenes = _scenes()
        to_picture(scenes.draw([scenes.scene(self.number)])[0]).save(stream, "PNG")
        return stream.getvalue()


class EmojiSource:
    """The first scenes of those that training draws. One of a single object is of that object's class.

    Raises:
        MissingFontError: the font that they are drawn with is not on this machine.
        InputError: none is asked for.
    """

    def __init__(self, count: int) -> None:
        if count < 1:
            raise InputError(f"emoji:{count}: there is no scene to draw. Use emoji:1000.")
        self._count = count
        _scenes()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Every object, the most common ones first."""
        return _scenes().names

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Record:
        """The scene of that number."""
        scenes = _scenes()
        scene = scenes.scene(number)
        captions = tuple(map(Caption, scenes.captions(scene, number, CAPTIONS)))
        label = scene.objects[0].name if scene.kind == "single" else None
        return Record(f"scene-{number}", ScenePicture(number), captions, label=label)


@cache
def _scenes() -> EmojiScenes:
    return EmojiScenes(SceneConfig(), SEED)
