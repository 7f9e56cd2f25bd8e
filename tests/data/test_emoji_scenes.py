"""Scenes: the same everywhere, split by composition, laid out without doubt, drawn exactly."""

import hashlib
import json
from collections import Counter
from itertools import combinations

import pytest
import torch

from lineardit.config.scenes import SceneConfig
from lineardit.data.backgrounds import BACKGROUND_NAMES, background_rows
from lineardit.data.emoji_atlas import Atlas
from lineardit.data.emoji_layout import GAP, LEAST_DISTANCE, MOST_OFFSET, place_of
from lineardit.data.emoji_objects import objects_by_name
from lineardit.data.emoji_scenes import VERSION, EmojiScenes, PlacedObject, Scene
from lineardit.errors import ConfigError, InputError

CONFIGS = [SceneConfig(), SceneConfig(placement_step=1, objects=200), SceneConfig(size=64, placement_step=8)]
SCENES = [
    source.scene(index) for source in (EmojiScenes(each, 3) for each in CONFIGS) for index in range(500)
]
TRAIN = EmojiScenes(SceneConfig(), seed=11)
HELD_OUT = EmojiScenes(SceneConfig(), seed=11, split="held_out")
TRAINED = [TRAIN.scene(index) for index in range(5000)]
UNTRAINED = [HELD_OUT.scene(index) for index in range(1500)]


def test_scenes_and_captions_are_those_recorded_for_this_version() -> None:
    # Strings hash differently in every run of Python, so this also says that nothing depends on that. A new
    # digest needs a new VERSION: models were trained and measured on the old one.
    digest = hashlib.sha256()
    for index in range(60):
        for scene, caption in (TRAIN[index], HELD_OUT[index]):
            digest.update(json.dumps([scene.truth(), caption], sort_keys=True).encode())
    assert (VERSION, digest.hexdigest()[:16]) == (1, "97b0caab920a3cb9")


def test_seed_split_and_index_each_give_another_scene() -> None:
    sources = [EmojiScenes(SceneConfig(), seed, split) for seed in (0, 1) for split in ("train", "held_out")]
    scenes = [source.scene(index) for source in sources for index in range(50)]
    assert len(set(scenes)) == len(scenes)


def test_no_training_scene_has_a_held_out_pair() -> None:
    for scene in TRAINED:
        assert not TRAIN.composition.held_out_pairs(scene.background, [each.name for each in scene.objects])


def test_every_held_out_scene_has_a_held_out_pair() -> None:
    kinds: Counter[str] = Counter()
    for scene in UNTRAINED:
        pairs = HELD_OUT.composition.held_out_pairs(scene.background, [each.name for each in scene.objects])
        assert pairs
        kinds.update("background" if other in BACKGROUND_NAMES else "object" for _, other in pairs)
    assert min(kinds.values()) > 250


def test_the_split_is_the_same_for_every_seed_and_order_of_names() -> None:
    first, second = TRAIN.composition, EmojiScenes(SceneConfig(), seed=99).composition
    for a, b in combinations(TRAIN.names[:40], 2):
        assert bool(first.held_out_pairs("", [a, b])) == bool(second.held_out_pairs("", [b, a]))


def test_about_the_asked_share_of_pairs_is_held_out() -> None:
    source = EmojiScenes(SceneConfig(held_out_share=0.2))
    pairs = list(combinations(source.names, 2))
    held = sum(bool(source.composition.held_out_pairs("", pair)) for pair in pairs)
    assert held / len(pairs) == pytest.approx(0.2, abs=0.02)


def test_every_object_and_every_background_is_in_training() -> None:
    assert {each.name for scene in TRAINED for each in scene.objects} == set(TRAIN.names)
    assert {scene.background for scene in TRAINED} == set(BACKGROUND_NAMES)


def test_no_object_stands_where_it_would_not_be_seen() -> None:
    known = objects_by_name()
    for scene in TRAINED + UNTRAINED:
        assert not any(scene.background in known[each.name].hidden_on for each in scene.objects)


def test_kinds_come_in_their_shares() -> None:
    kinds = Counter(scene.kind for scene in TRAINED)
    shares = {"single": 0.35, "pair": 0.30, "count": 0.20, "group": 0.15}
    assert {kind: count / 5000 for kind, count in kinds.items()} == pytest.approx(shares, abs=0.03)


def test_each_kind_shows_what_it_says() -> None:
    for scene in SCENES:
        names = [each.name for each in scene.objects]
        different = 1 if scene.kind in ("single", "count") else len(names)
        assert len(set(names)) == different
        assert len(names) in {"single": [1], "pair": [2], "count": [2, 3, 4], "group": [2, 3, 4]}[scene.kind]
        assert (scene.relation is not None) == (scene.kind == "pair")
        assert (scene.arrangement is not None) == (scene.kind in ("count", "group"))


def test_objects_are_inside_and_do_not_touch() -> None:
    for scene in SCENES:
        for each in scene.objects:
            assert each.side / 2 <= min(each.x, each.y) <= max(each.x, each.y) <= 1 - each.side / 2
        for a, b in combinations(scene.objects, 2):
            apart = max(abs(a.x - b.x), abs(a.y - b.y)) - (a.side + b.side) / 2
            assert apart >= GAP - 1e-9, scene


def test_relations_are_unmistakable() -> None:
    found: Counter[str] = Counter()
    for scene in SCENES:
        if scene.relation is None:
            continue
        found[scene.relation] += 1
        first, second = scene.objects
        right, down = second.x - first.x, second.y - first.y
        along, across = {
            "left of": (right, down),
            "right of": (-right, down),
            "above": (down, right),
            "below": (-down, right),
        }[scene.relation]
        assert along >= LEAST_DISTANCE
        assert abs(across) <= MOST_OFFSET
    assert len(found) == 4


def test_arrangements_are_what_they_are_called() -> None:
    for scene in SCENES:
        points = [(each.x, each.y) for each in scene.objects]
        across, down = (len({point[axis] for point in points}) for axis in (0, 1))
        count = len(points)
        expected = {
            "row": (count, 1),
            "column": (1, count),
            "diagonal": (count, count),
            "triangle": (3, 2),
            "square": (2, 2),
        }
        if scene.arrangement:
            assert (across, down) == expected[scene.arrangement]


@pytest.mark.parametrize("config", CONFIGS)
def test_centres_are_multiples_of_the_step(config: SceneConfig) -> None:
    source = EmojiScenes(config, seed=4)
    steps = config.size / config.placement_step
    for index in range(300):
        for each in source.scene(index).objects:
            assert (each.x * steps).is_integer()
            assert (each.y * steps).is_integer()


def test_single_objects_stand_where_there_is_a_word_for_it() -> None:
    places = Counter(
        place_of(scene.objects[0].x, scene.objects[0].y) for scene in SCENES if scene.kind == "single"
    )
    assert None not in places
    assert len(places) == 9
    assert 0.45 < places["centre"] / places.total() < 0.65


def test_fewer_objects_per_scene_are_respected() -> None:
    for most in (1, 2, 3):
        source = EmojiScenes(SceneConfig(max_objects=most))
        assert max(len(source.scene(index).objects) for index in range(100)) == most


def test_the_truth_is_plain_json_and_counts_objects() -> None:
    scene = next(scene for scene in SCENES if scene.kind == "count" and len(scene.objects) == 3)
    truth = json.loads(json.dumps(scene.truth()))
    assert truth["counts"] == {scene.objects[0].name: 3}
    assert truth["objects"][0]["x"] == scene.objects[0].x
    json.dumps(TRAIN.description())


# Drawing


def test_a_picture_does_not_depend_on_its_batch(atlas: Atlas) -> None:
    source = EmojiScenes(SceneConfig(), seed=2, atlas=atlas)
    scenes = [source.scene(index) for index in range(24)]
    together = source.draw(scenes, size=(96, 160))
    assert together.shape == (24, 3, 96, 160)
    for index in (0, 7, 23):
        assert torch.equal(source.draw(scenes[index : index + 1], size=(96, 160))[0], together[index])
    assert torch.equal(source.draw(scenes[::-1], size=(96, 160)).flip(0), together)


def test_a_picture_is_its_glyphs_over_its_background(atlas: Atlas) -> None:
    source = EmojiScenes(SceneConfig(), seed=8, atlas=atlas)
    scenes = [source.scene(index) for index in range(12)]
    resized = {side: atlas.resized(side) for side in (32, 48, 64)}
    for scene, picture in zip(scenes, source.draw(scenes), strict=True):
        rows = (background_rows(128)[BACKGROUND_NAMES.index(scene.background)].double() + 1) / 2
        expected = rows[:, :, None].expand(3, 128, 128).clone()
        for each in scene.objects:
            side = round(each.side * 128)
            glyph = resized[side][atlas.index[each.name]].double()
            top, left = round(each.y * 128 - side / 2), round(each.x * 128 - side / 2)
            window = expected[:, top : top + side, left : left + side]
            window.copy_(glyph[:3] + (1 - glyph[3:]) * window)
        torch.testing.assert_close((picture.double() + 1) / 2, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [17, 128, (40, 200), (200, 40)])
def test_pictures_of_any_size_stay_in_range(atlas: Atlas, size: int | tuple[int, int]) -> None:
    source = EmojiScenes(SceneConfig(placement_step=1), seed=6, atlas=atlas)
    height, width = (size, size) if isinstance(size, int) else size
    pictures = source.draw([source.scene(index) for index in range(40)], size=size)
    assert pictures.shape == (40, 3, height, width)
    assert pictures.abs().max() <= 1 + 1e-6


def test_the_object_is_seen_where_the_scene_says(atlas: Atlas) -> None:
    source = EmojiScenes(SceneConfig(), atlas=atlas)
    scene = Scene("white", (PlacedObject("cat", "small", 0.25, 0.75, 0.25),), "single")
    for size, top, left in ((80, 50, 10), ((80, 160), 50, 30), ((160, 80), 110, 10)):
        seen = (source.draw([scene], size=size)[0] < 0.99).any(0).nonzero()
        assert seen.min(0).values.tolist() == [top, left]
        assert seen.max(0).values.tolist() == [top + 19, left + 19]


def test_a_batch_is_the_scenes_of_its_indices(atlas: Atlas) -> None:
    source = EmojiScenes(SceneConfig(), seed=6, atlas=atlas)
    batch = source.batch(5, 3, size=32)
    assert [batch.scenes[1], batch.captions[1]] == list(source[6])
    assert torch.equal(batch.pixels, source.draw(batch.scenes, size=32))


@pytest.mark.font
def test_the_font_draws_scenes_when_no_atlas_is_given(font_atlas: Atlas) -> None:
    source = EmojiScenes(SceneConfig(objects=12))
    assert torch.equal(source.atlas.glyphs, font_atlas.glyphs)
    assert source.draw([source.scene(0)]).std() > 0


@pytest.mark.gpu
def test_a_gpu_draws_the_same_pictures(atlas: Atlas) -> None:
    source = EmojiScenes(SceneConfig(), seed=2, atlas=atlas)
    scenes = [source.scene(index) for index in range(24)]
    torch.testing.assert_close(
        source.draw(scenes, device="cuda").cpu(), source.draw(scenes), atol=1e-6, rtol=0
    )


# Refusals


def test_more_objects_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match="objects=9999: the list has"):
        EmojiScenes(SceneConfig(objects=9999))


def test_a_negative_index_is_refused() -> None:
    with pytest.raises(InputError, match="index=-1"):
        TRAIN[-1]


def test_an_atlas_without_the_objects_is_refused(atlas: Atlas) -> None:
    with pytest.raises(InputError, match="lacks 94 of 104 objects"):
        EmojiScenes(SceneConfig(), atlas=Atlas(atlas.names[:10], atlas.glyphs[:10]))
