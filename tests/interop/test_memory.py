"""The memory that is told for a picture is about what its layers hold, counted tensor by tensor."""

from typing import Any

import pytest
import torch

from lineardit.autoencoder.model import Autoencoder
from lineardit.config.models import AutoencoderConfig, TransformerConfig
from lineardit.interop.memory import decoder_bytes, transformer_bytes
from lineardit.transformer.model import Transformer


@torch.no_grad()
@pytest.mark.parametrize("patch_size", [1, 2])
def test_of_a_velocity(patch_size: int, counting: Any) -> None:
    config = TransformerConfig(
        latent_channels=4,
        depth=2,
        width=64,
        head_dim=16,
        cross_head_dim=16,
        text_width=8,
        patch_size=patch_size,
    )
    network = Transformer(config).eval()
    latents, text = torch.randn(1, 4, 24, 32), torch.randn(1, 3, 8)
    with counting(network) as counted:
        network(latents, torch.tensor([0.5]), text)
    told = transformer_bytes(config, 24, 32, 4)
    assert 0.7 < told / counted.peak < 1.5


@torch.no_grad()
@pytest.mark.parametrize("block", ["residual", "efficientvit"])
def test_of_decoding(block: str, counting: Any) -> None:
    stages = [{"width": 16, "depth": 2, "block": block}, {"width": 32, "depth": 1}]
    config = AutoencoderConfig(latent_channels=4, encoder=stages, decoder=stages, attention_head_dim=8)
    network = Autoencoder(config).eval()
    with counting(network) as counted:
        network.decode(torch.randn(1, 4, 24, 20))
    told = decoder_bytes(config, 48, 40, 4)
    assert 0.7 < told / counted.peak < 1.5
