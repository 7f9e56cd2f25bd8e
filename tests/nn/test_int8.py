"""Int8 layers in place of linear ones."""

import pytest
import torch
from torch import Tensor, nn

from lineardit.config.dit import DiTConfig, LinearDiTConfig, SoftmaxDiTConfig
from lineardit.config.models import TransformerConfig
from lineardit.errors import InputError
from lineardit.nn.attention import CrossAttention
from lineardit.nn.int8 import Int8Linear, quantize_linears
from lineardit.nn.wide import Linear
from lineardit.transformer.dit import DiT, LinearDiT, SoftmaxDiT
from lineardit.transformer.model import Transformer


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def network() -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(
        latent_channels=4, depth=3, width=64, head_dim=16, cross_head_dim=16, text_width=24
    )
    model = Transformer(config)
    model.initialise()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)
    return model.eval().requires_grad_(False)


def test_a_quantized_transformer_is_within_the_error_of_rounding_its_layers() -> None:
    model = network()
    given = randn(2, 4, 6, 6), torch.tensor([0.3, 0.8]), randn(2, 7, 24)
    wanted = model(*given)
    assert quantize_linears(model.blocks) == 3 * 6
    found = model(*given)
    apart = (found - wanted).square().mean().sqrt() / wanted.std()
    assert 0 < apart < 0.02


def test_weights_take_a_quarter_of_float32_and_keys_and_values_of_prompts_stay() -> None:
    layer = CrossAttention(64, 16)
    assert quantize_linears(layer) == 2
    assert isinstance(layer.to_q, Int8Linear) and isinstance(layer.to_out, Int8Linear)
    assert type(layer.to_kv) is Linear
    assert layer.to_q.weight.dtype == torch.int8 and layer.to_q.weight.shape == (64, 64)


@pytest.mark.parametrize(("kind", "config"), [(LinearDiT, LinearDiTConfig), (SoftmaxDiT, SoftmaxDiTConfig)])
def test_of_a_dit_what_steers_the_tokens_stays_exact(kind: type[DiT], config: type[DiTConfig]) -> None:
    model = kind(config(input_dim=16, hidden_size=32, num_layers=2, num_heads=2))
    assert quantize_linears(model.blocks) == 2 * 4
    kinds = {name: type(each) for name, each in model.blocks[0].named_modules()}
    assert kinds["to_table"] is Linear
    assert kinds["attention.to_qkv"] is kinds["feed_forward.expand"] is Int8Linear


def test_what_cannot_be_quantized_says_why() -> None:
    with pytest.raises(InputError, match="no linear layer to quantize"):
        quantize_linears(nn.Sequential(nn.SiLU()))
    with pytest.raises(InputError, match="float16 cannot be quantized"):
        quantize_linears(nn.Sequential(Linear(4, 4).half()))
