"""A ControlNet adds what diffusers' adds, and a new one adds nothing."""

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from lineardit.config.models import TransformerConfig
from lineardit.config.presets import differing
from lineardit.errors import CheckpointError, ConfigError
from lineardit.interop.assembly import assemble_controlnet
from lineardit.interop.diffusers import from_diffusers_transformer
from lineardit.interop.diffusers_config import (
    controlnet_config_from_diffusers,
    controlnet_config_to_diffusers,
    transformer_config_to_diffusers,
)
from lineardit.interop.export import export
from lineardit.interop.places import open_place
from lineardit.transformer.controlnet import ControlNet
from lineardit.transformer.model import Transformer

BASE = TransformerConfig(latent_channels=3, depth=4, width=40, head_dim=4, cross_head_dim=20, text_width=11)
SMALL = differing(BASE, depth=2)
TIMES = torch.tensor([0.25, 0.75])
EQUAL = {"rtol": 1e-5, "atol": 1e-5}


def filled(network: Any) -> Any:
    torch.manual_seed(0)
    for tensor in network.state_dict().values():
        tensor.normal_(std=1 / tensor[0].numel() ** 0.5 if tensor.dim() > 1 else 0.3)
    return network.eval()


def built(kind: Any, options: dict[str, Any]) -> Any:
    return filled(kind(**{key: value for key, value in options.items() if key != "_class_name"}))


@pytest.fixture(scope="module")
def theirs() -> Any:
    return built(diffusers.SanaControlNetModel, controlnet_config_to_diffusers(SMALL))


@pytest.fixture(scope="module")
def folder(theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("controlnet")
    theirs.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "latents": torch.randn(2, 3, 4, 6, generator=generator),
        "control": torch.randn(2, 3, 4, 6, generator=generator),
        "text": torch.randn(2, 5, 11, generator=generator),
        "mask": torch.tensor([[True] * 5, [True, True, False, False, False]]),
    }


@torch.no_grad()
def test_a_controlnet_adds_what_diffusers_adds(theirs: Any, folder: Path, inputs: dict[str, Tensor]) -> None:
    wanted = theirs(
        inputs["latents"],
        inputs["text"],
        1000 * TIMES,
        inputs["control"],
        conditioning_scale=0.7,
        encoder_attention_mask=inputs["mask"].long(),
        return_dict=False,
    )[0]
    ours = assemble_controlnet(open_place(folder), "fp32")
    found = ours(inputs["latents"], TIMES, inputs["text"], inputs["control"], inputs["mask"], 0.7)
    assert len(found) == 2 and found[1].std() > 0.1
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, **EQUAL)
    base = built(diffusers.SanaTransformer2DModel, transformer_config_to_diffusers(BASE))
    network = Transformer(BASE).eval()
    network.load_state_dict(from_diffusers_transformer(BASE, base.state_dict()))
    expected = base(
        inputs["latents"],
        inputs["text"],
        timestep=1000 * TIMES,
        encoder_attention_mask=inputs["mask"].long(),
        controlnet_block_samples=wanted,
        return_dict=False,
    )[0]
    plain = network(inputs["latents"], TIMES, inputs["text"], inputs["mask"])
    steered = network(inputs["latents"], TIMES, inputs["text"], inputs["mask"], residuals=found)
    assert (plain - expected).abs().max() > 0.1
    torch.testing.assert_close(steered, expected, **EQUAL)


@torch.no_grad()
def test_in_bfloat16_it_stays_as_near_as_that_of_diffusers(folder: Path, inputs: dict[str, Tensor]) -> None:
    given = [inputs["latents"], TIMES, inputs["text"], inputs["control"], inputs["mask"]]
    exact = assemble_controlnet(open_place(folder), "fp32")(*given)[-1]
    near = assemble_controlnet(open_place(folder), "bf16")(*given)[-1]
    other = diffusers.SanaControlNetModel.from_pretrained(folder, torch_dtype=torch.bfloat16).eval()(
        *(inputs[name].bfloat16() for name in ("latents", "text")),
        1000 * TIMES,
        inputs["control"].bfloat16(),
        encoder_attention_mask=inputs["mask"].long(),
        return_dict=False,
    )[0][-1]

    def off(found: Tensor) -> float:
        return float((found.float() - exact).square().mean().sqrt() / exact.std())

    assert near.dtype == torch.bfloat16 and 0 < off(near) < 0.03 and off(near) < 1.5 * off(other)


@torch.no_grad()
def test_a_new_one_starts_as_a_copy_and_adds_nothing(inputs: dict[str, Tensor]) -> None:
    network = filled(Transformer(BASE))
    beside = ControlNet.beside(network, depth=2)
    found = beside(inputs["latents"], TIMES, inputs["text"], inputs["control"])
    assert not any(each.any() for each in found)
    state = network.state_dict()
    for name, tensor in beside.state_dict().items():
        if not name.startswith(("control_in.", "outs.")):
            assert torch.equal(tensor, state[name]), name
    with pytest.raises(ConfigError, match="depth=4 is not less than the transformer's 4 blocks"):
        ControlNet.beside(network, depth=4)
    with pytest.raises(ConfigError, match="a ControlNet has no qk_norm"):
        ControlNet(differing(SMALL, qk_norm=True))


def test_its_folder_goes_to_our_format_and_back(theirs: Any, folder: Path, tmp_path: Path) -> None:
    export(open_place(folder), tmp_path / "native", "native")
    export(open_place(tmp_path / "native"), tmp_path / "back", "diffusers")
    found = diffusers.SanaControlNetModel.from_pretrained(tmp_path / "back").state_dict()
    wanted = theirs.state_dict()
    assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_the_published_shape_is_seven_blocks_and_comes_back() -> None:
    published = controlnet_config_from_diffusers({"num_layers": 7, "_class_name": "SanaControlNetModel"})
    assert (published.depth, published.width) == (7, 2240)
    with torch.device("meta"):
        ours = ControlNet(published)
        other = diffusers.SanaControlNetModel()
    count = sum(each.numel() for each in ours.parameters())
    assert count == sum(each.numel() for each in other.parameters())
    assert controlnet_config_from_diffusers(controlnet_config_to_diffusers(published)) == published
    with pytest.raises(CheckpointError, match="options that are not known here: qk_norm"):
        controlnet_config_from_diffusers({"qk_norm": None})
