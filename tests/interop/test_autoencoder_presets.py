"""Every published autoencoder, with all its options but narrow, gives the numbers that diffusers gives."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import AutoencoderDC

from lineardit.autoencoder.model import Autoencoder
from lineardit.config.models import AutoencoderConfig
from lineardit.config.presets import AUTOENCODERS
from lineardit.interop.diffusers import from_diffusers_autoencoder
from lineardit.interop.diffusers_config import autoencoder_config_to_diffusers


def filled(network: Any, generator: torch.Generator) -> Any:
    """Weights under which every tensor matters, running statistics of batch norms included."""
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0, generator=generator)
        elif tensor.dim() > 1:
            tensor.normal_(std=1 / tensor[0].numel() ** 0.5, generator=generator)
        elif tensor.is_floating_point():
            centre = 1.0 if name.endswith("weight") else 0.0
            tensor.normal_(centre, 0.2, generator=generator)
    return network.eval()


@torch.no_grad()
@pytest.mark.parametrize("name", AUTOENCODERS)
def test_it_encodes_and_decodes_as_diffusers_does(
    name: str, narrowed: Callable[[AutoencoderConfig], AutoencoderConfig]
) -> None:
    config = narrowed(AUTOENCODERS[name])
    options = autoencoder_config_to_diffusers(config)
    options.pop("_class_name")
    generator = torch.Generator().manual_seed(0)
    theirs = filled(AutoencoderDC(**options), generator)
    ours = Autoencoder(config).eval()
    ours.load_state_dict(from_diffusers_autoencoder(config, theirs.state_dict()))
    pixels = torch.randn(1, 3, 2 * config.stride, config.stride, generator=generator)
    latents, scaling = ours.encode(pixels), AUTOENCODERS[name].latent_scale[0]
    torch.testing.assert_close(latents, theirs.encode(pixels).latent * scaling, rtol=1e-5, atol=1e-5)
    expected = theirs.decode(latents / scaling).sample
    assert latents.std() > 0.1 < expected.std()
    torch.testing.assert_close(ours.decode(latents), expected, rtol=1e-5, atol=1e-5)
