"""Amounts of memory as people write them."""

import re

from lineardit.errors import InputError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


def bytes_of(text: str) -> int:
    """`2GB`, `1.5 GiB` or `800M` as bytes.

    Raises:
        InputError: it is not a positive amount.
    """
    found = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*([KMG]I?|)B?", text.strip().upper())
    count = int(float(found[1]) * _UNITS[found[2]]) if found else 0
    if count <= 0:
        raise InputError(f"memory={text!r} is no amount of memory. Use 2GB, 1.5GiB or 800MB.")
    return count
