"""Muon against torch's own, which computes in bfloat16, and against the singular value decomposition."""

import pytest
import torch
from torch import nn

from lineardit.training.muon import Muon, orthogonalised


@pytest.mark.parametrize("shape", [(3, 40, 24), (2, 24, 40), (1, 32, 32)])
def test_singular_vectors_stay_and_values_come_near_one(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(shape, generator=generator)
    found = orthogonalised(matrices)
    assert found.shape == matrices.shape and found.dtype == matrices.dtype
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    inner = left.mT @ found @ right.mT
    values = inner.diagonal(dim1=1, dim2=2)
    assert values.min() > 0.6 and values.max() < 1.25
    assert (inner - torch.diag_embed(values)).abs().max() < 0.02  # no singular vector has turned


def test_steps_follow_torch_s_muon() -> None:
    generator = torch.Generator().manual_seed(1)
    shapes = [(24, 40), (24, 40), (40, 24), (32, 32)]
    starts = [torch.randn(shape, generator=generator) for shape in shapes]
    ours, theirs = ([nn.Parameter(start.clone()) for start in starts] for _ in range(2))
    mine = Muon(ours, 0.1, weight_decay=0.5)
    other = torch.optim.Muon(theirs, lr=0.1, weight_decay=0.5, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        for one, two in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            two.grad = one.grad.clone()
        mine.step()
        other.step()
    for one, two, start in zip(ours, theirs, starts, strict=True):
        apart = (one - two).norm() / (two - start).norm()
        assert apart < 0.02  # bfloat16's share


def test_a_matrix_without_a_gradient_stays() -> None:
    still, moved = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3, 3))
    muon = Muon([still, moved], 0.1, weight_decay=0.5)
    moved.grad = torch.eye(3)
    muon.step()
    assert torch.equal(still, torch.ones(3, 3)) and not torch.equal(moved, torch.ones(3, 3))
    assert list(muon.state) == [moved]
