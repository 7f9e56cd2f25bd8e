"""PatchGAN: a small network says of every patch whether it is real, and the autoencoder tries to fool it."""

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

SLOPE = 0.2


class PatchDiscriminator(nn.Module):
    """Logits of "this patch is real", one for each of many overlapping patches (arXiv:1611.07004).

    With three strided convolutions a patch is 70 pixels a side. There is no normalisation: one picture of a
    batch says nothing of another.
    """

    def __init__(self, width: int = 64, depth: int = 3) -> None:
        super().__init__()
        widths = [3, *(width * min(2**number, 8) for number in range(depth + 1))]
        layers: list[nn.Module] = []
        for number, (inside, out) in enumerate(pairwise(widths)):
            stride = 2 if number < depth else 1
            layers += [nn.Conv2d(inside, out, 4, stride=stride, padding=1), nn.LeakyReLU(SLOPE)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, padding=1))

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 1 h w"]:
        """Logits; pixels in [-1, 1]."""
        logits: Tensor = self.layers(images)
        return logits


def discriminator_loss(
    discriminator: PatchDiscriminator,
    images: Float[Tensor, "b 3 H W"],
    reconstructions: Float[Tensor, "b 3 H W"],
) -> Float[Tensor, ""]:
    """Cross-entropy of telling pictures from reconstructions, through which no gradient reaches the latter.

    log 2 where it cannot tell.
    """
    real = functional.softplus(-discriminator(images))
    fake = functional.softplus(discriminator(reconstructions.detach()))
    return (real.mean() + fake.mean()) / 2


def fooling_loss(
    discriminator: PatchDiscriminator, reconstructions: Float[Tensor, "b 3 H W"]
) -> Float[Tensor, ""]:
    """Cross-entropy of the discriminator's taking reconstructions for real: what the autoencoder lowers."""
    return functional.softplus(-discriminator(reconstructions)).mean()
