"""The measurement benchmarks/gpu.py with small networks on a CPU: who computes something else has no time."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from lineardit.config.models import AutoencoderConfig, TransformerConfig


@pytest.fixture
def gpu(script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = script("gpu")
    transformer = TransformerConfig(
        latent_channels=4, depth=2, width=32, head_dim=16, cross_head_dim=16, text_width=24
    )
    stages = [{"width": 8, "depth": 1}, *({"width": 16, "depth": 1} for _ in range(5))]
    autoencoder = AutoencoderConfig(latent_channels=4, encoder=stages, decoder=stages)
    assert autoencoder.stride == module.STRIDE
    monkeypatch.setattr(module, "transformer_preset", lambda _: transformer)
    monkeypatch.setattr(module, "autoencoder_preset", lambda _: autoencoder)
    monkeypatch.setattr(module, "compile_decoder", lambda _: None)
    monkeypatch.setattr(module, "measure", lambda work, *_: (work(), module.Cost(0.5, 3, 10**9))[1])
    monkeypatch.setattr(torch, "compile", lambda network, **_: network)
    return module


def compiled(change: float) -> Any:
    """In place of what is compiled: the network itself, and something else beside its velocities."""

    def of(transformer: torch.nn.Module) -> Callable[..., Tensor]:
        return lambda latents, times, read, _: transformer(latents, times, read) + change

    return of


@pytest.mark.parametrize("change", [0.0, 0.5, float("nan")])
def test_who_computes_something_else_has_no_time(
    change: float, gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "Compiled", compiled(change))
    place = tmp_path / "gpu.md"
    words = ["gpu.py", "--device", "cpu", "--pixels", "64,96", "--output", str(place)]
    monkeypatch.setattr(sys, "argv", words)
    gpu.main()
    lines = [line.strip("| ").split(" | ") for line in place.read_text("utf-8").splitlines()]
    times = {(line[1], line[0]): line[2:-1] for line in lines if line[0] in ("64", "96")}
    names = {name for name, _ in times}
    assert {"torch", "Triton's kernels", "Triton's kernels, compiled", "diffusers"} <= names
    measured = ["0.500", "0.500", "0.500", "1.00", "1.00"]
    for (name, _), found in times.items():
        wrong = change != 0 and name == "Triton's kernels, compiled"
        assert found == (["-"] * 5 if wrong else measured), name
