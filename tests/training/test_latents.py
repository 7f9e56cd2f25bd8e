"""The measured mean and deviation of latents, and an autoencoder that makes them zero and one."""

from pathlib import Path

import pytest
import torch

from lineardit.autoencoder.model import Autoencoder
from lineardit.config.models import AutoencoderConfig
from lineardit.config.scenes import SceneConfig
from lineardit.data.emoji_atlas import Atlas
from lineardit.data.emoji_scenes import EmojiScenes
from lineardit.interop.native import load_autoencoder, save_autoencoder
from lineardit.training.latents import latent_statistics, with_statistics
from lineardit.training.picture_source import scene_batches

STAGES = [{"width": 8, "depth": 0}, {"width": 8, "depth": 1}, {"width": 16, "depth": 1}]


@pytest.fixture(scope="module")
def scenes() -> EmojiScenes:
    """Glyphs of random pixels, so that no font is needed."""
    config = SceneConfig(size=32, objects=12, placement_step=4)
    names = EmojiScenes(config).names
    glyphs = torch.randint(0, 256, (len(names), 4, 8, 8), generator=torch.Generator().manual_seed(0))
    glyphs[:, 3] = 255
    return EmojiScenes(config, 3, atlas=Atlas(names, glyphs.to(torch.uint8)))


@pytest.fixture
def model() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(AutoencoderConfig(latent_channels=4, encoder=STAGES, decoder=STAGES)).eval()


def test_latent_statistics_are_those_of_all_latents(scenes: EmojiScenes, model: Autoencoder) -> None:
    mean, deviation = latent_statistics(model, scene_batches(scenes, 11, batch_size=4))
    with torch.no_grad():
        latents = model.encoder(scenes.draw([scenes.scene(index) for index in range(11)])).double()
    torch.testing.assert_close(mean, latents.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(deviation, latents.std((0, 2, 3), correction=0), rtol=1e-5, atol=1e-6)


def test_measured_latents_are_normal_and_decode_to_the_same(scenes: EmojiScenes, model: Autoencoder) -> None:
    scaled = with_statistics(model, *latent_statistics(model, scene_batches(scenes, 12)))
    images = scenes.draw([scenes.scene(index) for index in range(12)])
    with torch.no_grad():
        latents = scaled.encode(images)
        torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-4)
        torch.testing.assert_close(latents.std((0, 2, 3), correction=0), torch.ones(4), rtol=1e-4, atol=0)
        assert not torch.allclose(latents, model.encode(images), atol=1e-2)
        torch.testing.assert_close(
            scaled.decode(latents), model.decode(model.encode(images)), rtol=1e-4, atol=1e-5
        )
    assert not scaled.training


def test_the_measured_configuration_reads_back(
    scenes: EmojiScenes, model: Autoencoder, tmp_path: Path
) -> None:
    scaled = with_statistics(model, *latent_statistics(model, scene_batches(scenes, 4)))
    loaded = load_autoencoder(save_autoencoder(tmp_path / "model", scaled))
    assert torch.equal(loaded.shift, scaled.shift) and torch.equal(loaded.scale, scaled.scale)
