"""How much memory may be used."""

from __future__ import annotations

import re

__all__ = ["parse_bytes"]

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def parse_bytes(size: int | str) -> int:
    """Read a number of bytes such as 2_000_000, "500MB" or "2GB" (powers of 1024).

    Raises
    ------
    ValueError
        For anything else.
    """
    if isinstance(size, int):
        found = size
    else:
        match = re.fullmatch(r"\s*([0-9.]+)\s*([KMGT]?)i?B?\s*", size, re.IGNORECASE)
        try:
            found = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
        except ValueError:
            found = 0
    if found <= 0:
        raise ValueError(
            f"max_memory = {size!r}: give a number of bytes, or such as '500MB', '2GB'"
        )
    return found
