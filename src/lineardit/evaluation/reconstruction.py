"""How much of a picture an autoencoder keeps: PSNR and SSIM over scenes that it was not trained on."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from lineardit.autoencoder.model import Autoencoder
from lineardit.data.emoji_scenes import EmojiScenes
from lineardit.errors import InputError, ShapeError

PEAK = 2.0
"""Range of pixels in [-1, 1]."""
WINDOW = 11
"""Pixels per side of the window of SSIM."""
DEVIATION = 1.5
"""Of its Gaussian weights, in pixels."""
K1, K2 = 0.01, 0.03


@dataclass(frozen=True)
class ReconstructionScore:
    """Means over pictures."""

    count: int
    psnr: float
    """Decibels: the mean of the pictures' own, so that none outweighs others."""
    psnr_least: float
    """Decibels, of the worst picture."""
    ssim: float
    """1 for equal pictures."""
    l1: float
    """Mean absolute error, pixels in [-1, 1]."""

    def as_json(self) -> dict[str, Any]:
        """The numbers by name."""
        return {
            "count": self.count,
            "psnr_db": round(self.psnr, 3),
            "psnr_least_db": round(self.psnr_least, 3),
            "ssim": round(self.ssim, 5),
            "l1": round(self.l1, 5),
        }

    def table(self) -> Table:
        """The same for a terminal."""
        table = Table(
            title=f"{self.count} scenes, encoded and decoded", title_justify="left", show_header=False
        )
        table.add_row("PSNR", f"{self.psnr:.2f} dB", f"worst picture {self.psnr_least:.2f} dB")
        table.add_row("SSIM", f"{self.ssim:.4f}", "1 for equal pictures")
        table.add_row("L1", f"{self.l1:.4f}", "pixels in [-1, 1]")
        return table


def psnr(images: Float[Tensor, "b 3 H W"], truth: Float[Tensor, "b 3 H W"]) -> Float[Tensor, " b"]:
    """10 log10(2^2 / mean (images - truth)^2) of each picture, decibels, in float32; equal pictures give inf.

    Pixels in [-1, 1], hence the peak of 2.
    """
    error = (images.float() - truth.float()).square().mean((1, 2, 3))
    return 10 * torch.log10(PEAK**2 / error)


def ssim(images: Float[Tensor, "b 3 H W"], truth: Float[Tensor, "b 3 H W"]) -> Float[Tensor, " b"]:
    """Structural similarity of each picture (Wang et al. 2004), pixels in [-1, 1], summed in float64.

    Around every pixel a window of 11x11 with Gaussian weights of deviation 1.5, pictures mirrored at their
    edges; the colours are measured one by one and averaged. Black counts as 0, as everywhere: the measure
    compares brightnesses by their ratio.

    Raises: ShapeError for pictures smaller than a window.
    """
    height, width = images.shape[-2:]
    if min(height, width) < WINDOW:
        raise ShapeError(f"{height}x{width} pixels: SSIM needs at least {WINDOW} per side.")
    x, y = images.double() + 1, truth.double() + 1
    stacked = torch.cat([x, y, x * x, y * y, x * y])
    mean_x, mean_y, xx, yy, xy = _windowed(stacked).chunk(5)
    c1, c2 = (K1 * PEAK) ** 2, (K2 * PEAK) ** 2
    likeness = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    variances = xx - mean_x.square() + yy - mean_y.square()
    structure = (2 * (xy - mean_x * mean_y) + c2) / (variances + c2)
    return (likeness * structure).mean((1, 2, 3)).float()


@torch.no_grad()
def score_reconstruction(
    autoencoder: Autoencoder,
    scenes: EmojiScenes,
    count: int,
    *,
    batch_size: int = 16,
    size: int | None = None,
) -> ReconstructionScore:
    """PSNR, SSIM and L1 of `count` scenes after encoding and decoding, clamped to [-1, 1] as pictures are.

    Raises: InputError for a count below 1.
    """
    if count < 1:
        raise InputError(f"count={count}: measure at least one scene.")
    first = next(autoencoder.parameters())
    ratios, likenesses, errors = [], [], []
    for start in range(0, count, batch_size):
        indices = range(start, min(count, start + batch_size))
        truth = scenes.draw([scenes.scene(index) for index in indices], size=size)
        latents = autoencoder.encode(truth.to(first.device, first.dtype))
        images = autoencoder.decode(latents).float().cpu().clamp(-1, 1)
        ratios.append(psnr(images, truth))
        likenesses.append(ssim(images, truth))
        errors.append((images - truth).abs().mean((1, 2, 3)))
    ratio = torch.cat(ratios)
    return ReconstructionScore(
        count=count,
        psnr=float(ratio.mean()),
        psnr_least=float(ratio.min()),
        ssim=float(torch.cat(likenesses).mean()),
        l1=float(torch.cat(errors).mean()),
    )


def _windowed(images: Tensor) -> Tensor:
    """The Gaussian mean around every pixel."""
    padded = functional.pad(images, (WINDOW // 2,) * 4, mode="reflect")
    positions = torch.arange(WINDOW, dtype=images.dtype, device=images.device) - (WINDOW - 1) / 2
    weights = (-0.5 * (positions / DEVIATION).square()).exp()
    weights = (weights / weights.sum()).expand(images.shape[1], 1, 1, WINDOW)
    across = functional.conv2d(padded, weights, groups=images.shape[1])
    return functional.conv2d(across, weights.mT, groups=images.shape[1])
