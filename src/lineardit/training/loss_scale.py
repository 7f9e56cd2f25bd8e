"""The factor that keeps small gradients from vanishing in float16."""

from typing import Any

from lineardit.errors import NotFiniteError

START = 2.0**16
GROWS_AFTER = 2000
"""Updates without an overflow after which the factor doubles."""
SMALLEST = 2.0**-14


class LossScale:
    """A power of two that the loss is multiplied by and the gradients are divided by, exactly.

    It halves whenever a gradient overflows, and doubles after many updates without one
    (mixed precision training, arXiv:1710.03740, section 3.2). In other dtypes it stays 1.
    """

    def __init__(self, dtype: str) -> None:
        self.value, self.good = (START if dtype == "fp16" else 1.0), 0
        self.moves = dtype == "fp16"

    def after(self, finite: bool) -> None:
        """Note whether the gradients of a step were finite. Raises NotFiniteError when no factor helps."""
        if not self.moves:
            return
        self.good = self.good + 1 if finite else 0
        if not finite:
            self.value /= 2
            if self.value < SMALLEST:
                raise NotFiniteError(
                    "gradients overflow in float16 however small the loss is scaled. "
                    "Use train.dtype=bf16 or fp32."
                )
        elif self.good == GROWS_AFTER:
            self.value, self.good = self.value * 2, 0

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it, as JSON."""
        return {"loss_scale": [self.value, self.good]} if self.moves else {}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        if self.moves and "loss_scale" in state:
            self.value, self.good = state["loss_scale"]
