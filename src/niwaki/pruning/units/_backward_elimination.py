"""Which units layers can do without, if the others are fitted anew: backward elimination."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["RIDGE", "Reader", "eliminate"]

#: Of the mean diagonal of a Gram matrix: what keeps its inverse within bounds.
RIDGE = 1e-2
_TINY = 1e-300


class Reader:
    """A layer that reads units, and what least squares need to know of it.

    It keeps up with what goes: weights and inverse are at any time those of the layer that has been
    fitted to the inputs that are left.

    Parameters
    ----------
    gram : Tensor
        ``X^T X`` of what it reads, in double precision; shape (groups, features, features).
    weight : Tensor
        Shape (groups, outputs, features).
    ridge : float
        See `RIDGE`.

    Notes
    -----
    With ``H = X^T X + ridge``, taking out the features u and fitting the others to what the layer
    has given raises the squared error by ``tr(W_u (H^-1)_uu^-1 W_u^T)``; the weights become
    ``W - W_u (H^-1)_uu^-1 (H^-1)_u``, and the inverse ``H^-1 - (H^-1)_u^T (H^-1)_uu^-1 (H^-1)_u``
    (Hassibi and Stork 1993, for blocks as in OSSCAR).
    """

    def __init__(self, gram: Tensor, weight: Tensor, ridge: float = RIDGE) -> None:
        size = ridge * gram.diagonal(dim1=1, dim2=2).mean(1).clamp(min=_TINY)
        unit = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        self.weight = weight.to(gram)
        self.inverse = _inverted(gram + size[:, None, None] * unit)
        self._energy = float(((self.weight @ gram) * self.weight).sum().clamp(min=_TINY))

    def harm(self, blocks: Tensor) -> Tensor:
        """Return the rise of the error with each unit, half of it, as a share of the energy.

        Parameters
        ----------
        blocks : Tensor
            The features of each unit, in every group; shape (groups, units, features each).
        """
        groups, units, each = blocks.shape
        at = blocks.flatten(1)
        weight = self.weight.gather(2, at[:, None].expand(-1, self.weight.shape[1], -1))
        weight = weight.view(groups, -1, units, each).permute(0, 2, 3, 1)
        place = torch.arange(groups, device=blocks.device)[:, None, None, None]
        inner = self.inverse[place, blocks[..., :, None], blocks[..., None, :]]
        harm = (_solved(inner, weight) * weight).sum((0, 2, 3)) / 2
        return harm / self._energy

    def remove(self, features: Tensor) -> None:
        """Fit the layer without some features; shape (groups, features)."""
        count = features.shape[1]
        rows = self.inverse.gather(1, features[:, :, None].expand(-1, -1, self.inverse.shape[2]))
        inner = rows.gather(2, features[:, None].expand(-1, count, -1))
        solved = _solved(inner, rows)
        at = features[:, None].expand(-1, self.weight.shape[1], -1)
        self.weight = self.weight - self.weight.gather(2, at) @ solved
        self.inverse = self.inverse - rows.transpose(1, 2) @ solved
        # What is gone is exactly zero from here on, and its block can still be inverted.
        for group, gone in enumerate(features):
            self.weight[group, :, gone] = 0
            self.inverse[group, gone] = 0
            self.inverse[group, :, gone] = 0
            self.inverse[group, gone, gone] = 1


def eliminate(readers: Sequence[tuple[Reader, Tensor]], count: int) -> list[int]:
    """Take out units one after another, each time the one of the least harm.

    Parameters
    ----------
    readers : sequence of pairs of Reader and Tensor
        All layers that read the units, each with the features of every unit (see `Reader.harm`).
        They are brought up to date.
    count : int
        How many units go.

    Returns
    -------
    list of int
        The units, in the order in which they go; of several of the same harm, the first.
    """
    gone: list[int] = []
    for _ in range(count):
        harm = torch.stack([reader.harm(blocks).cpu() for reader, blocks in readers]).sum(0)
        harm[gone] = float("inf")
        unit = int(harm.argmin())
        gone.append(unit)
        for reader, blocks in readers:
            reader.remove(blocks[:, unit])
    return gone


def _inverted(matrices: Tensor) -> Tensor:
    factors, failed = torch.linalg.cholesky_ex(matrices)
    if bool((failed != 0).any()):  # by rounding
        found: Tensor = torch.linalg.pinv(matrices, hermitian=True)
        return found
    return torch.cholesky_inverse(factors)


def _solved(inner: Tensor, right: Tensor) -> Tensor:
    """Solve symmetric systems; where rounding leaves none, by the pseudo-inverse."""
    found: Tensor
    found, failed = torch.linalg.solve_ex(inner, right)
    if bool((failed != 0).any()):
        found = torch.linalg.pinv(inner, hermitian=True) @ right
    return found
