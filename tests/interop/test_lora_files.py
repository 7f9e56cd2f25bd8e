"""LoRAs and DoRAs that begin here are what peft makes of their files, and DoRAs of peft what peft has."""

from pathlib import Path
from typing import Any

import diffusers
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lineardit.config.models import TransformerConfig
from lineardit.errors import CheckpointError, ConfigError
from lineardit.interop.diffusers import from_diffusers_transformer
from lineardit.interop.diffusers_config import transformer_config_to_diffusers
from lineardit.interop.lora import Lora, add_lora, merge_loras, read_lora, weigh_loras
from lineardit.interop.lora_files import fresh_lora, write_lora
from lineardit.transformer.model import Transformer

SMALL = TransformerConfig(latent_channels=3, depth=2, width=40, head_dim=4, cross_head_dim=20, text_width=11)
# Fused layers, a 1x1 convolution, and layers outside of the blocks.
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "conv_point", "linear_1", "proj_out"]
EQUAL = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def published() -> Any:
    options = transformer_config_to_diffusers(SMALL)
    options.pop("_class_name")
    torch.manual_seed(0)
    network = diffusers.SanaTransformer2DModel(**options).eval()
    for tensor in network.state_dict().values():
        if tensor.dim() > 1:
            tensor.normal_(std=1 / tensor[0].numel() ** 0.5)
    return network


@pytest.fixture
def ours(published: Any) -> Transformer:
    model = Transformer(SMALL).eval()
    model.load_state_dict(dict(from_diffusers_transformer(SMALL, published.state_dict())))
    return model


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(2, 3, 5, 7, generator=generator)
    return latents, torch.rand(2, generator=generator), torch.randn(2, 6, 11, generator=generator)


@torch.no_grad()
def mine(model: Transformer) -> Tensor:
    velocity: Tensor = model(*inputs())
    return velocity


@torch.no_grad()
def theirs(network: Any) -> Tensor:
    latents, times, text = inputs()
    velocity: Tensor = network(latents, text, times * 1000, return_dict=False)[0]
    return velocity


def trained(lora: Lora) -> Lora:
    """As if it had learned something."""
    generator = torch.Generator().manual_seed(6)
    factors = {}
    for name, each in lora.factors.items():
        up = torch.randn(each.up.shape, generator=generator) / 3
        magnitude = each.magnitude
        if magnitude is not None:
            magnitude = magnitude * (1 + torch.rand(magnitude.shape, generator=generator))
        factors[name] = each._replace(up=up, magnitude=magnitude)
    return Lora("trained", factors)


def fresh(model: Transformer, *, dora: bool) -> Lora:
    return fresh_lora(model, TARGETS, 3, 6.0, torch.Generator().manual_seed(1), dora=dora)


@pytest.mark.parametrize("dora", [False, True])
def test_peft_and_diffusers_read_what_is_written_and_give_the_same(
    dora: bool, ours: Transformer, published: Any, tmp_path: Path
) -> None:
    plain, lora = mine(ours), trained(fresh(ours, dora=dora))
    assert len(lora.factors) == 2 * (2 * 4 + 1) + 3
    place = write_lora(
        tmp_path / "lora", ours, lora.factors, alpha=6.0, targets=TARGETS, base="small", about={"steps": 5}
    )
    add_lora(ours, lora, "trained")
    expected = mine(ours)
    assert (expected - plain).abs().max() > 0.1
    wrapped = peft.PeftModel.from_pretrained(_copied(published), str(place))
    torch.testing.assert_close(theirs(wrapped), expected, **EQUAL)
    loaded = _copied(published)
    loaded.load_lora_adapter(str(place / "diffusers"), prefix="transformer", use_safetensors=True)
    torch.testing.assert_close(theirs(loaded), expected, **EQUAL)
    # And so do we, from both.
    for folder in (place, place / "diffusers"):
        again = Transformer(SMALL).eval()
        again.load_state_dict(dict(from_diffusers_transformer(SMALL, published.state_dict())))
        add_lora(again, read_lora(folder), "read")
        torch.testing.assert_close(mine(again), expected, rtol=0, atol=0)
        merge_loras(again)
        torch.testing.assert_close(mine(again), expected, **EQUAL)


def test_a_dora_of_peft_gives_what_peft_gives_and_weight_zero_gives_the_model(
    ours: Transformer, published: Any, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    options = {"r": 3, "lora_alpha": 5, "use_dora": True, "init_lora_weights": False}
    wrapped = peft.get_peft_model(_copied(published), peft.LoraConfig(target_modules=TARGETS, **options))
    for name, parameter in wrapped.named_parameters():
        if "magnitude" in name:
            parameter.data *= 1 + torch.rand(parameter.shape)
    wrapped.save_pretrained(tmp_path)
    plain = mine(ours)
    add_lora(ours, read_lora(tmp_path), "dora")
    torch.testing.assert_close(mine(ours), theirs(wrapped), **EQUAL)
    weigh_loras(ours, {"dora": 0.0})
    torch.testing.assert_close(mine(ours), plain, rtol=0, atol=0)


@pytest.mark.parametrize("dora", [False, True])
def test_a_fresh_one_changes_nothing_and_starts_as_peft_does(ours: Transformer, dora: bool) -> None:
    plain, lora = mine(ours), fresh(ours, dora=dora)
    add_lora(ours, lora, "fresh")
    torch.testing.assert_close(mine(ours), plain, rtol=1e-6, atol=1e-6)
    down = lora.factors["transformer_blocks.1.attn2.to_q"].down
    # peft: kaiming_uniform_(a=sqrt(5)), which is uniform in +-1 / sqrt(in).
    assert down.shape == (3, 40) and down.abs().max() <= 40**-0.5 < 1.1 * float(down.abs().max())
    assert down.std() == pytest.approx(40**-0.5 / 3**0.5, rel=0.15)
    again = fresh(ours, dora=dora) if not dora else lora
    assert torch.equal(again.factors["transformer_blocks.1.attn2.to_q"].down, down)


def test_a_target_that_is_no_layer_is_answered_with_those_that_are(ours: Transformer) -> None:
    with pytest.raises(
        ConfigError, match="no linear layer is called to_w. Use some of .*to_out.0, to_q, to_v"
    ):
        fresh_lora(ours, ["to_q", "to_w"], 2, 2.0, torch.Generator())


def test_a_dora_without_its_magnitudes_is_damaged(ours: Transformer, tmp_path: Path) -> None:
    lora = trained(fresh(ours, dora=True))
    place = write_lora(tmp_path / "lora", ours, lora.factors, alpha=6.0, targets=TARGETS, base="small")
    file = place / "adapter_model.safetensors"
    save_file({key: each for key, each in load_file(file).items() if "magnitude" not in key}, file)
    with pytest.raises(CheckpointError, match="lacks the .* magnitudes of a DoRA"):
        read_lora(place)


def _copied(network: Any) -> Any:
    copied = type(network).from_config(network.config).eval()
    copied.load_state_dict(network.state_dict())
    return copied
