"""Layers with packed weights in place of linear ones: the same numbers."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lineardit.config.models import TransformerConfig
from lineardit.errors import InputError
from lineardit.kernels import native
from lineardit.nn.packed import PackedLinear, pack_blocks
from lineardit.nn.wide import Linear
from lineardit.pipeline import Pipeline
from lineardit.transformer.model import Transformer

needs_library = pytest.mark.skipif(
    native.compiler() is None or not torch.backends.mkldnn.is_available(),
    reason="there is no C++ compiler or no oneDNN here",
)


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@needs_library
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@torch.no_grad()
def test_a_packed_transformer_computes_the_same_to_the_bit(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    config = TransformerConfig(
        latent_channels=4, depth=3, width=64, head_dim=16, cross_head_dim=16, text_width=24
    )
    model = Transformer(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)
    model = model.to(dtype).eval()
    given = randn(2, 4, 6, 6).to(dtype), torch.tensor([0.3, 0.8]), randn(2, 7, 24).to(dtype)
    with native.using("native"):
        wanted = model(*given)
        assert pack_blocks(model) == 3 * 4
        kinds = {name: type(each) for name, each in model.blocks[1].named_modules()}
        assert kinds["attention.to_qkv"] is kinds["feed_forward.expand"] is PackedLinear
        assert kinds["cross_attention.to_q"] is Linear, "it may be folded"
        assert torch.equal(model(*given), wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes_stay_as_they_are(dtype: torch.dtype) -> None:
    config = TransformerConfig(depth=1, width=32, head_dim=8, cross_head_dim=8, text_width=12)
    model = Transformer(config).to(dtype)
    assert pack_blocks(model) == 0 and type(model.blocks[0].attention.to_qkv) is Linear


def test_where_onednn_multiplies_no_bfloat16_nothing_of_it_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "has_products", lambda dtype: dtype != torch.bfloat16)
    config = TransformerConfig(depth=1, width=32, head_dim=8, cross_head_dim=8, text_width=12)
    model = Transformer(config).bfloat16()
    assert pack_blocks(model) == 0 and type(model.blocks[0].attention.to_qkv) is Linear
    with native.using("auto"):
        assert not native.multiplies(randn(2, 3).bfloat16())


@needs_library
def test_a_packed_model_draws_the_same_and_says_what_it_cannot_do(tiny_model: Path, tmp_path: Path) -> None:
    call = {"height": 48, "width": 32, "num_inference_steps": 2, "output_type": "pt"}
    pipe = Pipeline.from_pretrained(tiny_model, device="cpu", dtype="bf16")
    assert pipe.pack() == 0, "without the library nothing is packed"
    with native.using("native"):
        wanted = pipe("a cat", **call).images
        assert pipe.pack() > 0
        assert pipe.pack() == 0
        assert torch.equal(pipe("a cat", **call).images, wanted)
    with pytest.raises(InputError, match="packed model is not saved"):
        pipe.save_pretrained(tmp_path / "copy")
    with pytest.raises(InputError, match="packed model takes no LoRA"):
        pipe.load_lora(tmp_path)
    with pytest.raises(InputError, match="packed model is not quantized"):
        pipe.quantize()
    left = Pipeline.from_pretrained(tiny_model, device="cpu", dtype="bf16", offload=True)
    with native.using("native"):
        left.quantize()
        assert left.pack() == 0
