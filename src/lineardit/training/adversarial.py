"""PatchGAN: a small network says of every patch whether it is real, and the autoencoder tries to fool it."""

from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from lineardit.config.reconstruction import AdversarialConfig
from lineardit.config.runs import LoopConfig
from lineardit.training.loop import step_generator

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
    discriminator: Callable[[Tensor], Tensor], reconstructions: Float[Tensor, "b 3 H W"]
) -> Float[Tensor, ""]:
    """Cross-entropy of the discriminator's taking reconstructions for real: what the autoencoder lowers."""
    return functional.softplus(-discriminator(reconstructions)).mean()


class Judge:
    """The discriminator as the second player of a run (`training.rival`)."""

    def __init__(self, config: AdversarialConfig, loop: LoopConfig, device: torch.device) -> None:
        self.loop = loop.model_copy(
            update={
                "optimizer": "adamw",
                "learning_rate": config.learning_rate,
                "betas": config.betas,
                "weight_decay": 0.0,
            }
        )
        seed = torch.randint(2**31, (), generator=step_generator(loop.seed, 0, "discriminator"))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(seed))
            self.discriminator = PatchDiscriminator(config.width, config.depth).to(device)
        self.model: nn.Module = self.discriminator
        self._seen: tuple[Tensor, Tensor] | None = None

    def sees(self, images: Float[Tensor, "b 3 H W"], reconstructions: Float[Tensor, "b 3 H W"]) -> None:
        """What the next step is about."""
        self._seen = images, reconstructions.detach()

    def frozen(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 1 h w"]:
        """Its logits, through which gradients reach the pictures and not its weights."""
        weights = {name: each.detach() for name, each in self.discriminator.named_parameters()}
        logits: Tensor = functional_call(self.discriminator, weights, (images,))
        return logits

    def losses(self, step: int) -> Mapping[str, Tensor]:
        """How badly it tells what it saw in this step from pictures: log 2 where it cannot."""
        assert self._seen is not None, "the second player steps after the first"
        return {"loss": discriminator_loss(self.discriminator, *self._seen)}
