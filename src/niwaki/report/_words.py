"""Sentences that several sections need."""

from __future__ import annotations

from math import sqrt

__all__ = ["margin"]


def margin(share: float, count: int) -> str:
    """Say how far a measured accuracy may be from that on all such images (95 %, Wilson)."""
    z = 1.96
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (
        f"The accuracy was measured on {count:,} images: on all images of this kind it may lie "
        f"anywhere between {middle - half:.1%} and {middle + half:.1%} (95 % interval)."
    )
