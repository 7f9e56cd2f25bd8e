"""A rough picture of latents for next to nothing: one linear map from latent channels to colours."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from lineardit.autoencoder.model import Autoencoder

_CELLS = 8
_RIDGE = 1e-3
_PATTERNS = ((1, _CELLS, "nearest"), (2, _CELLS // 2, "bilinear"), (1, 2, "nearest"))
"""Pictures, patches per side, and whether they run into each other."""


class Colours:
    """colour = W latent + w, fitted to what an autoencoder makes of random patches of colour.

    A picture of H x W pixels is previewed with one pixel per latent.
    """

    def __init__(self, weight: Float[Tensor, "3 c"], bias: Float[Tensor, "3"]) -> None:
        self.weight, self.bias = weight, bias

    @classmethod
    @torch.no_grad()
    def fit(cls, autoencoder: Autoencoder) -> "Colours":
        """Encode 4 pictures of 8 x 8 latents, random patches of 1 to 4 of them, and solve for their colours.

        Deterministic. Least squares in float64, with a ridge that keeps channels that say nothing at 0.
        """
        # Parameters may be offloaded; they tell their dtype all the same.
        device, dtype = autoencoder.shift.device, next(autoencoder.parameters()).dtype
        stride = autoencoder.config.stride
        generator = torch.Generator().manual_seed(0)
        pictures = torch.cat(
            [
                functional.interpolate(
                    torch.rand(count, 3, cells, cells, generator=generator) * 2 - 1,
                    size=(_CELLS * stride, _CELLS * stride),
                    mode=mode,
                )
                for count, cells, mode in _PATTERNS
            ]
        )
        latents = autoencoder.encode(pictures.to(device, dtype))
        features = latents.movedim(1, -1).flatten(0, -2).double().cpu()
        colours = functional.avg_pool2d(pictures, stride).movedim(1, -1).flatten(0, -2).double()
        mean, middle = features.mean(0), colours.mean(0)
        centred = features - mean
        gram = centred.mT @ centred
        ridge = _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
        weight = torch.linalg.solve(gram + ridge, centred.mT @ (colours - middle)).mT
        bias = middle - weight @ mean
        return cls(weight.float().to(device), bias.float().to(device))

    @torch.no_grad()
    def __call__(self, latents: Float[Tensor, "c h w"]) -> UInt8[Tensor, "h w 3"]:
        """8-bit colours."""
        colours = torch.einsum("rc,chw->hwr", self.weight, latents.float()) + self.bias
        return ((colours.nan_to_num().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()
