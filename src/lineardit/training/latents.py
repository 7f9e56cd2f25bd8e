"""The scale of an autoencoder's latents: measured on pictures, then part of its configuration."""

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


def with_statistics(model: Autoencoder, mean: Tensor, deviation: Tensor) -> Autoencoder:
    """The same weights under a configuration whose latents have zero mean and unit deviation."""
    config = model.config.model_copy(
        update={"latent_shift": tuple(mean.tolist()), "latent_scale": tuple((1 / deviation).tolist())}
    )
    scaled = Autoencoder(config).to(next(model.parameters()).device)
    scaled.load_state_dict(model.state_dict())
    return scaled.train(model.training)
