"""What Pillow leaves aside in a PNG: its checksums, and the depth of its transparent colour."""

from __future__ import annotations

from struct import unpack
from typing import Any, BinaryIO
from zlib import crc32

__all__ = ["bits_of_png", "clear_at_depth"]

_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT")


def bits_of_png(file: BinaryIO) -> int:
    """Return the bits of a sample, and compare the checksums of all that the pixels are made of.

    Raises
    ------
    ValueError
        If the file is damaged, which the decoder would pass over: what follows would be black.
    """
    file.seek(8)
    bits = 8
    while len(head := file.read(8)) == 8:
        size, kind = unpack(">I4s", head)
        if kind not in _PIXELS:
            file.seek(size + 4, 1)
            continue
        content, told = file.read(size), file.read(4)
        if told != crc32(content, crc32(kind)).to_bytes(4, "big"):
            raise ValueError(f"it is damaged in {kind.decode()} (a checksum is wrong)")
        if kind == b"IHDR":
            bits = content[8]
    return bits


def clear_at_depth(clear: Any, bits: int, mode: str) -> Any:
    """Return the transparent colour or grey level of a PNG at the depth that Pillow decodes to."""
    if mode == "L" and isinstance(clear, int) and bits < 8:
        return clear * 255 // (2**bits - 1)
    if mode == "RGB" and isinstance(clear, tuple) and bits == 16:
        return tuple(level >> 8 for level in clear)
    return clear
