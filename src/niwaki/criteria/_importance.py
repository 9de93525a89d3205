"""A criterion as an importance of torch-pruning's pruners."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from niwaki.criteria._criterion import Criterion
from niwaki.criteria._score import score
from niwaki.criteria._scores import Scores

__all__ = ["Importance"]


class Importance:
    """A criterion for ``torch_pruning.pruner.BasePruner(..., importance=...)``.

    A group's importance is the sum over its members, channel by channel. Scores are computed when
    they are first asked for, and again when the network has been pruned since.

    Parameters
    ----------
    model : nn.Module
        The network that the pruner works on.
    data : DataLoader, Dataset or pair of tensors
        The reference samples with their labels.
    criterion : str or Criterion
        One of `niwaki.criteria.names`.
    **options
        See `score`.

    Examples
    --------
    >>> importance = niwaki.criteria.Importance(model, (images, labels), "lrp")
    >>> pruner = tp.pruner.BasePruner(model, images[:1], importance, pruning_ratio=0.5)
    >>> pruner.step()
    """

    def __init__(
        self, model: nn.Module, data: Any, criterion: str | Criterion = "lrp", **options: Any
    ) -> None:
        self.model = model
        self.data = data
        self.criterion = criterion
        self.options = options
        self._scores: Scores | None = None
        self._shapes: list[torch.Size] = []

    def __call__(self, group: Any) -> Tensor | None:
        """Return the importance of each channel of the group's root, or None if it has no score."""
        names = {module: name for name, module in self.model.named_modules()}
        scores = self.scores()
        total: Tensor | None = None
        for item in group:
            layer = names.get(item.dep.target.module)
            if layer is None or layer not in scores or not _prunes_outputs(item):
                continue
            if total is None:
                total = torch.zeros(len(group[0].idxs), dtype=torch.float64)
            positions = {root: k for k, root in enumerate(group[0].root_idxs)}
            where = torch.tensor([positions[root] for root in item.root_idxs])
            total.index_add_(0, where, scores[layer][torch.tensor(item.idxs)])
        return total

    def scores(self) -> Scores:
        """Return the scores of the current network."""
        shapes = [p.shape for p in self.model.parameters()]
        if self._scores is None or shapes != self._shapes:
            self._scores = score(self.model, self.data, self.criterion, **self.options)
            self._shapes = shapes
        return self._scores


def _prunes_outputs(item: Any) -> bool:
    """Whether a member of a group loses output channels (and not input channels only)."""
    handler: str = item.dep.handler.__name__
    return "out_channels" in handler
