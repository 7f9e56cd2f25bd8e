"""In bands or whole: the same latents and the same pixels, whatever the number of rows."""

import pytest
import torch

from lineardit.autoencoder import bands
from lineardit.autoencoder.bands import decode_in_bands, encode_in_bands
from lineardit.autoencoder.model import AnyAutoencoderConfig, Autoencoder
from lineardit.config.article import ArticleAutoencoderConfig
from lineardit.config.models import AutoencoderConfig, StageConfig
from lineardit.errors import InputError

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def vit(width: int, depth: int, kernels: tuple[int, ...] = (5,)) -> StageConfig:
    return StageConfig(width=width, depth=depth, block="efficientvit", kernels=kernels)


def res(width: int, depth: int, **options: str) -> StageConfig:
    return StageConfig(width=width, depth=depth, **options)


CONFIGS: dict[str, AnyAutoencoderConfig] = {
    "f16, a first stage of its own": AutoencoderConfig(
        latent_channels=4,
        encoder=(res(8, 1), res(8, 1), res(16, 2), vit(16, 1), vit(32, 2, ())),
        decoder=(res(8, 2), res(8, 1), res(16, 1), vit(16, 1, (3, 5)), vit(32, 2)),
        attention_head_dim=8,
        latent_shift=(0.3, -0.2, 0.1, 0.0),
        latent_scale=(2.0, 0.5, 1.0, 1.5),
    ),
    "f8, stem halves, shuffled": AutoencoderConfig(
        latent_channels=4,
        encoder=(res(8, 0), res(8, 2), res(16, 1), vit(16, 1)),
        decoder=(res(8, 0), res(8, 1), res(16, 2, norm="batch", activation="relu"), vit(16, 2)),
        attention_head_dim=8,
        downsample="pixel_unshuffle",
        upsample="pixel_shuffle",
    ),
    "the article's": ArticleAutoencoderConfig(latent_channels=4, base_width=8, halvings=3),
}


def filled(config: AnyAutoencoderConfig) -> Autoencoder:
    torch.manual_seed(0)
    model = Autoencoder(config).eval()
    with torch.no_grad():  # norms and biases too: a row that is missed must show
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 100])
@torch.no_grad()
def test_bands_decode_and_encode_as_the_whole_does(name: str, rows: int) -> None:
    model = filled(CONFIGS[name])
    latents = torch.randn(2, 4, 7, 3)
    pixels = model.decode(latents)
    torch.testing.assert_close(decode_in_bands(model, latents, rows), pixels, **CLOSE)
    images = torch.randn(2, 3, 7 * model.config.stride, 2 * model.config.stride)
    torch.testing.assert_close(encode_in_bands(model, images, rows), model.encode(images), **CLOSE)


@pytest.mark.parametrize(
    ("lacking", "name"),
    [
        ("Upsample", "f16, a first stage of its own"),
        ("ResidualBlock", "f16, a first stage of its own"),
        ("Downsample", "f16, a first stage of its own"),
        ("PlainUpsample", "the article's"),
        ("PlainBlock", "the article's"),
        ("Conv2d", "the article's"),
    ],
)
@torch.no_grad()
def test_one_row_less_would_be_seen(lacking: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reach of each layer is no larger than it must be, nor smaller: without it the result changes."""
    model = filled(CONFIGS[name])
    stride = model.config.stride
    known = bands._layer

    def short_sighted(module: torch.nn.Module) -> object:
        layer = known(module)
        if type(module).__name__ == lacking:
            assert isinstance(layer, bands.Local)
            return layer._replace(reach=0)
        return layer

    monkeypatch.setattr(bands, "_layer", short_sighted)
    latents, images = torch.randn(1, 4, 7, 3), torch.randn(1, 3, 7 * stride, 2 * stride)
    decoded = torch.allclose(decode_in_bands(model, latents, 2), model.decode(latents), **CLOSE)
    encoded = torch.allclose(encode_in_bands(model, images, 2), model.encode(images), **CLOSE)
    assert not (decoded and encoded)


def test_no_rows_are_refused() -> None:
    model = Autoencoder(CONFIGS["f8, stem halves, shuffled"])
    with pytest.raises(InputError, match="rows=0"):
        decode_in_bands(model, torch.zeros(1, 4, 2, 2), 0)
