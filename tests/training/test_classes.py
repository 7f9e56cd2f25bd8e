"""Class-conditional runs: what a step learns from, what is saved, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lineardit.config.classes import ClassNetwork, ClassRun, ClassSample
from lineardit.config.data import MOST_PIXELS, BucketConfig, CheckConfig
from lineardit.config.dit import DiTConfig
from lineardit.config.runs import LoopConfig
from lineardit.config.scenes import SceneConfig
from lineardit.data.emoji_atlas import Atlas
from lineardit.data.folder import FolderSource
from lineardit.data.labels import ClassRule
from lineardit.data.prepared import PreparedData
from lineardit.data.survey import survey
from lineardit.errors import ConfigError
from lineardit.interop.native import load_autoencoder, read_model
from lineardit.training import pool
from lineardit.training.checkpoint import load_newest
from lineardit.training.classes import ClassTask, shown_classes, train_classes
from lineardit.training.preparation import encode, open_ledger
from lineardit.training.shares import Share
from lineardit.transformer.dit import LinearDiT, SoftmaxDiT

CPU = torch.device("cpu")
SMALL = ClassNetwork(hidden_size=16, num_layers=1, num_heads=2, patch_size=2)
LOOP = LoopConfig(steps=4, batch_size=4, dtype="fp32", warmup_steps=1, log_every=1, checkpoint_every=2)
SAMPLE = ClassSample(num_inference_steps=2, seeds=(0, 1))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Seven pictures of three classes in two buckets."""
    folder = tmp_path_factory.mktemp("classes")
    for number, name in enumerate(["owl", "cat", "dog", "cat", "dog", "cat", "owl"]):
        (folder / "pictures" / name).mkdir(parents=True, exist_ok=True)
        sides = (24, 24) if number < 5 else (16, 32)
        levels = np.random.default_rng(number).integers(0, 256, (*sides, 3), dtype=np.uint8)
        Image.fromarray(levels).save(folder / "pictures" / name / f"{number}.png")
    source = FolderSource(folder / "pictures", classes=ClassRule())
    found = survey(source, BucketConfig(sizes=(24,), step=8), CheckConfig(classes=True))
    encode(found, open_ledger(folder / "out", {}), tiny_model, max_pixels=MOST_PIXELS)
    return folder / "out"


@pytest.fixture
def run(prepared: Path, tiny_model: Path) -> ClassRun:
    return ClassRun(data=prepared, autoencoder=tiny_model, model=SMALL, sample=SAMPLE, train=LOOP)


def task_of(run: ClassRun) -> ClassTask:
    assert run.data is not None
    data = PreparedData(run.data)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LinearDiT(run.model.shape(4, len(data.classes)))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return ClassTask(run, model, load_autoencoder(run.autoencoder), data)


def test_a_batch_has_each_picture_with_its_class_and_some_with_none(run: ClassRun) -> None:
    task = task_of(run)
    pictures = {task.data.latents(number).float().sum().item(): number for number in range(7)}
    seen, dropped = set(), 0
    for step in range(60):
        batch = task.batch(step, Share())
        for latents, label in zip(batch.latents, batch.labels, strict=True):
            number = pictures[latents.sum().item()]
            seen.add(number)
            dropped += int(label) == 3
            assert int(label) in (task.data.label(number), 3)
        assert ((batch.times >= 0) & (batch.times < 1000)).all()
    assert seen == set(range(7)) and 8 < dropped < 45  # a tenth of 240


def test_shares_are_the_rows_of_the_batch_and_their_losses_its_loss(run: ClassRun) -> None:
    task = task_of(run)
    whole, parts = task.batch(3, Share()), [task.batch(3, Share(index, 2)) for index in range(2)]
    for name in whole._fields:
        torch.testing.assert_close(
            torch.cat([getattr(part, name) for part in parts]), getattr(whole, name), rtol=0, atol=0
        )
    losses = [task.losses_of_share(3, Share(index, 2))["loss"] for index in range(2)]
    torch.testing.assert_close(torch.stack(losses).mean(), task.losses(3)["loss"])


def test_the_loss_is_the_squared_error_of_the_noise(run: ClassRun) -> None:
    """Written out from equation 14 of arXiv:2006.11239."""
    task = task_of(run)
    batch = task.batch(0, Share())
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[batch.times]
    signal, noise = (each.sqrt().float()[:, None, None, None] for each in (kept, 1 - kept))
    predicted = task.model(signal * batch.latents + noise * batch.noise, batch.times, batch.labels)
    torch.testing.assert_close(task.losses(0)["loss"], (predicted - batch.noise).square().mean())


def test_samples_are_the_asked_classes_from_the_same_noise(run: ClassRun) -> None:
    sample = SAMPLE.model_copy(update={"classes": ("dog", "0")})
    task = task_of(run.model_copy(update={"sample": sample}))
    assert task.shown == [1, 0]
    first = task.sample(task.model, 1)
    assert first.shape == (4, 3, 24, 24)  # two classes from the noise of two seeds
    assert torch.equal(first, task.sample(task.model, 2))
    rows: list[Tensor] = list(first)
    assert not torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])


@pytest.mark.parametrize("attention", ["linear", "softmax"])
def test_a_run_saves_a_model_with_its_classes(run: ClassRun, tmp_path: Path, attention: str) -> None:
    run = run.model_copy(update={"model": SMALL.model_copy(update={"attention": attention})})
    model = read_model(train_classes(run, tmp_path, resume=False, device=CPU))
    assert model.about["classes"] == ["cat", "dog", "owl"] and model.about["sampling"]["size"] == 24
    assert set(model.components) == {"transformer", "autoencoder"}
    kind = LinearDiT if attention == "linear" else SoftmaxDiT
    component = model.components["transformer"]
    assert component.class_name == kind.__name__
    assert isinstance(component.config, DiTConfig)
    built = kind(component.config)
    built.load_state_dict(component.tensors)
    assert built.null_class == 3
    assert list((tmp_path / "samples").glob("*.png"))


def test_an_interrupted_run_is_bit_for_bit_the_uninterrupted_one(run: ClassRun, tmp_path: Path) -> None:
    train_classes(run, tmp_path / "whole", resume=False, device=CPU)
    parts = tmp_path / "parts"
    train_classes(run, parts, resume=False, device=CPU)
    (last,) = parts.glob("step-00000004")
    for path in sorted(last.iterdir()):
        path.unlink()
    last.rmdir()
    train_classes(run, parts, resume=True, device=CPU)
    one, two = load_newest(tmp_path / "whole"), load_newest(parts)
    assert one is not None and two is not None and one.step == two.step == 4
    for stem, tensors in one.tensors.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, two.tensors[stem][name]), f"{stem} {name}"


def test_a_run_starts_from_another_one_s_weights(run: ClassRun, tmp_path: Path) -> None:
    first = train_classes(run, tmp_path / "first", resume=False, device=CPU)
    slow = LOOP.model_copy(update={"steps": 1, "learning_rate": 1e-12})
    update = {"start": first, "train": slow}
    second = train_classes(run.model_copy(update=update), tmp_path / "second", resume=False, device=CPU)
    one, two = (read_model(place).components["transformer"].tensors for place in (first, second))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-9)


def test_drawn_scenes_are_of_the_class_of_their_object(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model: Path
) -> None:
    def from_font(names: tuple[str, ...], path: Path | None = None) -> Atlas:
        return Atlas(names, torch.full((len(names), 4, 8, 8), 255, dtype=torch.uint8))

    monkeypatch.setattr(Atlas, "from_font", from_font)
    monkeypatch.setattr(pool, "SHARD", 8)
    scenes = SceneConfig(size=32, objects=5, max_objects=1, placement_step=4)
    run = ClassRun(autoencoder=tiny_model, model=SMALL, scenes=scenes, pool=8, sample=SAMPLE, train=LOOP)
    model = read_model(train_classes(run, tmp_path / "run", resume=False, device=CPU))
    assert len(model.about["classes"]) == 5 and model.about["pictures"] == 8
    assert model.components["transformer"].config.model_dump()["num_classes"] == 5


def test_what_does_not_fit_is_refused(run: ClassRun, tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match=r"scenes of 4 objects have no one class. Use scenes.max_objects=1"):
        ClassRun(train=LOOP, scenes=SceneConfig())
    with pytest.raises(ConfigError, match=r"no whole tokens of 16 pixels\. .*--step 16"):
        coarse = SMALL.model_copy(update={"patch_size": 4})
        train_classes(run.model_copy(update={"model": coarse}), tmp_path, resume=False, device=CPU)
    with pytest.raises(ConfigError, match="there is no class horse. Use names such as cat, dog, owl"):
        shown_classes(["horse"], ["cat", "dog", "owl"])
    with pytest.raises(ConfigError, match="there is no class 3"):
        shown_classes(["3"], ["cat", "dog", "owl"])
    assert shown_classes(["2", "cat"], ["cat", "dog", "2"]) == [2, 0]


def test_pictures_without_classes_are_refused(tmp_path: Path, run: ClassRun, tiny_model: Path) -> None:
    picture = Image.new("RGB", (24, 24), "red")
    picture.save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("red")
    found = survey(FolderSource(tmp_path), BucketConfig(sizes=(24,), step=8), CheckConfig())
    encode(found, open_ledger(tmp_path / "out", {}), tiny_model, max_pixels=MOST_PIXELS)
    plain = run.model_copy(update={"data": tmp_path / "out"})
    with pytest.raises(ConfigError, match="has no classes. Prepare the pictures again with --classes"):
        train_classes(plain, tmp_path / "run", resume=False, device=CPU)
