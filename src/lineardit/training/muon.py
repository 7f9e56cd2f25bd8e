"""Muon: momentum whose singular values are all made one, for the matrices inside a network."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lineardit.kernels.select import fast_dtype

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of an odd polynomial, applied again and again: steep at zero, near one from 0.7 to 1.2 (Jordan, 2024)."""
ITERATIONS = 5
TINY = 1e-7


def orthogonalised(matrices: Float[Tensor, "k m n"]) -> Float[Tensor, "k m n"]:
    """Each matrix with its singular vectors kept and its singular values brought near one.

    After five Newton-Schulz iterations they lie between about 0.7 and 1.2, except for values that were very
    small. Computed in bfloat16 where that is fast, else in float32.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).to(fast_dtype(matrices.device))
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(TINY)
    linear, cubic, quintic = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic), x, beta=linear)
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(Optimizer):
    """Nesterov momentum, orthogonalised, with steps as large as AdamW's (arXiv:2502.16982).

    torch.optim.Muon does the same always in bfloat16, which takes seconds per step on a CPU without it;
    here matrices of one shape are also orthogonalised together. Where processes share the rows of a matrix,
    as under FSDP, each gathers it whole and takes its rows of the result.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        *,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        assert closure is None, "Muon takes no closure"
        for group in self.param_groups:
            alike: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.shape].append(parameter)
            for parameters in alike.values():
                self._update(parameters, group)

    def _update(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        blends = []
        for parameter in parameters:
            assert parameter.grad is not None
            state = self.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            average = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
            blends.append(_whole(parameter.grad.lerp(average, group["momentum"])))
        # Entries of an orthogonal matrix have a mean square of 1 / max(m, n), those of AdamW's steps 0.2^2.
        size = 0.2 * max(parameters[0].shape) ** 0.5
        for parameter, direction in zip(parameters, orthogonalised(torch.stack(blends)), strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            _own(parameter).sub_(_rows(direction, parameter), alpha=group["lr"] * size)


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _own(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _rows(whole: Tensor, like: Tensor) -> Tensor:
    """Of a matrix, the rows that this process holds of `like`."""
    if not isinstance(like, DTensor):
        return whole
    mesh = like.device_mesh
    each = -(-len(whole) // mesh.size(mesh.ndim - 1))
    start = each * mesh.get_local_rank(mesh.ndim - 1)
    return whole[start : start + each]
