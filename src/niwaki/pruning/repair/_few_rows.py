"""Regressions over many more features than rows, in as many coordinates as there are rows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from niwaki.processes import agreed, decided, gathered
from niwaki.pruning.repair._readings import Reading, Rows
from niwaki.pruning.repair._rows import matrix_of

__all__ = ["Turned", "turned"]

_FEWER = 4  # features for each row, from which on it is worth the while


@dataclass(frozen=True)
class Turned:
    """Rows in coordinates of the space that they span.

    A fit that is pulled toward the weights there are changes them in that space alone, so that
    nothing is lost, and a Gram matrix is only as large as there are rows. That of the 25,088
    features that the first linear layer of VGG-16 reads would take 5 GB.

    Parameters
    ----------
    rows : list of Rows
        In these coordinates.
    basis : Tensor
        Of the space, orthonormal and in double precision; shape (groups, features, coordinates).
    """

    rows: list[Rows]
    basis: Tensor

    @property
    def share(self) -> float:
        """How many coordinates there are for each feature."""
        return self.basis.shape[2] / self.basis.shape[1]

    def weights(self, matrix: Tensor) -> Tensor:
        """Turn weights; shape (groups, outputs, features)."""
        return matrix.double() @ self.basis

    def back(self, weights: Tensor, start: Tensor) -> Tensor:
        """Turn fitted weights back; beside this space, they are those at the start."""
        basis = self.basis.to(weights)
        return start.to(weights) + (weights - start.to(weights) @ basis) @ basis.transpose(1, 2)


def turned(reading: Reading, images: int) -> Turned | None:
    """Turn what a layer reads, where that is worth the while; None elsewhere.

    Parameters
    ----------
    reading : Reading
        Of the layer; of several processes, each has its own blocks.
    images : int
        Of all processes.
    """
    features = matrix_of(reading.layer).shape[2]
    if images * reading.places.each * _FEWER > features:
        return None
    with agreed():
        rows = list(reading)
        own = [one.inputs.transpose(1, 2).double().cpu() for one in rows]
    spanning = [part for parts in gathered(own) for part in parts]
    # The same in all processes, also where rounding decides on a sign.
    basis = decided(lambda: torch.linalg.qr(torch.cat(spanning, 2)).Q)
    basis = basis.to(reading.inputs[0].device)
    return Turned([replace(one, inputs=one.inputs.double() @ basis) for one in rows], basis)
