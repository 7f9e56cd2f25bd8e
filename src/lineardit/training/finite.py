"""Which layer made the first number that is not finite."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lineardit.errors import NotFiniteError


@contextmanager
def finite_outputs(model: nn.Module) -> Iterator[None]:
    """Inside, the first module (in order of execution) whose output is not finite raises NotFiniteError."""

    def check(name: str) -> Callable[[nn.Module, tuple[object, ...], object], None]:
        def hook(_: nn.Module, inputs: tuple[object, ...], output: object) -> None:
            if isinstance(output, Tensor) and not torch.isfinite(output).all():
                came = "its input was already not finite" if _any_bad(inputs) else "its input was finite"
                raise NotFiniteError(
                    f"layer {name or 'model'} ({type(_).__name__}) gave NaN or infinity; {came}."
                )

        return hook

    handles = [module.register_forward_hook(check(name)) for name, module in model.named_modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_parameters(model: nn.Module) -> None:
    """Raises NotFiniteError naming the first parameter that holds NaN or infinity."""
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise NotFiniteError(f"parameter {name} holds NaN or infinity.")


def _any_bad(inputs: tuple[object, ...]) -> bool:
    return any(
        isinstance(x, Tensor) and x.is_floating_point() and not torch.isfinite(x).all() for x in inputs
    )
