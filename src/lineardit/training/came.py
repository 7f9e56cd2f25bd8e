"""CAME: second moments kept as a row and a column per matrix, and steps weighed by confidence in them."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

TINY_SQUARE = 1e-30
"""Added to squared gradients (epsilon 1 of the paper)."""
TINY_DISTANCE = 1e-16
"""Added to squared distances of a step from its mean (epsilon 2)."""
IN_HAND = 2
"""Matrices of the size of a weight that its update takes at once."""
LARGEST_STEP = 1.0
"""Root mean square over which a step is scaled down (d of the paper)."""


class CAME(Optimizer):
    """Confidence-guided adaptive memory-efficient optimisation (arXiv:2307.02047, algorithm 2).

    For a matrix g of gradients, with the shares b1, b2, b3 of the past in running means:

        r <- mean over columns of (g^2 + eps1), c <- the same over rows, both running with b2
        u  = g / sqrt(r c / mean(r)), divided by max(1, rms(u) / d)
        m <- u, running with b1
        R <- mean over columns of ((u - m)^2 + eps2), C <- the same over rows, both running with b3
        w  = w - lr m / sqrt(R C / mean(R))

    Kernels of convolutions are matrices with a row per output channel. What has one row or one axis keeps a
    whole second moment and no confidence, as in the authors' code. Weight decay is decoupled: lr x decay.
    Rows may be spread over processes, as FSDP has them: means over rows are then taken over all of them.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None, "CAME takes no closure"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        gradient = parameter.grad
        assert gradient is not None
        first, second, third = group["betas"]
        state, rows = self.state[parameter], _Rows(parameter)
        if not state:
            state["mean"] = torch.zeros_like(parameter)
            if rows.factored:
                for name in ("square", "distance"):
                    state[f"{name}_row"], state[f"{name}_column"] = rows.zeros()
            else:
                state["square"] = torch.zeros_like(parameter)
        weight, mean, g = _local(parameter), _local(state["mean"]), _local(gradient)
        squares = g.square().add_(TINY_SQUARE)
        if rows.factored:
            root = rows.root(state, "square", squares, second)
        else:
            root = _local(state["square"]).lerp_(squares, 1 - second).sqrt()
        step = torch.div(g, root, out=root)
        step /= (rows.mean(torch.square(step, out=squares)).sqrt() / LARGEST_STEP).clamp_min(1)
        mean.lerp_(step, 1 - first)
        if rows.factored:
            distance = torch.sub(step, mean, out=squares).square_().add_(TINY_DISTANCE)
            del root, step
            root = rows.root(state, "distance", distance, third)
            step = torch.div(mean, root, out=root)
        else:
            step = mean
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.sub_(step, alpha=group["lr"])


class _Rows:
    """A parameter seen as a matrix, of which this process may hold some rows only."""

    def __init__(self, parameter: Tensor) -> None:
        self.whole = parameter.shape
        self.columns = parameter.numel() // max(1, len(parameter)) if parameter.ndim else 1
        self.factored = parameter.ndim > 1 and min(len(parameter), self.columns) > 1
        self._like = parameter

    def zeros(self) -> tuple[Tensor, Tensor]:
        """Means over columns (one per row, spread as the rows are) and over rows (one per column, whole)."""
        own = _local(self._like)
        row = own.new_zeros(len(own), 1)
        if isinstance(self._like, DTensor):
            shape = torch.Size((self.whole[0], 1))
            mesh, placements = self._like.device_mesh, self._like.placements
            row = DTensor.from_local(row, mesh, placements, run_check=False, shape=shape, stride=(1, 1))
        return row, own.new_zeros(1, self.columns)

    def root(self, state: dict[str, Tensor], name: str, squares: Tensor, beta: float) -> Tensor:
        """sqrt(r c / mean(r)) in the shape of `squares`, after r and c moved towards their means."""
        matrix = squares.reshape(len(squares), -1) if squares.numel() else squares.reshape(0, self.columns)
        row, column = _local(state[f"{name}_row"]), state[f"{name}_column"]
        row.lerp_(matrix.mean(1, keepdim=True), 1 - beta)
        column.lerp_(self._over_rows(matrix), 1 - beta)
        return ((row / self._over_rows(row)).sqrt() * column.sqrt()).reshape(squares.shape)

    def mean(self, own: Tensor) -> Tensor:
        """Of all numbers, those of the other processes included."""
        return self._summed(own.sum()) / max(1, self.whole.numel())

    def _over_rows(self, matrix: Tensor) -> Tensor:
        return self._summed(matrix.sum(0, keepdim=True)) / self.whole[0]

    def _summed(self, own: Tensor) -> Tensor:
        if isinstance(self._like, DTensor):
            mesh = self._like.device_mesh
            dist.all_reduce(own, group=mesh.get_group(mesh.ndim - 1))
        return own


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
