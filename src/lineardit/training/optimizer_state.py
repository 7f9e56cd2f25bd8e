"""What optimizers remember, as named tensors and JSON, and back."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lineardit.training.pieces import like


def moments(optimizers: Sequence[Optimizer]) -> dict[str, Tensor]:
    """Everything that optimizers keep per parameter, named `optimizer.parameter.name`, as in `0.12.exp_avg`.

    Whole numbers, such as the steps that bitsandbytes counts, become tensors of int64.
    """
    return {
        f"{number}.{index}.{name}": value if isinstance(value, Tensor) else torch.tensor(value)
        for number, optimizer in enumerate(optimizers)
        for index, parameter in enumerate(_parameters(optimizer))
        for name, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor | int)
    }


def groups(optimizers: Sequence[Optimizer]) -> list[Any]:
    """Everything else: the options of each optimizer's groups of parameters."""
    return [optimizer.state_dict()["param_groups"] for optimizer in optimizers]


def restore(optimizers: Sequence[Optimizer], tensors: Mapping[str, Tensor], options: Sequence[Any]) -> None:
    """Give optimizers what `moments` and `groups` took from them, in as many processes as there are now.

    Of the options only the rate is taken over: the others are of the recipe and the device of today.

    Raises: LookupError or ValueError where it is of other optimizers.
    """
    names: list[dict[int, list[str]]] = [{} for _ in optimizers]
    for key in tensors:
        of, index, name = key.split(".", 2)
        names[int(of)].setdefault(int(index), []).append(name)
    for number, (optimizer, slots, each) in enumerate(zip(optimizers, names, options, strict=True)):
        built = [dict(group) for group in optimizer.param_groups]
        # This checks that the groups fit; what it does to state is not made for spread or 8-bit tensors.
        optimizer.load_state_dict({"state": {}, "param_groups": each})
        for group, own in zip(optimizer.param_groups, built, strict=True):
            group |= {**own, "lr": group["lr"]}
        places = [(parameter, group) for group in optimizer.param_groups for parameter in group["params"]]
        for place, slot in slots.items():
            parameter, group = places[place]
            counts_beside = bool(group.get("fused") or group.get("capturable"))
            for name in slot:
                value = like(tensors, f"{number}.{place}.{name}", parameter)
                optimizer.state[parameter][name] = _placed(value, parameter, counts_beside)


def _placed(value: Tensor, parameter: Tensor, counts_beside: bool) -> Tensor | int:
    """Moments lie where and as their parameter does, counts there or on the CPU, whole ones as plain numbers.

    Fused updates walk through parameter and moments by their places in memory, not by their indices.
    """
    if not value.ndim:
        if not value.is_floating_point():
            return int(value)
        return value.to(parameter.device) if counts_beside else value
    value = value.to(parameter.device)
    if value.shape != parameter.shape or value.stride() == parameter.stride():
        return value
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
