"""PSNR and SSIM against their closed forms and against torchmetrics."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from lineardit.autoencoder.model import Autoencoder
from lineardit.config.models import AutoencoderConfig, StageConfig
from lineardit.config.scenes import SceneConfig
from lineardit.data.emoji_atlas import Atlas
from lineardit.data.emoji_scenes import EmojiScenes
from lineardit.errors import InputError, ShapeError
from lineardit.evaluation.frechet import Moments, frechet_distance
from lineardit.evaluation.reconstruction import psnr, score_reconstruction, ssim

STAGES = (StageConfig(width=8, depth=0), StageConfig(width=8, depth=1))
CONFIG = AutoencoderConfig(latent_channels=2, encoder=STAGES, decoder=STAGES)


def pictures(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.rand(5, 3, 23, 37, generator=generator) * 2 - 1
    noise = torch.randn(truth.shape, generator=generator) * torch.tensor([0.01, 0.1, 0.3, 0.6, 1.0]).view(
        -1, 1, 1, 1
    )
    return (truth + noise).clamp(-1, 1), truth


def test_psnr_of_an_offset_is_its_closed_form() -> None:
    truth = torch.rand(3, 3, 16, 16) - 0.5
    offsets = torch.tensor([0.2, 0.02, 2.0]).view(-1, 1, 1, 1)
    torch.testing.assert_close(
        psnr(truth + offsets, truth), torch.tensor([20.0, 40.0, 0.0]), rtol=0, atol=1e-3
    )


def test_psnr_of_equal_pictures_is_infinite() -> None:
    truth = torch.rand(1, 3, 16, 16)
    assert float(psnr(truth, truth)) == math.inf


def test_ssim_of_flat_pictures_is_the_likeness_of_their_means() -> None:
    levels = torch.tensor([[0.5, 0.5], [0.9, -0.9], [-0.4, 0.4]]).double()
    x, y = (levels[:, side].float().view(-1, 1, 1, 1).expand(-1, 3, 16, 16) for side in (0, 1))
    c1 = 0.02**2
    light = levels + 1  # black is 0
    expected = (2 * light.prod(1) + c1) / (light.square().sum(1) + c1)
    torch.testing.assert_close(ssim(x, y).double(), expected, rtol=0, atol=1e-6)


def test_ssim_of_equal_pictures_is_one_and_of_negatives_below_zero() -> None:
    _, truth = pictures()
    torch.testing.assert_close(ssim(truth, truth), torch.ones(5))
    assert (ssim(-truth, truth) < 0).all()


def test_ssim_is_that_of_torchmetrics() -> None:
    metrics = pytest.importorskip(
        "torchmetrics.functional.image", reason="torchmetrics is not installed: [eval]"
    )
    images, truth = pictures()
    theirs = torch.stack(
        [
            metrics.structural_similarity_index_measure(
                image[None] + 1,
                true[None] + 1,
                data_range=2.0,
                gaussian_kernel=True,
                sigma=1.5,
                k1=0.01,
                k2=0.03,
            )
            for image, true in zip(images, truth, strict=True)
        ]
    )
    torch.testing.assert_close(ssim(images, truth), theirs, rtol=0, atol=1e-4)
    assert theirs.min() < 0.5 < 0.99 < theirs.max()


def test_psnr_is_that_of_torchmetrics() -> None:
    metrics = pytest.importorskip(
        "torchmetrics.functional.image", reason="torchmetrics is not installed: [eval]"
    )
    images, truth = pictures()
    theirs = metrics.peak_signal_noise_ratio(images, truth, data_range=2.0, reduction="none", dim=(1, 2, 3))
    torch.testing.assert_close(psnr(images, truth), theirs, rtol=0, atol=1e-4)


def test_a_picture_smaller_than_a_window_is_refused() -> None:
    with pytest.raises(ShapeError, match="10x40 pixels: SSIM needs at least 11"):
        ssim(torch.zeros(1, 3, 10, 40), torch.zeros(1, 3, 10, 40))


class Brighter(Autoencoder):
    """An autoencoder that only adds to the pixels."""

    def __init__(self, more: float) -> None:
        super().__init__(CONFIG)
        self.more = more

    def encode(self, images: Tensor) -> Tensor:
        return images

    def decode(self, latents: Tensor) -> Tensor:
        return latents + self.more


@pytest.fixture(scope="module")
def scenes() -> EmojiScenes:
    config = SceneConfig(objects=12)
    names = EmojiScenes(config).names
    glyphs = torch.zeros(len(names), 4, 128, 128, dtype=torch.uint8)  # invisible: only backgrounds are drawn
    return EmojiScenes(config, seed=3, atlas=Atlas(names, glyphs))


def batches(scenes: EmojiScenes, count: int, batch_size: int) -> Iterator[Tensor]:
    for start in range(0, count, batch_size):
        yield scenes.draw([scenes.scene(index) for index in range(start, min(count, start + batch_size))])


def test_the_score_of_an_autoencoder_is_the_mean_over_its_pictures(scenes: EmojiScenes) -> None:
    truth = scenes.draw([scenes.scene(index) for index in range(10)])
    images = (truth + 0.1).clamp(-1, 1)
    score = score_reconstruction(Brighter(0.1), batches(scenes, 10, 4))
    assert score.count == 10
    assert score.psnr == pytest.approx(float(psnr(images, truth).mean()))
    assert score.psnr_least == pytest.approx(float(psnr(images, truth).min()))
    assert score.ssim == pytest.approx(float(ssim(images, truth).mean()), abs=1e-6)
    assert score.l1 == pytest.approx(float((images - truth).abs().mean()))
    assert score.as_json()["psnr_db"] == round(score.psnr, 3)


def test_reconstructions_are_clamped_as_pictures_are(scenes: EmojiScenes) -> None:
    score = score_reconstruction(Brighter(100.0), batches(scenes, 4, 4))
    truth = scenes.draw([scenes.scene(index) for index in range(4)])
    assert score.l1 == pytest.approx(float((1 - truth).mean()))


def test_distances_and_features_see_all_pictures_and_their_reconstructions(scenes: EmojiScenes) -> None:
    truth = scenes.draw([scenes.scene(index) for index in range(9)])
    images = (truth + 0.1).clamp(-1, 1)
    score = score_reconstruction(
        Brighter(0.1),
        batches(scenes, 9, 4),
        distances={"worst": lambda a, b: (a - b).abs().amax((1, 2, 3))},
        features={"colours": lambda pictures: pictures.mean((2, 3))},
    )
    assert score.distances == {"worst": pytest.approx(float((images - truth).abs().amax((1, 2, 3)).mean()))}
    sides = [Moments(3), Moments(3)]
    for side, pictures_ in zip(sides, (truth, images), strict=True):
        side.add(pictures_.mean((2, 3)))
    assert score.frechet == {"colours": pytest.approx(frechet_distance(*sides), abs=1e-9)}
    assert score.as_json()["colours"] > 0 and score.as_json()["worst"] == pytest.approx(0.1, abs=1e-5)


def test_no_picture_at_all_is_refused() -> None:
    with pytest.raises(InputError, match="measure at least one"):
        score_reconstruction(Brighter(0.0), [])
