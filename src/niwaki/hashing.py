"""What things are told apart by: the bytes of a tensor or file, text without addresses."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["content", "sha256_of", "without_addresses"]


def content(tensor: Tensor) -> bytes:
    """Return the values of a tensor as bytes, whatever its layout, device or kind."""
    plain = tensor.detach()
    if plain.is_meta:
        return b"meta"
    if plain.is_quantized:
        plain = plain.dequantize()
    if plain.layout is not torch.strided:
        plain = plain.to_dense()
    plain = plain.resolve_conj().resolve_neg().cpu().contiguous().view(-1)
    return plain.view(torch.uint8).numpy().tobytes()


def sha256_of(path: Path) -> str:
    """Return the checksum of a file."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            sha.update(block)
    return sha.hexdigest()


def without_addresses(text: str) -> str:
    """Take out of the text of an object where it lies in memory, which changes with the process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)
