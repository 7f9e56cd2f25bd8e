"""A pipeline whose transformer is int8."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lineardit.errors import InputError
from lineardit.pipeline import Pipeline


def drawn(pipe: Pipeline) -> Tensor:
    images = pipe("a cat", seed=3, num_inference_steps=4, output_type="latent").images
    assert isinstance(images, Tensor)
    return images


def test_a_quantized_pipeline_draws_nearly_the_same_and_says_so(tiny_model: Path) -> None:
    exact, rounded = (Pipeline.from_pretrained(tiny_model, device="cpu") for _ in range(2))
    rounded.quantize()
    wanted, found = drawn(exact), drawn(rounded)
    apart = (found - wanted).square().mean().sqrt() / wanted.std()
    assert 0 < apart < 0.05
    assert rounded.description == f"{exact.description}, int8"
    torch.testing.assert_close(drawn(rounded), found, rtol=0, atol=0)


def test_what_a_quantized_pipeline_cannot_do_is_said(tiny_model: Path, tmp_path: Path) -> None:
    pipe = Pipeline.from_pretrained(tiny_model, device="cpu")
    pipe.quantize()
    with pytest.raises(InputError, match="quantized already"):
        pipe.quantize()
    with pytest.raises(InputError, match="takes no LoRA"):
        pipe.load_lora(tmp_path)
    with pytest.raises(InputError, match="is not saved"):
        pipe.save_pretrained(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
