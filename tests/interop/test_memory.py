"""The memory that is told for a picture is what its layers hold, and bands are chosen that fit a bound."""

import json
import subprocess
import sys

import pytest
import torch

from lineardit.autoencoder.model import Autoencoder
from lineardit.config.models import AutoencoderConfig, TransformerConfig
from lineardit.errors import InputError
from lineardit.interop.memory import decoder_bytes, decoder_rows, encoder_bytes, transformer_bytes
from lineardit.kernels.live import peak_bytes
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


def test_the_tallest_bands_that_fit_are_chosen() -> None:
    whole = decoder_bytes(SMALL, 128, 32, torch.float32)
    assert decoder_rows(SMALL, 128, 32, torch.float32, whole) is None
    rows = decoder_rows(SMALL, 128, 32, torch.float32, whole // 2)
    assert rows is not None and 1 <= rows < 64
    assert decoder_bytes(SMALL, 128, 32, torch.float32, rows) <= whole // 2
    with pytest.raises(
        InputError, match=r"decoding 32 x 128 pixels takes at least \d+ MB .* Allow \d+ MB more"
    ):
        decoder_rows(SMALL, 128, 32, torch.float32, 1000)


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
