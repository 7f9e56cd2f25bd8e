"""Where activations leave the range of float16, models of every published kind still give finite pictures."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lineardit.autoencoder.model import Autoencoder
from lineardit.config.models import AutoencoderConfig
from lineardit.config.presets import AUTOENCODERS, TRANSFORMERS, differing
from lineardit.pipeline import Pipeline
from lineardit.transformer.controlnet import ControlNet
from lineardit.transformer.model import Transformer

Narrowed = Callable[[AutoencoderConfig], AutoencoderConfig]
OVERFLOWS = 65504
LOUDEST_WEIGHT = 5e4
"""What float16 still holds."""
SMALL = {
    "latent_channels": 4, "depth": 2, "width": 64, "head_dim": 16, "cross_head_dim": 16, "text_width": 12
}  # fmt: skip


@contextmanager
def largest(network: nn.Module) -> Iterator[list[float]]:
    """The largest number that any layer gives."""
    found = [0.0]

    def hook(_: nn.Module, __: object, output: object) -> None:
        if isinstance(output, Tensor):
            found[0] = max(found[0], output.abs().max().item())

    handles = [module.register_forward_hook(hook) for module in network.modules()]
    yield found
    for handle in handles:
        handle.remove()


def loud(network: nn.Module, *layers: str) -> nn.Module:
    """Random weights that keep activations about 1, but for the layers that write to the residual stream."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point() and tensor.dim() > 1:
                tensor.normal_(std=1 / tensor[0].numel() ** 0.5, generator=generator)
                if name.endswith(layers):
                    tensor.mul_(LOUDEST_WEIGHT / tensor.abs().max())
    return network.eval()


@torch.no_grad()
def check(network: nn.Module, *inputs: Tensor) -> None:
    with largest(network) as found:
        exact = network(*inputs)
    assert found[0] > 2 * OVERFLOWS, "float16 could hold this"
    for dtype in (torch.float16, torch.bfloat16):
        near = network.to(dtype)(inputs[0].to(dtype), *inputs[1:])
        assert near.isfinite().all()
        off = (near.float() - exact).square().mean().sqrt() / exact.std()
        # 11 and 8 bits of a number; nothing normalises what goes through an autoencoder's resampling.
        assert off < {torch.float16: 0.01, torch.bfloat16: 0.5}[dtype]


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers(name: str) -> None:
    config = differing(
        TRANSFORMERS[name],
        latent_channels=4,
        depth=2,
        width=64,
        head_dim=16,
        cross_head_dim=16,
        text_width=12,
    )
    network = loud(Transformer(config), "patchify.weight", "contract.weight", "to_out.weight")
    guidance = [torch.tensor([4.5])] if config.guidance_embedding else []
    generator = torch.Generator().manual_seed(1)
    latents, text = torch.randn(1, 4, 3, 5, generator=generator), torch.randn(1, 6, 12, generator=generator)
    mask = torch.arange(6)[None] < 4
    check(network, latents, torch.tensor([0.4]), text, mask, *guidance)


def test_a_controlnet_and_the_transformer_it_steers() -> None:
    config = differing(TRANSFORMERS["sana-1.6b"], **SMALL)
    network = loud(Transformer(config), "contract.weight").half()
    control = loud(ControlNet(differing(config, depth=1)), "contract.weight", "outs.0.weight").half()
    generator = torch.Generator().manual_seed(1)
    latents, text = torch.randn(1, 4, 3, 5, generator=generator), torch.randn(1, 6, 12, generator=generator)
    with torch.no_grad():
        residuals = control(latents, torch.tensor([0.4]), text, latents)
        assert residuals[0].abs().max() > OVERFLOWS
        assert network(latents, torch.tensor([0.4]), text, residuals=residuals).isfinite().all()


@pytest.mark.parametrize("name", ["dc-ae-f32c32-sana-1.1", "dc-ae-f32c32-mix-1.0", "dc-ae-f64c128-in-1.0"])
def test_autoencoders(name: str, narrowed: Narrowed) -> None:
    config = narrowed(AUTOENCODERS[name])
    network = loud(Autoencoder(config), "second.weight", "contract.weight", "to_out.weight")
    pixels = torch.randn(1, 3, config.stride, 2 * config.stride, generator=torch.Generator().manual_seed(1))
    check(network, pixels)


def test_a_whole_pipeline_draws_almost_the_same_in_every_dtype(published: Path) -> None:
    drawn = {}
    for dtype in ("fp32", "fp16", "bf16"):
        pipe = Pipeline.from_pretrained(published, device="cpu", dtype=dtype)
        options = {"height": 16, "width": 16, "num_inference_steps": 2, "output_type": "np"}
        drawn[dtype] = pipe("two dogs", **options).images
    assert abs(drawn["fp16"] - drawn["fp32"]).max() < 0.01 < drawn["fp32"].std()
    assert abs(drawn["bf16"] - drawn["fp32"]).max() < 0.1
