"""What optimizers remember, as named tensors and JSON, and back."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer


def moments(optimizers: Sequence[Optimizer]) -> dict[str, Tensor]:
    """Every tensor that optimizers keep, named `optimizer.parameter.name`, as in `0.12.exp_avg`."""
    return {
        f"{number}.{index}.{name}": value
        for number, optimizer in enumerate(optimizers)
        for index, slot in optimizer.state_dict()["state"].items()
        for name, value in slot.items()
        if isinstance(value, Tensor)
    }


def groups(optimizers: Sequence[Optimizer]) -> list[Any]:
    """Everything else: the options of each optimizer's groups of parameters."""
    return [optimizer.state_dict()["param_groups"] for optimizer in optimizers]


def restore(optimizers: Sequence[Optimizer], tensors: Mapping[str, Tensor], options: Sequence[Any]) -> None:
    """Give optimizers what `moments` and `groups` took from them.

    Raises: LookupError or ValueError where it is of other optimizers.
    """
    slots: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
    for key, value in tensors.items():
        number, index, name = key.split(".", 2)
        slots[int(number)].setdefault(int(index), {})[name] = value
    for optimizer, slot, each in zip(optimizers, slots, options, strict=True):
        optimizer.load_state_dict({"state": slot, "param_groups": each})
