"""What the tests of the kernels share."""

from collections.abc import Iterator

import pytest

from lineardit.kernels import native


@pytest.fixture(params=["native", "torch"])
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both paths, one after the other."""
    if request.param == "native" and native.compiler() is None:
        pytest.skip("there is no C++ compiler here")
    with native.using(request.param):
        yield request.param
