"""Scenes in, the same scenes out: batches and windows."""

import json
from collections.abc import Mapping

import pytest
import torch

from lineardit.autoencoder.model import Autoencoder
from lineardit.config.models import AutoencoderConfig
from lineardit.config.reconstruction import ReconstructionConfig
from lineardit.config.runs import AutoencoderRun, LoopConfig
from lineardit.config.scenes import SceneConfig
from lineardit.data.emoji_atlas import Atlas
from lineardit.data.emoji_scenes import EmojiScenes
from lineardit.training.loop import step_generator
from lineardit.training.perceptual import FilterDistance
from lineardit.training.picture_source import ScenePictures, crop_around_objects
from lineardit.training.reconstruction import ReconstructionTask

STAGES = [{"width": 8, "depth": 0}, {"width": 8, "depth": 1}, {"width": 16, "depth": 1}]
MODEL = AutoencoderConfig(latent_channels=4, encoder=STAGES, decoder=STAGES)
RUN = AutoencoderRun(
    model=MODEL,
    scenes=SceneConfig(size=32, objects=12, placement_step=4),
    loss=ReconstructionConfig(l1=1.0, mse=3.0),
    train=LoopConfig(steps=2, batch_size=5, seed=3, dtype="fp32", warmup_steps=0),
)


@pytest.fixture(scope="module")
def scenes() -> EmojiScenes:
    """Glyphs in one colour each, so that no font is needed."""
    names = EmojiScenes(RUN.scenes).names
    glyphs = torch.randint(0, 256, (len(names), 4, 8, 8), generator=torch.Generator().manual_seed(0))
    glyphs[:, 3] = 255
    return EmojiScenes(RUN.scenes, RUN.train.seed, atlas=Atlas(names, glyphs.to(torch.uint8)))


@pytest.fixture
def model() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(MODEL).eval()


def test_a_batch_is_a_function_of_the_step(scenes: EmojiScenes, model: Autoencoder) -> None:
    run = RUN.model_copy(update={"crop": 16})
    task, again = (
        ReconstructionTask(run, ScenePictures(run, scenes, 4), model),
        ReconstructionTask(run, ScenePictures(run, scenes, 4), model),
    )
    first, second = task.batch(4), task.batch(5)
    assert first.shape == (5, 3, 16, 16) and not torch.equal(first, second)
    torch.manual_seed(99)
    assert torch.equal(again.batch(4), first)


def test_the_position_tells_what_decides_the_batches(scenes: EmojiScenes, model: Autoencoder) -> None:
    def position(run: AutoencoderRun, scenes: EmojiScenes) -> Mapping[str, object]:
        return ReconstructionTask(run, ScenePictures(run, scenes, 4), model).position(7)

    before = position(RUN, scenes)
    assert before["step"] == 7 and json.loads(json.dumps(before)) == before
    assert position(RUN, EmojiScenes(RUN.scenes, RUN.train.seed)) == before
    larger = RUN.model_copy(update={"train": RUN.train.model_copy(update={"batch_size": 6})})
    others = {
        "batch_size": position(larger, scenes),
        "crop": position(RUN.model_copy(update={"crop": 16}), scenes),
        "data": position(RUN, EmojiScenes(RUN.scenes, 4)),
    }
    for key, other in others.items():
        assert [each for each in before if other[each] != before[each]] == [key]


def test_steps_go_through_the_scenes_one_after_the_other(scenes: EmojiScenes, model: Autoencoder) -> None:
    task = ReconstructionTask(RUN, ScenePictures(RUN, scenes, 4), model)
    drawn = scenes.draw([scenes.scene(index) for index in range(10, 15)])
    assert torch.equal(task.batch(2), drawn)


def test_the_loss_is_the_weighted_sum_of_its_definition(scenes: EmojiScenes, model: Autoencoder) -> None:
    task = ReconstructionTask(RUN, ScenePictures(RUN, scenes, 4), model)
    losses, images = task.losses(1), task.batch(1)
    error = (model(images) - images).double()
    l1, mse = error.abs().mean(), (error**2).mean()
    torch.testing.assert_close(losses["loss"].double(), l1 + 3 * mse)
    torch.testing.assert_close(losses["l1"].double(), l1)
    torch.testing.assert_close(losses["psnr"].double(), 10 * torch.log10(4 / mse))


def test_the_perceptual_distance_joins_the_loss_with_its_weight(
    scenes: EmojiScenes, model: Autoencoder
) -> None:
    run = RUN.model_copy(update={"loss": ReconstructionConfig(l1=0.0, mse=3.0, perceptual=0.5)})
    losses = ReconstructionTask(run, ScenePictures(run, scenes, 4), model).losses(1)
    without = ReconstructionTask(RUN, ScenePictures(RUN, scenes, 4), model)
    images = without.batch(1)
    distance = FilterDistance()(model(images), images).mean()
    torch.testing.assert_close(losses["perceptual"], distance)
    torch.testing.assert_close(losses["loss"], 3 * (model(images) - images).square().mean() + 0.5 * distance)
    assert "perceptual" not in without.losses(1)


def test_samples_are_unseen_scenes_above_their_reconstructions(
    scenes: EmojiScenes, model: Autoencoder
) -> None:
    shown = ReconstructionTask(RUN, ScenePictures(RUN, scenes, 4), model).sample(model, 0)
    unseen = EmojiScenes(RUN.scenes, RUN.train.seed, split="held_out", atlas=scenes.atlas)
    images = unseen.draw([unseen.scene(index) for index in range(8)])
    assert torch.equal(shown[:8], images)
    torch.testing.assert_close(shown[8:], model(images))


@pytest.mark.parametrize(("crop", "stride"), [(64, 16), (48, 16), (32, 16), (16, 16), (24, 4), (8, 8)])
def test_a_window_holds_the_centre_of_an_object_on_the_grid(crop: int, stride: int) -> None:
    side = 128
    config = SceneConfig(size=side, objects=12)
    source = EmojiScenes(config, 1)
    drawn = [source.scene(index) for index in range(150)]
    # Each pixel says where it is.
    places = torch.arange(side, dtype=torch.float32)
    image = torch.stack(
        [places[:, None].expand(side, side), places.expand(side, side), torch.zeros(side, side)]
    )
    windows = crop_around_objects(image.expand(150, 3, side, side), drawn, crop, stride, step_generator(0, 0))
    assert windows.shape == (150, 3, crop, crop)
    starts = set()
    for window, scene in zip(windows, drawn, strict=True):
        top, left = int(window[0, 0, 0]), int(window[1, 0, 0])
        assert top % stride == 0 and left % stride == 0
        assert int(window[0, -1, 0]) == top + crop - 1 and int(window[1, 0, -1]) == left + crop - 1
        assert any(
            top <= each.y * side < top + crop and left <= each.x * side < left + crop
            for each in scene.objects
        )
        starts |= {top, left}
    assert len(starts) > 2


def test_windows_move_around_the_object_and_choose_among_objects() -> None:
    source = EmojiScenes(SceneConfig(size=128, objects=12), 1)
    scene = next(scene for scene in map(source.scene, range(100)) if scene.kind == "pair")
    image = torch.arange(128.0).expand(3, 128, 128)
    windows = crop_around_objects(image.expand(80, 3, 128, 128), [scene] * 80, 64, 16, step_generator(0, 1))
    lefts = {int(window[0, 0, 0]) for window in windows}
    assert len(lefts) >= 3
