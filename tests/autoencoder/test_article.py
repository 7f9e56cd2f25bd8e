"""The article's DC-AE: its shapes, and that it gives back what went in once it can."""

import pytest
import torch

from lineardit.autoencoder.article import PlainBlock
from lineardit.autoencoder.model import Autoencoder
from lineardit.config.article import ARTICLE_AUTOENCODERS, ArticleAutoencoderConfig
from lineardit.errors import ConfigError, ShapeError

SMALL = ArticleAutoencoderConfig(latent_channels=3, base_width=4, halvings=3)


def test_latents_and_pixels_have_the_sides_that_the_stride_says() -> None:
    model, images = Autoencoder(SMALL), torch.randn(2, 3, 16, 40)
    latents, reconstruction = model.encode(images), model(images)
    assert latents.shape == (2, 3, 2, 5) and reconstruction.shape == (2, 3, 16, 40)
    assert torch.equal(model.decode(latents), reconstruction)


def test_measured_latents_have_the_shift_and_scale_of_the_configuration() -> None:
    torch.manual_seed(0)
    plain = Autoencoder(SMALL)
    measured = SMALL.model_copy(update={"latent_shift": (1.0, 2.0, -3.0), "latent_scale": (2.0, 0.5, 4.0)})
    scaled = Autoencoder(measured)
    scaled.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 16, 40)
    raw, latents = plain.encode(images), scaled.encode(images)
    torch.testing.assert_close(latents[:, 2], (raw[:, 2] + 3) * 4)
    torch.testing.assert_close(scaled.decode(latents), plain.decode(raw))
    with pytest.raises(ConfigError, match="latent_scale has 2 numbers: give 1 or latent_channels=3"):
        ArticleAutoencoderConfig(latent_channels=3, latent_scale=(1.0, 1.0))


def test_latents_and_pixels_can_be_negative() -> None:
    torch.manual_seed(0)
    model, images = Autoencoder(SMALL), torch.randn(2, 3, 32, 32)
    latents, reconstruction = model.encode(images), model(images)
    assert latents.min() < 0 < latents.max() and reconstruction.min() < 0 < reconstruction.max()


def test_a_block_adds_to_what_it_is_given() -> None:
    block, x = PlainBlock(5), torch.randn(2, 5, 3, 7)
    torch.nn.init.zeros_(block.second.weight)
    torch.nn.init.zeros_(block.second.bias)
    assert torch.equal(block(x), x)


def test_the_preset_is_the_articles_shape() -> None:
    config = ARTICLE_AUTOENCODERS["article-dc-ae"]
    assert config.stride == 32 and config.widths == (128, 256, 512, 1024)
    with torch.device("meta"):
        model = Autoencoder(config)
    assert isinstance(model.encoder, torch.nn.Sequential)
    convolutions = [layer for layer in model.encoder if isinstance(layer, torch.nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [128, 256, 512, 1024, 32]
    assert all(layer.stride == (2, 2) for layer in convolutions)
    latents = model.encoder(torch.empty(1, 3, 1024, 1024, device="meta"))
    assert latents.shape == (1, 32, 32, 32)


def test_a_side_that_the_stride_does_not_divide_is_refused() -> None:
    with pytest.raises(
        ShapeError, match="width=20 is not a multiple of 8, the pixels per latent. Use 16 or 24."
    ):
        Autoencoder(SMALL).encode(torch.zeros(1, 3, 16, 20))
