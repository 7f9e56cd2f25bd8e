"""What an autoencoder learns from, which part of it learns, and what counts as a good reconstruction."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from lineardit.config.models import Config

Learns = Literal["all", "middle", "decoder", "decoder_head"]
"""Parts of an autoencoder, after the three phases of DC-AE (arXiv:2410.10733, section 3.3)."""


class AdversarialConfig(Config):
    """The second player: a PatchGAN that tells pictures from reconstructions (arXiv:1611.07004)."""

    weight: float = Field(0.0, ge=0)
    """Of the loss of not fooling it; 0 leaves it out."""
    adaptive: bool = True
    """The weight is then relative: on the pixels, the gradient of not fooling the second player is made
    `weight` times as long as that of all other losses (after arXiv:2012.09841, equation 7)."""
    start: int = Field(0, ge=0)
    """Steps at the beginning in which only the second player learns."""
    learning_rate: float = Field(1e-4, gt=0)
    """Of the second player, after the run's own warm-up and before its decay."""
    betas: tuple[float, float] = (0.5, 0.9)
    """As in the optimizer; a discriminator that remembers less follows what it judges (arXiv:1511.06434)."""
    width: int = Field(64, gt=0)
    """Channels of its first convolution; the next three have 2, 4 and 8 times as many."""
    depth: int = Field(3, gt=0, le=6)
    """Convolutions that halve the side: with 3 it judges patches of 70 pixels a side, with 2 of 34."""


class ReconstructionConfig(Config):
    """What counts as a good reconstruction: weights of a sum of losses, pixels in [-1, 1]."""

    l1: float = Field(1.0, ge=0)
    """Of the mean absolute error."""
    mse: float = Field(0.0, ge=0)
    """Of the mean squared error."""
    perceptual: float = Field(0.0, ge=0)
    """Of the distance between features (the LPIPS formula); 0 computes none."""
    lpips: Path | None = None
    """File of the published LPIPS weights over VGG-16, as safetensors; fixed filters take their place."""
    adversarial: AdversarialConfig = AdversarialConfig()
    latent: float = Field(0.0, ge=0)
    """Of the distance of the latents' moments from zero mean and unit variance, before shift and scale."""

    @model_validator(mode="after")
    def something_is_learned(self) -> Self:
        if not self.l1 + self.mse + self.perceptual:
            raise ValueError("l1, mse and perceptual are all 0: nothing would be learned. Use l1=1.0.")
        return self


class PicturesConfig(Config):
    """Pictures of your own: every PNG, JPEG and WebP below a folder."""

    folder: Path
    size: int = Field(256, gt=0)
    """Pixels that the shorter side is scaled down to; smaller pictures are left out."""
    held_out_share: float = Field(0.1, gt=0, lt=1)
    """Share of the pictures, at least one, that is kept from training, to see how it goes."""
    flip: bool = True
    """Show half of the windows mirrored."""
