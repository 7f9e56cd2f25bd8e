"""Previews: cheap, and of the colours of the picture."""

import torch
from torch import nn
from torch.nn import functional

from lineardit.autoencoder.model import Autoencoder
from lineardit.pipeline import Pipeline
from lineardit.serving.preview import Colours


class Folded(Autoencoder):
    """An autoencoder whose latents are mean colours, mixed by a matrix, and two channels that say nothing."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        generator = torch.Generator().manual_seed(3)
        self.mix = nn.Parameter(torch.randn(5, 3, generator=generator))
        self.register_buffer("shift", torch.zeros(1))
        self.config = type("Shape", (), {"stride": 4})()

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        self.mix.data[3:] = 0
        return torch.einsum("cr,brhw->bchw", self.mix, functional.avg_pool2d(images, 4)) + 0.5


def test_a_linear_code_is_read_exactly() -> None:
    picture = torch.rand(1, 3, 12, 20, generator=torch.Generator().manual_seed(5)) * 2 - 1
    code = Folded()
    colours = Colours.fit(code)
    seen = colours(code.encode(picture)[0].detach())
    means = functional.avg_pool2d(picture, 4)[0].movedim(0, -1)
    assert seen.shape == (3, 5, 3) and seen.dtype == torch.uint8
    assert ((seen.float() / 127.5 - 1) - means).abs().max() < 0.02


def test_the_bundled_model_is_previewed_in_its_colours() -> None:
    autoencoder = Pipeline.from_pretrained(device="cpu").autoencoder
    colours = Colours.fit(autoencoder)
    stride = autoencoder.config.stride
    sky, grass = torch.tensor([-0.2, 0.4, 0.9]), torch.tensor([-0.5, 0.3, -0.6])
    picture = torch.empty(1, 3, 8 * stride, 8 * stride)
    picture[..., : 4 * stride, :] = sky.view(3, 1, 1)
    picture[..., 4 * stride :, :] = grass.view(3, 1, 1)
    with torch.no_grad():
        seen = colours(autoencoder.encode(picture)[0]).float() / 127.5 - 1
    assert (seen[1:3].mean((0, 1)) - sky).abs().max() < 0.25
    assert (seen[5:7].mean((0, 1)) - grass).abs().max() < 0.25
