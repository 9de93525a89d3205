"""How many operations the index saves, counted without running it."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, fx, nn

from niwaki.car._folding import fold_norms
from niwaki.car._groups import copy_of, judged
from niwaki.car._splice import Splice
from niwaki.models._network import Network

__all__ = ["operations_behind"]


def operations_behind(model: nn.Module, inputs: Tensor) -> dict[str, tuple[int, int]]:
    """Count the multiply-accumulates that follow a unit, for one image.

    The next layer's change is counted as one channel's work, as it is computed by linearity.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode, of operations that can be listed; not changed.
    inputs : Tensor
        Batch of shape (N, ...).

    Returns
    -------
    dict of str to tuple of int
        For each layer (coupled layers under the name of the first): its number of units, and the
        multiply-accumulates of one pair of a unit and an image.
    """
    own = copy_of(model)
    example = torch.cat([inputs[:1]] * 2)
    network = Network(own, example, fold_norms)
    found = {}
    for group in judged(own, example).removable(own):
        splice = Splice(network, group)
        macs = sum(
            _macs(network, node, len(splice.channels(node, 0)) if node in splice.linear else None)
            for node in splice.steps
        )
        found[group.root] = len(group), macs
    return found


def _macs(network: Network, node: fx.Node, channels: int | None) -> int:
    """Count a layer's operations, with all of its input channels or a few."""
    module = network.module(node)
    if not isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
        return 0
    weight = module.weight
    each = weight[0].numel() if channels is None else channels * weight[0, 0].numel()
    return prod(network.shapes[node]) * each
