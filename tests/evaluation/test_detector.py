"""The detector: what is read from heat maps, its files, and the one that ships."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lineardit.config.detector import DetectorConfig
from lineardit.config.scenes import SceneConfig
from lineardit.data.backgrounds import BACKGROUND_NAMES
from lineardit.data.emoji_scenes import EmojiScenes
from lineardit.data.scene import Scene
from lineardit.errors import CheckpointError, ConfigError
from lineardit.evaluation.detector import CONFIG_FILE, WEIGHTS_FILE, Detection, Reading, SceneDetector
from lineardit.training.detector import cell_targets

SCENES = EmojiScenes(SceneConfig(objects=30), seed=5)
CONFIG = DetectorConfig(
    widths=(5, 7, 11), depths=(0, 1, 1), objects=SCENES.names, backgrounds=BACKGROUND_NAMES
)


class Mapped(SceneDetector):
    """A detector whose network gives the heat maps that it was built with."""

    def __init__(self, config: DetectorConfig, probabilities: Tensor) -> None:
        super().__init__(config)
        self.probabilities = probabilities

    def forward(self, images: Tensor) -> Reading:
        logits = self.probabilities[: len(images)].clamp_min(1e-9).log()
        classes = torch.arange(len(images)) % len(self.config.backgrounds)
        return Reading(logits, torch.eye(len(self.config.backgrounds))[classes] * 9)


def read(probabilities: Tensor, config: DetectorConfig = CONFIG) -> list[Detection]:
    count = len(probabilities)
    return Mapped(config, probabilities).detect(torch.zeros(count, 3, 128, 128), batch_size=count)


def names(shown: Scene | Detection) -> Counter[str]:
    return Counter(each.name for each in shown.objects)


@pytest.mark.parametrize("step", [16, 8, 4])
def test_every_object_of_ideal_heat_maps_is_read_once_by_name_and_place(step: int) -> None:
    source = EmojiScenes(SceneConfig(objects=30, placement_step=step), seed=5)
    scenes = [source.scene(index) for index in range(80)]
    for scene, detection in zip(scenes, read(cell_targets(scenes, CONFIG)), strict=True):
        assert names(detection) == names(scene)
        for each in scene.objects:
            nearest = min(
                (abs(found.x - each.x) + abs(found.y - each.y), found.name) for found in detection.objects
            )
            # Of a cell, along both axes together; tails of neighbours move it a little.
            assert 16 * nearest[0] < 0.1
            assert nearest[1] == each.name


def heat(*peaks: tuple[int, int, int, float]) -> Tensor:
    """One picture with probabilities at (class, row, column)."""
    maps = torch.zeros(1, 31, 16, 16)
    for kind, row, column, probability in peaks:
        maps[0, kind, row, column] = probability
    maps[:, -1] = 1 - maps[:, :-1].sum(1)
    return maps


def test_equal_neighbouring_cells_are_one_object() -> None:
    found = read(heat((3, 4, 4, 0.7), (3, 4, 5, 0.7), (3, 5, 4, 0.7), (3, 5, 5, 0.7)))[0].objects
    assert [each.name for each in found] == [SCENES.names[3]]


def test_cells_further_apart_are_two_objects_and_the_surer_comes_first() -> None:
    found = read(heat((3, 4, 4, 0.7), (8, 4, 8, 0.9)))[0].objects
    assert [each.name for each in found] == [SCENES.names[8], SCENES.names[3]]
    assert [each.score for each in found] == pytest.approx([0.9, 0.7])


def test_what_is_less_likely_than_nothing_is_no_object() -> None:
    assert read(heat((3, 4, 4, 0.35)))[0].objects == ()


def test_the_background_is_the_likeliest_class() -> None:
    maps = heat().expand(3, -1, -1, -1)
    assert [each.background for each in read(maps)] == list(BACKGROUND_NAMES[:3])


def test_a_picture_is_read_the_same_whichever_others_are_read_with_it() -> None:
    model = SceneDetector.load()
    colours = torch.tensor([[-1, -1, -1], [1, 1, 1], [0.9, -0.6, -0.6], [-0.6, 0.3, 0.9]])
    images = colours[:, :, None, None].expand(4, 3, 128, 128)
    together, alone = model.detect(images), model.detect(images, batch_size=1)
    assert len({each.background for each in together}) == 4
    assert [each.background for each in together] == [each.background for each in alone]
    torch.testing.assert_close(model(images[2:3]), tuple(each[2:3] for each in model(images)))


def test_pictures_of_any_size_are_read() -> None:
    model = SceneDetector(CONFIG).eval()
    assert len(model.detect(torch.zeros(2, 3, 60, 100))) == 2


def test_a_saved_detector_reads_as_before_and_is_saved_the_same_again(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = SceneDetector(CONFIG)
    model.save(tmp_path / "once", {"steps": 7})
    loaded = SceneDetector.load(tmp_path / "once")
    loaded.save(tmp_path / "twice", {"steps": 7})
    assert loaded.config == CONFIG
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor.bfloat16().float(), rtol=0, atol=0)
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        assert (tmp_path / "once" / file).read_bytes() == (tmp_path / "twice" / file).read_bytes()


def test_a_place_without_a_detector_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no config.json in it"):
        SceneDetector.load(tmp_path)
    SceneDetector(CONFIG).save(tmp_path / "model")
    config = tmp_path / "model" / CONFIG_FILE
    options = json.loads(config.read_text("utf-8"))
    config.write_text(json.dumps(options | {"width": 3}), "utf-8")
    with pytest.raises(CheckpointError, match="unknown key width"):
        SceneDetector.load(tmp_path / "model")
    config.write_text(json.dumps(options | {"widths": [5, 7, 13]}), "utf-8")
    with pytest.raises(CheckpointError, match="other shape"):
        SceneDetector.load(tmp_path / "model")
    config.write_text("{", "utf-8")
    with pytest.raises(CheckpointError, match="describes no detector"):
        SceneDetector.load(tmp_path / "model")


def test_a_size_that_does_not_halve_four_times_is_refused() -> None:
    with pytest.raises(ConfigError, match="size=100 is no multiple of 16. Use 96 or 112"):
        DetectorConfig(size=100, objects=("cat",), backgrounds=("white",))


@pytest.mark.font
def test_the_detector_that_ships_reads_unseen_drawings(font: None, bundled: SceneDetector) -> None:
    size = sum(file.stat().st_size for file in Path(bundled_files()).iterdir())
    assert size <= 4_000_000
    source = EmojiScenes(SceneConfig(objects=len(bundled.config.objects)), seed=424_242)
    scenes = [source.scene(index) for index in range(200)]
    detections = bundled.detect(source.draw(scenes))
    right = [names(found) == names(scene) for found, scene in zip(detections, scenes, strict=True)]
    single = [fine for fine, scene in zip(right, scenes, strict=True) if scene.kind == "single"]
    assert len(single) > 50
    assert sum(single) / len(single) >= 0.98
    assert sum(right) / len(right) >= 0.95
    background = [
        found.background == scene.background for found, scene in zip(detections, scenes, strict=True)
    ]
    assert sum(background) / len(background) >= 0.99


def bundled_files() -> str:
    from lineardit.evaluation.detector import bundled_folder

    return str(bundled_folder())
