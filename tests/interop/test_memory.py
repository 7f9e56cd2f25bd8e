"""The memory that is told for a picture is about what its layers hold, counted tensor by tensor."""

import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lineardit.autoencoder.model import Autoencoder
from lineardit.config.models import AutoencoderConfig, TransformerConfig
from lineardit.interop.memory import decoder_bytes, transformer_bytes
from lineardit.transformer.model import Transformer


class Counting(TorchDispatchMode):
    """Counts the bytes of all tensors that were made and still live, beside a network's own."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.seen = {tensor.untyped_storage()._cdata for tensor in network.state_dict().values()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.note(tensor.untyped_storage())
        return out

    def note(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.seen:
            return
        self.seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self.forget, key, size)

    def forget(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.live -= size


@torch.no_grad()
@pytest.mark.parametrize("patch_size", [1, 2])
def test_of_a_velocity(patch_size: int) -> None:
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
    with Counting(network) as counted:
        network(latents, torch.tensor([0.5]), text)
    told = transformer_bytes(config, 24, 32, 4)
    assert 0.7 < told / counted.peak < 1.5


@torch.no_grad()
@pytest.mark.parametrize("block", ["residual", "efficientvit"])
def test_of_decoding(block: str) -> None:
    stages = [{"width": 16, "depth": 2, "block": block}, {"width": 32, "depth": 1}]
    config = AutoencoderConfig(latent_channels=4, encoder=stages, decoder=stages, attention_head_dim=8)
    network = Autoencoder(config).eval()
    with Counting(network) as counted:
        network.decode(torch.randn(1, 4, 24, 20))
    told = decoder_bytes(config, 48, 40, 4)
    assert 0.7 < told / counted.peak < 1.5
