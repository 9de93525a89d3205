"""What makes least squares over the weights of several layers quick to solve."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from niwaki.pruning.repair._rows import Linear, matrix_of, weight_of

__all__ = ["OFFSET", "WEIGHT", "Kronecker", "Theta"]

#: By layer, its weight and what its outputs are raised by.
Theta: TypeAlias = dict[str, Tensor]
WEIGHT, OFFSET = ".weight", ".offset"

_SMALLEST = 1e-6  # share of the largest diagonal entry that is added to all
_TRIES = 6


@dataclass(frozen=True)
class Kronecker:
    """An inverse of the Gram matrix of all weights, roughly: one layer at a time.

    What a weight does to the window's outputs is what it reads, times how much the output that it
    belongs to counts there. A layer's part of the Gram matrix is therefore nearly the Kronecker
    product of the Gram matrix of what the layer reads and a number for each output. As the
    preconditioner of conjugate gradients it changes how soon these arrive, and not where
    (Martens and Grosse 2015, "Optimizing neural networks with Kronecker-factored approximate
    curvature").

    Parameters
    ----------
    layers : mapping of str to nn.Module
        By name.
    roots : mapping of str to Tensor
        Cholesky factor of the Gram matrix of what a layer reads, and of ones where its outputs can
        be raised; shape (groups, features, features).
    counts : mapping of str to Tensor
        How much each output counts; shape (groups, outputs, 1).
    """

    layers: Mapping[str, Linear]
    roots: Mapping[str, Tensor]
    counts: Mapping[str, Tensor]

    @classmethod
    def of(
        cls,
        layers: Mapping[str, Linear],
        grams: Mapping[str, Tensor],
        diagonals: Mapping[str, Tensor],
        pulls: Mapping[str, float],
    ) -> Kronecker:
        """Take it apart.

        Parameters
        ----------
        layers : mapping of str to nn.Module
            By name.
        grams : mapping of str to Tensor
            Mean Gram matrix of what a layer reads, and of ones, which come last.
        diagonals : mapping of str to Tensor
            The diagonal of the Gram matrix of all weights, summed over what an output reads; shape
            (groups, outputs).
        pulls : mapping of str to float
            What is added to that diagonal.
        """
        roots, counts = {}, {}
        for name, gram in grams.items():
            read = gram.diagonal(dim1=1, dim2=2)[:, :-1].sum(1, keepdim=True)
            count = diagonals[name] / read.clamp(min=torch.finfo(read.dtype).tiny)
            count = count.clamp(min=max(_SMALLEST * float(count.max()), 1e-300))
            added = gram.new_full(gram.shape[-1:], pulls[name + WEIGHT] / float(count.mean()))
            added[-1] = 0.0  # offsets are not pulled
            added += _SMALLEST * float(gram.diagonal(dim1=1, dim2=2).max())
            roots[name] = _root(gram, added)
            counts[name] = count[..., None]
        return cls(layers, roots, counts)

    def __call__(self, slope: Theta) -> Theta:
        """Divide a slope by the Gram matrix, roughly."""
        found = {}
        for name, root in self.roots.items():
            layer, offset = self.layers[name], slope.get(name + OFFSET)
            rows = matrix_of(layer, slope[name + WEIGHT])
            ones = rows.new_zeros(*rows.shape[:2], 1)
            if offset is not None:
                ones = offset.reshape(ones.shape)
            rows = torch.cat([rows, ones], 2) / self.counts[name]
            rows = torch.cholesky_solve(rows.transpose(1, 2), root).transpose(1, 2)
            found[name + WEIGHT] = weight_of(layer, rows[..., :-1])
            if offset is not None:
                found[name + OFFSET] = rows[..., -1].reshape(offset.shape)
        return found


def _root(gram: Tensor, added: Tensor) -> Tensor:
    """Return the Cholesky factor with as much more on the diagonal as rounding asks for."""
    for _ in range(_TRIES):
        root: Tensor
        root, failed = torch.linalg.cholesky_ex(gram + added.diag())
        if not bool(failed.any()):
            return root
        added = added + 10 * added.max()
    # The diagonal alone is steps that need no matrix to be inverted.
    return gram.diagonal(dim1=1, dim2=2).abs().add(added).sqrt().diag_embed()
