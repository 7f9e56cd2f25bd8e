"""How much of pictures an autoencoder keeps: PSNR, SSIM, perceptual and Frechet distances."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from lineardit.autoencoder.model import Autoencoder
from lineardit.errors import InputError, ShapeError
from lineardit.evaluation.frechet import Moments, frechet_distance

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
    distances: Mapping[str, float] = field(default_factory=dict)
    """Perceptual distances by name, means over pictures; 0 for equal ones."""
    frechet: Mapping[str, float] = field(default_factory=dict)
    """Frechet distances between all pictures and all reconstructions, by the name of their features."""

    def as_json(self) -> dict[str, Any]:
        """The numbers by name."""
        return {
            "count": self.count,
            "psnr_db": round(self.psnr, 3),
            "psnr_least_db": round(self.psnr_least, 3),
            "ssim": round(self.ssim, 5),
            "l1": round(self.l1, 5),
            **{name: round(value, 5) for name, value in self.distances.items()},
            **{name: round(value, 5) for name, value in self.frechet.items()},
        }

    def table(self, notes: Mapping[str, str] | None = None) -> Table:
        """The same for a terminal; `notes` say what a distance is."""
        table = Table(
            title=f"{self.count} pictures, encoded and decoded", title_justify="left", show_header=False
        )
        table.add_row("PSNR", f"{self.psnr:.2f} dB", f"worst picture {self.psnr_least:.2f} dB")
        table.add_row("SSIM", f"{self.ssim:.4f}", "1 for equal pictures")
        table.add_row("L1", f"{self.l1:.4f}", "pixels in [-1, 1]")
        for name, value in {**self.distances, **self.frechet}.items():
            table.add_row(name, f"{value:.4f}", (notes or {}).get(name, ""))
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
    batches: Iterable[Float[Tensor, "_b 3 _h _w"]],
    *,
    distances: Mapping[str, Callable[[Tensor, Tensor], Tensor]] | None = None,
    features: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
) -> ReconstructionScore:
    """PSNR, SSIM and L1 of pictures after encoding and decoding, clamped to [-1, 1] as pictures are.

    `distances` give one number per pair of pictures (b 3 H W), `features` (b f) those between which a Frechet
    distance is computed, both by name.

    Raises: InputError where there are no pictures, or fewer than two for a Frechet distance.
    """
    first = next(autoencoder.parameters())
    parts: dict[str, list[Tensor]] = {name: [] for name in ("psnr", "ssim", "l1", *(distances or {}))}
    moments: dict[str, tuple[Moments, Moments]] = {}
    count = 0
    for truth in batches:
        latents = autoencoder.encode(truth.to(first.device, first.dtype))
        images = autoencoder.decode(latents).float().cpu().clamp(-1, 1)
        count += len(truth)
        parts["psnr"].append(psnr(images, truth))
        parts["ssim"].append(ssim(images, truth))
        parts["l1"].append((images - truth).abs().mean((1, 2, 3)))
        for name, distance in (distances or {}).items():
            parts[name].append(distance(images, truth))
        for name, describe in (features or {}).items():
            for side, pictures in enumerate((truth, images)):
                described = describe(pictures)
                pair = moments.setdefault(name, (Moments(described.shape[1]), Moments(described.shape[1])))
                pair[side].add(described)
    if not count:
        raise InputError("there are no pictures to encode and decode: measure at least one.")
    numbers = {name: torch.cat(values) for name, values in parts.items()}
    return ReconstructionScore(
        count=count,
        psnr=float(numbers["psnr"].mean()),
        psnr_least=float(numbers["psnr"].min()),
        ssim=float(numbers["ssim"].mean()),
        l1=float(numbers["l1"].mean()),
        distances={name: float(numbers[name].mean()) for name in distances or {}},
        frechet={name: frechet_distance(*pair) for name, pair in moments.items()},
    )


def _windowed(images: Tensor) -> Tensor:
    """The Gaussian mean around every pixel."""
    padded = functional.pad(images, (WINDOW // 2,) * 4, mode="reflect")
    positions = torch.arange(WINDOW, dtype=images.dtype, device=images.device) - (WINDOW - 1) / 2
    weights = (-0.5 * (positions / DEVIATION).square()).exp()
    weights = (weights / weights.sum()).expand(images.shape[1], 1, 1, WINDOW)
    across = functional.conv2d(padded, weights, groups=images.shape[1])
    return functional.conv2d(across, weights.mT, groups=images.shape[1])
