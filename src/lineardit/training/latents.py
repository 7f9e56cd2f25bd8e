"""The scale of an autoencoder's latents: measured on pictures, then part of its configuration, or learned."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from lineardit.autoencoder.model import Autoencoder


@torch.no_grad()
def latent_statistics(
    model: Autoencoder, batches: Iterable[Float[Tensor, "_b 3 _h _w"]]
) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
    """Mean and deviation of each channel of the raw latents of all pictures, summed in float64."""
    total = torch.zeros(2, model.config.latent_channels, dtype=torch.float64)
    seen, first = 0, next(model.parameters())
    for images in batches:
        latents = model.encoder(images.to(first.device, first.dtype)).double().cpu()
        total += torch.stack([latents.sum((0, 2, 3)), latents.square().sum((0, 2, 3))])
        seen += latents.numel() // latents.shape[1]
    mean = total[0] / seen
    return mean, (total[1] / seen - mean.square()).clamp_min(1e-12).sqrt()


def moment_penalty(latents: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
    """(mean^2 + variance - 1 - log variance) / 2, the mean over channels: 0 at zero mean and unit variance.

    The divergence from a standard normal of the normal that has the moments of a channel over batch and
    places. An encoder that gives one latent per picture has no distribution of its own whose divergence could
    be taken; (z^2 - 1) / 2, which stands for it in the article on SANA, falls until all latents are zero.
    """
    values = latents.transpose(0, 1).flatten(1)
    mean, variance = values.mean(1), values.var(1, unbiased=False).clamp_min(1e-6)
    return ((mean.square() + variance - 1 - variance.log()) / 2).mean()


def with_statistics(model: Autoencoder, mean: Tensor, deviation: Tensor) -> Autoencoder:
    """The same weights under a configuration whose latents have zero mean and unit deviation."""
    config = model.config.model_copy(
        update={"latent_shift": tuple(mean.tolist()), "latent_scale": tuple((1 / deviation).tolist())}
    )
    scaled = Autoencoder(config).to(next(model.parameters()).device)
    scaled.load_state_dict(model.state_dict())
    return scaled.train(model.training)
