"""The memory that is told for a picture is what its layers hold, and bands are chosen that fit a bound."""

import json
import subprocess
import sys

import pytest
import torch

from lineardit.autoencoder.model import Autoencoder
from lineardit.config.models import AutoencoderConfig, TransformerConfig
from lineardit.interop.memory import decoder_bytes, encoder_bytes, transformer_bytes
from lineardit.kernels import native
from lineardit.kernels.live import peak_bytes
from lineardit.transformer.controlnet import ControlNet
from lineardit.transformer.model import Transformer

STAGES = [{"width": 16, "depth": 2}, {"width": 32, "depth": 1}]
SMALL = AutoencoderConfig(latent_channels=4, encoder=STAGES, decoder=STAGES, attention_head_dim=8)


def test_live_bytes_are_those_of_the_tensors_that_are_there() -> None:
    def chain() -> None:
        x = torch.empty(1000)
        for _ in range(5):
            x = x + 1

    assert peak_bytes(chain) == 8000
    assert peak_bytes(lambda: torch.empty(10, 10).t().reshape(5, 20).view(100)) == 800


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
    latents, text = torch.randn(2, 4, 24, 32), torch.randn(2, 3, 8)
    read = network.read(text)
    counted = peak_bytes(lambda: network(latents, torch.tensor([0.5, 0.5]), read))
    prompts = 2 * 2 * 300 * 64 * 4 * 2
    assert 0.85 < (transformer_bytes(config, 24, 32, torch.float32) - prompts) / counted < 1.15


@pytest.mark.parametrize("passes", ["torch", "auto"])
@pytest.mark.parametrize("shuffled", [False, True])
def test_without_numbers_tensors_take_what_they_take_with_them(passes: str, shuffled: bool) -> None:
    """Layouts too: a copy that a CPU makes or does not make changes what is told."""
    config = SMALL if shuffled else SMALL.model_copy(update={"downsample": "conv", "upsample": "interpolate"})
    there = Autoencoder(config).eval()
    with torch.device("meta"):
        nowhere = Autoencoder(config).to("meta").eval()

    def taken(network: Autoencoder, device: str) -> list[int]:
        images, latents = (torch.zeros(shape, device=device) for shape in ((1, 3, 32, 40), (1, 4, 16, 20)))
        return [peak_bytes(lambda: network.encode(images)), peak_bytes(lambda: network.decode(latents))]

    with native.using(passes):
        assert taken(nowhere, "meta") == taken(there, "cpu")


@pytest.mark.parametrize("block", ["residual", "efficientvit"])
def test_of_decoding_and_encoding(block: str) -> None:
    stages = [{"width": 16, "depth": 2, "block": block}, {"width": 32, "depth": 1}]
    config = AutoencoderConfig(latent_channels=4, encoder=stages, decoder=stages, attention_head_dim=8)
    network, images = Autoencoder(config).eval(), torch.randn(1, 3, 48, 40)
    latents = network.encode(images)
    decoding = peak_bytes(lambda: network.decode(latents).float().clamp(-1, 1))
    assert 0.85 < decoder_bytes(config, 48, 40, torch.float32) / decoding < 1.15
    encoding = peak_bytes(lambda: network.encode(images))
    assert 0.85 < encoder_bytes(config, 48, 40, torch.float32) / encoding < 1.25


def test_bands_take_less_the_lower_they_are() -> None:
    told = [decoder_bytes(SMALL, 64, 32, torch.float32, rows) for rows in (2, 8, 16)]
    assert told == sorted(told) and told[-1] <= decoder_bytes(SMALL, 64, 32, torch.float32)
    half = decoder_bytes(SMALL, 64, 32, torch.bfloat16, 8)
    assert half < told[1]


def test_bands_of_a_velocity_take_less_the_lower_they_are() -> None:
    config = TransformerConfig(
        latent_channels=4, depth=5, width=64, head_dim=16, cross_head_dim=16, text_width=8
    )
    told = [transformer_bytes(config, 48, 16, torch.float32, rows=rows) for rows in (1, 8, 16, 48)]
    assert told == sorted(told) and told[-1] == transformer_bytes(config, 48, 16, torch.float32)
    network = Transformer(config).eval()
    latents, read = torch.randn(2, 4, 48, 16), network.read(torch.randn(2, 3, 8))
    counted = peak_bytes(lambda: network(latents, torch.tensor([0.5, 0.5]), read, rows=8))
    prompts = 2 * 2 * 300 * 64 * 4 * 5
    assert 0.85 < (told[1] - prompts) / counted < 1.15


def test_prompts_are_counted_as_they_are_folded_or_not() -> None:
    width, depth = 384, 5
    config = TransformerConfig(
        latent_channels=4, depth=depth, width=width, head_dim=32, cross_head_dim=32, text_width=8
    )
    given = (config, 4, 4, torch.float32, 1)
    with native.using("auto"):
        folded, plain = (transformer_bytes(*given, folds=folds) for folds in (True, False))
        if native.is_in_use():
            assert folded - plain == 2 * depth * width * (width - 300) * 4
    with native.using("torch"):
        assert transformer_bytes(*given) == transformer_bytes(*given, folds=False)


def test_a_controlnet_is_counted_with_all_that_it_adds() -> None:
    config = TransformerConfig(
        latent_channels=4, depth=9, width=64, head_dim=16, cross_head_dim=16, text_width=8
    )
    network = Transformer(config).eval()
    controlnet = ControlNet.beside(network, 7).eval()
    latents, times, text = torch.randn(2, 4, 24, 16), torch.tensor([0.5, 0.5]), torch.randn(2, 3, 8)
    read = network.read(text)

    def run() -> None:
        residuals = controlnet(latents, times, text, latents.clone(), rows=4)
        network(latents, times, read, residuals=residuals, rows=4)

    told = transformer_bytes(config, 24, 16, torch.float32, rows=4, control=controlnet.config)
    assert 0.85 < (told - 2 * 2 * 300 * 64 * 4 * 9) / peak_bytes(run) < 1.15


CHILD = """
import json, sys, torch
from lineardit.autoencoder.model import Autoencoder
from lineardit.config.models import AutoencoderConfig
from lineardit.kernels.allocator import resident_bytes
torch.set_num_threads(1)
network = Autoencoder(AutoencoderConfig(**json.loads(sys.argv[1]))).eval()
latents = torch.zeros(1, 4, 640, 640)
with torch.no_grad():
    network.decode(latents[..., :8, :8])
    before = resident_bytes()
    network.decode(latents).float().clamp(-1, 1)
print(resident_bytes("VmHWM") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc")
def test_what_is_told_is_what_a_process_takes() -> None:
    command = [sys.executable, "-c", CHILD, json.dumps(SMALL.model_dump(mode="json"))]
    taken = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert 0.85 < decoder_bytes(SMALL, 1280, 1280, torch.float32) / taken < 1.15
