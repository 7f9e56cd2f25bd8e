"""Which layer made the first number that is not finite."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lineardit.errors import NotFiniteError
from lineardit.nn.offload import loaded


@contextmanager
def finite_outputs(model: nn.Module, name: str = "") -> Iterator[None]:
    """Inside, the first module (in order of execution) whose output is not finite raises NotFiniteError.

    `name` is what comes before the names of the model's modules.
    """

    def check(place: str) -> Callable[[nn.Module, tuple[object, ...], object], None]:
        def hook(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
            if isinstance(output, Tensor) and not torch.isfinite(output).all():
                layer = f"layer {place or 'model'} ({type(module).__name__})"
                raise NotFiniteError(f"{layer} gave NaN or infinity; {_came(inputs)}.")

        return hook

    handles = [
        module.register_forward_hook(check(".".join(filter(None, (name, place)))))
        for place, module in model.named_modules()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_parameters(model: nn.Module, name: str = "") -> None:
    """Raises NotFiniteError naming the first parameter that holds NaN or infinity."""
    with loaded(model):
        for place, parameter in model.named_parameters(name, recurse=False):
            # The extremes need no memory of their own.
            if parameter.numel() and not torch.stack(parameter.detach().aminmax()).isfinite().all():
                raise NotFiniteError(f"parameter {place} holds NaN or infinity.")
        for place, part in model.named_children():
            check_parameters(part, f"{name}.{place}" if name else place)


def _came(inputs: tuple[object, ...]) -> str:
    numbers = [x for x in inputs if isinstance(x, Tensor) and x.is_floating_point() and x.numel()]
    if any(not torch.isfinite(x).all() for x in numbers):
        return "its input was already not finite"
    if not numbers:
        return "it had no input"
    largest = max(x.abs().max().item() for x in numbers)
    return f"its input was finite, at most {largest:.3g}"
