"""Renaming is exact in both directions, and what does not fit is listed whole."""

import pytest
import torch
from torch import Tensor

from lineardit.errors import CheckpointError
from lineardit.interop.rename import Renaming, joined, nested, pointwise, same

RULES = [
    *nested(
        "blocks.{n}",
        "layers.{n}.self",
        [joined("qkv.{part}", "q.{part}", "k.{part}", "v.{part}"), same("norm", "norm.gain")],
    ),
    pointwise("mix", "conv"),
]
SHAPES = {
    "blocks.0.qkv.weight": torch.Size((15, 7)),
    "blocks.0.qkv.bias": torch.Size((15,)),
    "blocks.0.norm": torch.Size(()),
    "mix": torch.Size((3, 2)),
}
FOREIGN = {
    "layers.0.self.q.weight": (5, 7),
    "layers.0.self.k.weight": (5, 7),
    "layers.0.self.v.weight": (5, 7),
    "layers.0.self.q.bias": (5,),
    "layers.0.self.k.bias": (5,),
    "layers.0.self.v.bias": (5,),
    "layers.0.self.norm.gain": (),
    "conv": (3, 2, 1, 1),
}


@pytest.fixture
def renaming() -> Renaming:
    return Renaming("Network", SHAPES, RULES)


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    return {name: torch.randn(shape) for name, shape in FOREIGN.items()}


def test_names_shapes_and_every_number_come_back(renaming: Renaming, tensors: dict[str, Tensor]) -> None:
    own = renaming.to_own(tensors, "a file")
    assert {name: tensor.shape for name, tensor in own.items()} == SHAPES
    back = renaming.to_foreign(own, "the state")
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())


def test_joined_tensors_follow_each_other_in_the_order_of_the_rule(
    renaming: Renaming, tensors: dict[str, Tensor]
) -> None:
    own = renaming.to_own(tensors, "a file")
    assert torch.equal(own["blocks.0.qkv.weight"][5:10], tensors["layers.0.self.k.weight"])
    assert torch.equal(own["mix"], tensors["conv"][:, :, 0, 0])


def test_everything_that_does_not_fit_is_in_one_error(renaming: Renaming, tensors: dict[str, Tensor]) -> None:
    del tensors["layers.0.self.k.weight"], tensors["conv"]
    tensors["head.bias"] = torch.zeros(1)
    tensors["layers.0.self.v.bias"] = torch.zeros(6)
    with pytest.raises(CheckpointError) as caught:
        renaming.to_own(tensors, "sana.safetensors")
    assert str(caught.value).splitlines() == [
        "sana.safetensors does not fit Network:",
        "  missing (2): layers.0.self.k.weight (here blocks.0.qkv.weight), conv (here mix)",
        "  unknown (1): head.bias",
        "  other shape (1): layers.0.self.v.bias is (6,), the model has (5,)",
    ]


def test_our_own_tensors_are_held_to_the_same(renaming: Renaming) -> None:
    own = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    del own["mix"]
    own["blocks.1.norm"] = torch.zeros(())
    with pytest.raises(CheckpointError) as caught:
        renaming.to_foreign(own, "the state")
    assert str(caught.value).splitlines() == [
        "the state does not fit Network:",
        "  missing (1): mix",
        "  unknown (1): blocks.1.norm",
    ]


def test_a_table_that_forgets_or_repeats_a_tensor_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="tail follows 0 rules"):
        Renaming("Network", SHAPES | {"tail": torch.Size(())}, RULES)
    with pytest.raises(AssertionError, match="mix follows 2 rules"):
        Renaming("Network", SHAPES, [*RULES, same("mix", "other")])
    with pytest.raises(AssertionError, match="both come from conv"):
        Renaming("Network", SHAPES | {"tail": torch.Size(())}, [*RULES, same("tail", "conv")])
