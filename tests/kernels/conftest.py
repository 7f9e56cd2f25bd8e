"""What the tests of the kernels share."""

import os
from collections.abc import Iterator

import numpy
import pytest
import torch

from lineardit.kernels import native, operators, pass_operators


@pytest.fixture(params=["native", "torch"])
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both paths, one after the other."""
    if request.param == "native" and native.compiler() is None:
        pytest.skip("there is no C++ compiler here")
    with native.using(request.param):
        yield request.param


@pytest.fixture
def device() -> torch.device:
    """Where Triton's kernels run: on a GPU, or in the interpreter."""
    triton = pytest.importorskip("triton", reason="triton is not installed")
    if torch.cuda.is_available():
        return torch.device("cuda")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("needs a GPU, or TRITON_INTERPRET=1 before triton is imported")
    old, new = (tuple(map(int, each.__version__.split(".")[:2])) for each in (triton, numpy))
    if old < (3, 7) and new >= (2, 4):
        pytest.skip("Triton's interpreter before 3.7 cannot count with NumPy 2.4: pip install 'numpy<2.4'")
    return torch.device("cpu")


@pytest.fixture
def unchecked() -> Iterator[None]:
    """No kernel of Triton's has been checked yet, and what comes of it is forgotten."""

    def forget() -> None:
        for family in (operators, pass_operators):
            family.refusal.cache_clear()
        operators.REFUSALS.clear()

    forget()
    yield
    forget()
