"""The three phases of an autoencoder: what learns in each, against whom, and what stays to the bit."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lineardit.autoencoder.model import Autoencoder
from lineardit.config.files import parse_run
from lineardit.config.models import AutoencoderConfig
from lineardit.config.reconstruction import AdversarialConfig
from lineardit.config.runs import AutoencoderRun, LoopConfig
from lineardit.errors import CheckpointError, ConfigError
from lineardit.interop.bundled import bundled_folder
from lineardit.interop.native import load_autoencoder, save_autoencoder
from lineardit.training.adversarial import Judge, fooling_loss
from lineardit.training.autoencoder import first_model, train_autoencoder
from lineardit.training.checkpoint import load_newest
from lineardit.training.picture_source import FolderPictures
from lineardit.training.reconstruction import ReconstructionTask, adaptive_weight, learn_only

STAGES = [
    {"width": 8, "depth": 0},
    {"width": 8, "depth": 1, "norm": "batch"},
    {"width": 16, "depth": 1},
]
MODEL = AutoencoderConfig(latent_channels=4, encoder=STAGES, decoder=STAGES)
CPU = torch.device("cpu")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    levels = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), np.uint8)
    for number, each in enumerate(levels):
        Image.fromarray(each).resize((30, 20)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """An autoencoder whose latents were measured before."""
    torch.manual_seed(0)
    config = MODEL.model_copy(update={"latent_scale": (0.5, 2.0, 3.0, 0.7), "latent_shift": (0.1,) * 4})
    return save_autoencoder(tmp_path / "start", Autoencoder(config))


def recipe(start: Path, pictures: Path, *overrides: str) -> AutoencoderRun:
    text = f"""
    kind = "autoencoder"
    start = "{start}"
    crop = 16
    pictures = {{ folder = "{pictures}", size = 20 }}
    train = {{ steps = 3, batch_size = 2, dtype = "fp32", warmup_steps = 0, learning_rate = 1e-2 }}
    """
    run = parse_run(text, overrides)
    assert isinstance(run, AutoencoderRun)
    return run


ADVERSARY = ("loss.adversarial.weight=0.5", "loss.adversarial.width=4", "loss.adversarial.depth=1")
MOVED = {
    "middle": ("encoder.stages.2", "encoder.head", "decoder.stem", "decoder.stages.0"),
    "decoder": ("decoder",),
    "decoder_head": ("decoder.stages.1", "decoder.norm", "decoder.head"),
}


@pytest.mark.parametrize("learns", MOVED)
def test_a_phase_moves_its_part_and_leaves_the_rest_to_the_bit(
    learns: str, start: Path, pictures: Path, tmp_path: Path
) -> None:
    run = recipe(start, pictures, f"learns={learns}", *ADVERSARY)
    before = load_autoencoder(start)
    after = load_autoencoder(train_autoencoder(run, tmp_path / "run", resume=False, device=CPU))
    moved = {
        name
        for name, value in before.state_dict().items()
        if not torch.equal(value, after.state_dict()[name])
    }
    parameters = {name for name, _ in before.named_parameters()}
    assert moved == {name for name in parameters if name.startswith(MOVED[learns])}
    # Where the encoder learned, its latents are measured anew; where it did not, they stay.
    assert (before.config.latent_scale == after.config.latent_scale) == (learns != "middle")


def test_everything_learns_with_its_batch_norms(start: Path) -> None:
    model = load_autoencoder(start)
    learn_only(model, "all")
    assert all(each.requires_grad for each in model.parameters()) and model.training
    learn_only(model, "decoder")
    norms = [each for each in model.modules() if isinstance(each, nn.BatchNorm2d)]
    assert norms and not any(each.training for each in norms)


def test_measured_latents_are_those_of_the_pictures(start: Path, pictures: Path, tmp_path: Path) -> None:
    run = recipe(start, pictures)
    model = load_autoencoder(train_autoencoder(run, tmp_path / "run", resume=False, device=CPU))
    with torch.no_grad():
        latents = model.encode(torch.cat([*FolderPictures(run).whole(100)]))
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(latents.std((0, 2, 3), correction=0), torch.ones(4), rtol=1e-3, atol=0)


def test_an_epoch_shows_every_picture_once_and_steps_follow_from_the_seed(
    start: Path, pictures: Path
) -> None:
    run = recipe(start, pictures, "crop=20", "pictures.flip=false")
    first, second = FolderPictures(run), FolderPictures(run)
    shown = torch.cat([first.batch(step, CPU) for step in range(2)])
    # 5 pictures, of which one is kept: the fifth place is the first of the next epoch.
    assert shown.shape == (4, 3, 20, 20) and len({each.sum().item() for each in shown}) == 4
    assert torch.equal(second.batch(1, CPU), shown[2:]) and not torch.equal(first.batch(3, CPU), shown[2:])
    (kept,) = first.unseen(8, CPU)
    assert not any(torch.equal(kept.sum(), each.sum()) for each in shown)


def test_the_second_player_joins_the_loss_as_hard_as_it_is_told(start: Path, pictures: Path) -> None:
    model = load_autoencoder(start)
    run = recipe(start, pictures, *ADVERSARY, "loss.adversarial.start=1", "learns=decoder")
    task = ReconstructionTask(run, FolderPictures(run), model)
    assert task.rival is not None
    assert "fooling" not in task.losses(0)
    losses = task.losses(1)
    images = task.batch(1)
    made = model(images)
    l1, fooling = (made - images).abs().mean(), fooling_loss(task.rival.discriminator, made)
    torch.testing.assert_close(losses["fooling"], fooling)
    (mine,), (theirs,) = torch.autograd.grad(l1, made), torch.autograd.grad(fooling, made, retain_graph=True)
    weight = 0.5 * mine.norm() / theirs.norm()
    torch.testing.assert_close(losses["loss"], (made - images).abs().mean() + weight * fooling)
    losses["loss"].backward()
    assert all(each.grad is None for each in task.rival.model.parameters())
    judged = task.rival.losses(1)["loss"]
    judged.backward()
    assert all(each.grad is not None for each in task.rival.model.parameters())


def test_a_fixed_weight_is_taken_as_it_is(start: Path, pictures: Path) -> None:
    run = recipe(start, pictures, *ADVERSARY, "loss.adversarial.adaptive=false", "learns=decoder")
    losses = ReconstructionTask(run, FolderPictures(run), load_autoencoder(start)).losses(0)
    torch.testing.assert_close(losses["loss"], losses["l1"] + 0.5 * losses["fooling"])


def test_the_adaptive_weight_has_a_limit() -> None:
    x = torch.ones(1, 3, 2, 2, requires_grad=True)
    assert adaptive_weight(x.sum(), 0.25 * x.sum(), x) == pytest.approx(4)
    assert adaptive_weight(x.sum(), 0 * x.sum(), x) == pytest.approx(1e4)


def test_the_second_player_follows_from_the_seed_and_draws_no_number_of_others() -> None:
    config, loop = AdversarialConfig(width=2), LoopConfig(steps=1, batch_size=1, seed=4, optimizer="muon")
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first, second = Judge(config, loop, CPU), Judge(config, loop, CPU)
    assert torch.equal(torch.rand(3), expected)
    for one, two in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, two)
    assert first.loop.optimizer == "adamw" and first.loop.learning_rate == 1e-4 and first.loop.steps == 1


def test_a_run_over_other_pictures_is_not_resumed(start: Path, pictures: Path, tmp_path: Path) -> None:
    run = recipe(start, pictures)
    train_autoencoder(run, tmp_path / "run", resume=False, device=CPU)
    first = pictures / "0.png"
    first.rename(pictures / "00.png")
    with pytest.raises(CheckpointError, match="was made with other data: data was"):
        train_autoencoder(run, tmp_path / "run", resume=True, device=CPU)
    (pictures / "00.png").rename(first)
    train_autoencoder(run, tmp_path / "run", resume=True, device=CPU)
    Image.new("RGB", (30, 20)).save(pictures / "6.png")
    with pytest.raises(CheckpointError, match=r"was made with other data: counts was \[4\] and is \[5\]"):
        train_autoencoder(run, tmp_path / "run", resume=True, device=CPU)


def test_an_adversarial_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    start: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = recipe(start, pictures, *ADVERSARY, "learns=decoder_head", "train.steps=5")
    train_autoencoder(run, tmp_path / "whole", resume=False, device=CPU)
    losses = ReconstructionTask.losses

    def stopped(task: ReconstructionTask, step: int) -> object:
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return losses(task, step)

    with monkeypatch.context() as patch:
        patch.setattr(ReconstructionTask, "losses", stopped)
        train_autoencoder(run, tmp_path / "parts", resume=False, device=CPU)
    found = load_newest(tmp_path / "parts")
    assert found is not None and found.step == 3
    train_autoencoder(run, tmp_path / "parts", resume=True, device=CPU)
    one, two = load_newest(tmp_path / "whole"), load_newest(tmp_path / "parts")
    assert one is not None and two is not None and one.step == two.step == 5
    assert "rival_optimizer" in one.tensors and one.tensors.keys() == two.tensors.keys()
    for stem, tensors in one.tensors.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, two.tensors[stem][name]), f"{stem} {name}"


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["crop=18"], "crop=18 is no multiple of the stride 4. Use 16 or 20."),
        (["pictures.size=30", "crop=28"], "pictures.size=30 is no multiple of the stride 4. Use 28 or 32."),
        (["crop=24"], "crop=24 is above the pictures' size=20. Use 10."),
        (["learns=middles"], "learns='middles'"),
        (
            ["learns=decoder", "model.latent_channels=4", f"model.encoder={[]}", f"model.decoder={[]}"],
            "model.encoder",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(
    overrides: list[str], complaint: str, start: Path, pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        run = recipe(start, pictures, *overrides)
        train_autoencoder(run, tmp_path / "run", resume=False, device=CPU)
    assert complaint in str(caught.value) and not (tmp_path / "run").exists()


def test_a_place_without_an_autoencoder_is_refused(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    from lineardit.interop.native import load_transformer, save_transformer

    lonely = save_transformer(tmp_path / "lonely", load_transformer(tiny_model))
    with pytest.raises(CheckpointError, match="holds no autoencoder to start from"):
        train_autoencoder(recipe(lonely, pictures), tmp_path / "run", resume=False, device=CPU)


def test_the_bundled_autoencoder_has_a_name() -> None:
    run = AutoencoderRun(start=Path("emoji"), learns="decoder", train=LoopConfig(steps=1, batch_size=1))
    assert first_model(run).config == load_autoencoder(bundled_folder()).config


def test_weights_that_would_stay_random_are_refused() -> None:
    with pytest.raises(ConfigError, match='learns="decoder" leaves most weights as they are'):
        AutoencoderRun(model=MODEL, learns="decoder", train=LoopConfig(steps=1, batch_size=1))
    with pytest.raises(ConfigError, match="neither model nor start is given"):
        AutoencoderRun(train=LoopConfig(steps=1, batch_size=1))
