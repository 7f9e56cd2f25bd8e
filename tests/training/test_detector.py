"""Training the detector: its targets, its distortions, and that it learns."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lineardit.config.detector import DetectorConfig, DetectorRun, DetectorShape, DistortionConfig
from lineardit.config.runs import LoopConfig
from lineardit.config.scenes import SceneConfig
from lineardit.data.emoji_atlas import Atlas
from lineardit.data.emoji_scenes import EmojiScenes
from lineardit.data.scene import PlacedObject, Scene
from lineardit.evaluation.detector import SceneDetector
from lineardit.training.detector import (
    DetectionTask,
    cell_targets,
    detector_config,
    distorted,
    scaled,
    scene_sources,
)
from lineardit.training.loop import step_generator, train

CONFIG = DetectorConfig(objects=("cat", "dog", "fox"), backgrounds=("white", "black"))
CLEAN = DistortionConfig(share=0.0)
RUN = DetectorRun(
    model=DetectorShape(size=64, widths=(12, 16, 24), depths=(1, 1, 1)),
    scenes=SceneConfig(objects=4),
    train=LoopConfig(
        steps=60, batch_size=8, dtype="fp32", learning_rate=1e-2, warmup_steps=4, ema_half_life=2
    ),
)


@pytest.fixture(scope="module")
def atlas() -> Atlas:
    """Glyphs in one colour each, so that no font is needed."""
    names = EmojiScenes(RUN.scenes).names
    glyphs = torch.zeros(len(names), 4, 128, 128, dtype=torch.uint8)
    for number, glyph in enumerate(glyphs):
        glyph[number % 3], glyph[3] = 255 - 40 * number, 255
    return Atlas(names, glyphs)


def task(atlas: Atlas, run: DetectorRun = RUN) -> DetectionTask:
    config = detector_config(run)
    torch.manual_seed(0)
    return DetectionTask(run, SceneDetector(config), config, atlas)


def at(name: str, x: float, y: float) -> PlacedObject:
    return PlacedObject(name, "medium", x, y, 0.375)


def test_targets_fall_off_around_the_centre_and_the_rest_is_none() -> None:
    scene = Scene("black", (at("dog", 4.5 / 16, 9.5 / 16), at("cat", 12 / 16, 3 / 16)), "pair")
    target = cell_targets([scene], CONFIG)[0]
    torch.testing.assert_close(target.sum(0), torch.ones(16, 16))
    assert float(target[1, 9, 4]) == pytest.approx(1.0, abs=1e-6)
    assert float(target[1, 11, 5]) == pytest.approx(math.exp(-0.5 * (4 + 1)), rel=1e-3)
    # Between four cells: each is half a cell away along both axes.
    assert target[0, 2:4, 11:13].tolist() == [[pytest.approx(math.exp(-0.25))] * 2] * 2
    assert float(target[2].max()) == 0.0
    assert target[:3].sum() == pytest.approx(4 * math.pi, rel=1e-2)


def test_scaled_objects_stay_in_the_picture() -> None:
    scene = Scene("black", (at("dog", 0.1875, 0.5), at("cat", 0.8125, 0.8125)), "pair")
    larger = scaled(scene, 1.2)
    assert [each.side for each in larger.objects] == pytest.approx([0.45, 0.45])
    assert [each.x for each in larger.objects] == pytest.approx([0.225, 0.775])
    assert [each.y for each in larger.objects] == pytest.approx([0.5, 0.775])
    assert scaled(scene, 1.0) == scene


def test_sources_are_every_lattice_in_both_splits(atlas: Atlas) -> None:
    sources = scene_sources(RUN, atlas)
    assert sorted((each.config.placement_step, each.split) for each in sources) == sorted(
        (step, split) for step in RUN.placement_steps for split in ("train", "held_out")
    )
    assert all(each.atlas is atlas for each in sources)


def test_a_batch_is_a_function_of_its_step(atlas: Atlas) -> None:
    always = RUN.model_copy(update={"distortion": DistortionConfig(share=1.0)})
    learning = task(atlas, always)
    (first, scenes), (other, different), (again, same) = (learning.batch(step) for step in (3, 4, 3))
    assert torch.equal(first, again) and scenes == same
    assert not torch.equal(first, other) and scenes != different
    assert first.shape == (8, 3, 64, 64)


def test_the_position_tells_what_decides_the_batches(atlas: Atlas) -> None:
    before = task(atlas).position(7)
    assert before["step"] == 7 and json.loads(json.dumps(before)) == before == task(atlas).position(7)
    larger = RUN.model_copy(update={"train": RUN.train.model_copy(update={"batch_size": 9})})
    others = {"batch_size": larger, "data": RUN.model_copy(update={"placement_steps": (16, 4)})}
    for key, other in others.items():
        after = task(atlas, other).position(7)
        assert [each for each in before if after[each] != before[each]] == [key]


def images() -> Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 1.6 - 0.8


def distort(config: DistortionConfig, pictures: Tensor, seed: int = 0) -> Tensor:
    return distorted(pictures, config, step_generator(seed, 0))


def only(**strengths: float) -> DistortionConfig:
    none = dict.fromkeys(("colour", "contrast", "blur", "compression", "noise"), 0.0)
    return DistortionConfig(share=1.0, **none | strengths)


def test_nothing_is_distorted_where_no_batch_shall_be() -> None:
    assert torch.equal(distort(CLEAN, images()), images())


def test_a_shift_of_colours_is_one_number_per_picture_and_colour() -> None:
    change = distort(only(colour=0.1), images()) - images()
    torch.testing.assert_close(change, change.mean((2, 3), keepdim=True).expand_as(change))
    assert change.mean((2, 3)).unique().numel() == 9
    assert 0.01 < change.abs().max() <= 0.1


def test_contrast_keeps_grey() -> None:
    pictures = torch.stack([torch.zeros(3, 32, 32), torch.full((3, 32, 32), 0.5)])
    after = distort(only(contrast=0.3), pictures)
    assert torch.equal(after[0], pictures[0])
    assert 0.35 <= float(after[1, 0, 0, 0]) <= 0.65 and float(after[1, 0, 0, 0]) != 0.5


def test_blur_keeps_flat_pictures_and_evens_others() -> None:
    flat = torch.full((1, 3, 32, 32), 0.3)
    for seed in range(6):
        torch.testing.assert_close(distort(only(blur=8.0), flat, seed), flat)
    deviations = [float(distort(only(blur=8.0), images(), seed).std()) for seed in range(6)]
    assert max(deviations) > 0.9 * float(images().std())
    assert min(deviations) < 0.5 * float(images().std())


def test_compression_in_fine_steps_changes_nothing_and_in_coarse_steps_only_details() -> None:
    torch.testing.assert_close(distort(only(compression=1e-4), images()), images(), rtol=0, atol=1e-3)
    flat = torch.full((1, 3, 32, 32), 0.3)
    coarse = distort(only(compression=2.0), images())
    assert (coarse - images()).abs().mean() > 0.02
    after = distort(only(compression=2.0), flat)
    # Every block of a flat picture is rounded alike, and to something flat.
    torch.testing.assert_close(after, after[:, :, :1, :1].expand_as(after), rtol=0, atol=1e-5)


def test_noise_has_at_most_the_deviation_given() -> None:
    deviations = [
        float((distort(only(noise=0.1), torch.zeros(2, 3, 64, 64), seed)).std()) for seed in range(6)
    ]
    assert len(set(deviations)) == 6
    assert 0.03 < max(deviations) < 0.105
    assert min(deviations) < 0.8 * max(deviations)


def test_distorted_pictures_stay_in_range() -> None:
    extreme = images().sign()
    after = distort(DistortionConfig(share=1.0, noise=1.0, colour=0.5), extreme)
    assert after.min() >= -1 and after.max() <= 1 and not torch.equal(after, extreme)


def test_a_small_detector_learns_and_reads_what_it_learned(atlas: Atlas, tmp_path: Path) -> None:
    run = RUN.model_copy(update={"distortion": CLEAN, "placement_steps": (16,), "scales": (1.0,)})
    learning = task(atlas, run)
    before = {name: float(value.detach()) for name, value in learning.losses(10_000).items()}
    outcome = train(learning, run.train, tmp_path, resume=False)
    after = {name: float(value.detach()) for name, value in learning.losses(10_000).items()}
    assert after["loss"] < 0.6 * before["loss"]
    assert after["named"] > 0.9 > before["named"]
    assert isinstance(outcome.average, SceneDetector)
    scenes = EmojiScenes(run.scenes, seed=77, atlas=atlas)
    shown = [scenes.scene(index) for index in range(30)]
    found = outcome.average.eval().detect(scenes.draw(shown, size=64))
    right = sum(
        {each.name for each in detection.objects} == {each.name for each in scene.objects}
        for detection, scene in zip(found, shown, strict=True)
    )
    assert right >= 20
