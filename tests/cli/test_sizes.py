"""Amounts of memory as people write them."""

import pytest

from lineardit.cli.sizes import bytes_of
from lineardit.errors import InputError


@pytest.mark.parametrize(
    ("text", "count"),
    [("2GB", 2 * 10**9), ("1.5 GiB", 3 * 2**29), ("800m", 800 * 10**6), ("64Ki", 2**16), ("12345", 12345)],
)
def test_an_amount_is_read(text: str, count: int) -> None:
    assert bytes_of(text) == count


@pytest.mark.parametrize("text", ["", "GB", "-2GB", "0", "2 apples", "1e9"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is no amount of memory. Use 2GB"):
        bytes_of(text)
