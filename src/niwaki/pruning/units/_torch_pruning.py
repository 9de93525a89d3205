"""What torch-pruning's own pruners have to be told of our layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch_pruning as tp
from torch import nn

from niwaki.models.zoo import ShortcutA
from niwaki.pruning.units._cut import cut_shortcut

__all__ = ["CUSTOMIZED_PRUNERS"]


class _ShortcutAPruner(tp.BasePruningFunc):  # type: ignore[misc]
    """Removes input and output channels of an option A shortcut independently."""

    def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        assert isinstance(layer, ShortcutA)
        cut_shortcut(layer, _kept(len(layer.source), idxs), None)
        return layer

    def prune_in_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        assert isinstance(layer, ShortcutA)
        cut_shortcut(layer, None, _kept(layer.in_channels, idxs))
        return layer

    def get_out_channels(self, layer: nn.Module) -> int:
        assert isinstance(layer, ShortcutA)
        return len(layer.source)

    def get_in_channels(self, layer: nn.Module) -> int:
        assert isinstance(layer, ShortcutA)
        return layer.in_channels


def _kept(width: int, gone: Sequence[int]) -> torch.Tensor:
    keep = torch.ones(width, dtype=torch.bool)
    keep[list(gone)] = False
    return keep


#: What torch-pruning has to be told of our own layers: its pruners' `customized_pruners`.
CUSTOMIZED_PRUNERS = {ShortcutA: _ShortcutAPruner()}
