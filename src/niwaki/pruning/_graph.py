"""Torch-pruning's dependency graph of a network, with the layers of ours that it cannot know."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from niwaki.errors import ModelError
from niwaki.models.zoo import ShortcutA

__all__ = ["CUSTOMIZED_PRUNERS", "dependency_graph", "is_output", "prune_outputs"]


class _ShortcutAPruner(tp.BasePruningFunc):  # type: ignore[misc]
    """Removes input and output channels of an option A shortcut independently."""

    def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        assert isinstance(layer, ShortcutA)
        keep = torch.ones(len(layer.source), dtype=torch.bool)
        keep[list(idxs)] = False
        layer.source = layer.source[keep.to(layer.source.device)]
        return layer

    def prune_in_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        assert isinstance(layer, ShortcutA)
        keep = torch.ones(layer.in_channels, dtype=torch.bool)
        keep[list(idxs)] = False
        # Where each input channel is now; one that is gone leaves a channel of zeros.
        moved = torch.where(keep, keep.cumsum(0) - 1, -1).to(layer.source)
        moved = torch.cat([moved, moved.new_tensor([-1])])  # -1 stays -1
        layer.source = moved[layer.source]
        layer.in_channels -= len(idxs)
        return layer

    def get_out_channels(self, layer: nn.Module) -> int:
        assert isinstance(layer, ShortcutA)
        return len(layer.source)

    def get_in_channels(self, layer: nn.Module) -> int:
        assert isinstance(layer, ShortcutA)
        return layer.in_channels


#: What torch-pruning has to be told of our own layers: its pruners' `customized_pruners`.
CUSTOMIZED_PRUNERS = {ShortcutA: _ShortcutAPruner()}


def dependency_graph(model: nn.Module, example: Tensor) -> Any:
    """Build the dependency graph of a network that is ours to work on.

    Raises
    ------
    ModelError
        If torch-pruning cannot follow the network.
    """
    flags = [(p, p.requires_grad) for p in model.parameters()]
    try:
        for parameter, _ in flags:  # the graph is read off autograd's
            parameter.requires_grad_(True)
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return tp.DependencyGraph().build_dependency(
                model,
                example,
                customized_pruners=CUSTOMIZED_PRUNERS,
                verbose=False,
            )
    except Exception as error:
        raise ModelError(
            f"torch-pruning cannot follow {type(model).__name__}: {_reason(error)}"
        ) from error
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _reason(error: Exception) -> str:
    """Say what torch-pruning stumbled over, as far as its own error does not."""
    where = {frame.name for frame in traceback.extract_tb(error.__traceback__)}
    if "update_reshape_index_mapping" in where:
        return (
            "it views its channels as groups and moves them about, as a channel shuffle does, so "
            "that which channels belong together cannot be told"
        )
    return f"{type(error).__name__}: {error}"


def is_output(graph: Any, item: Any) -> bool:
    """Whether a member of a coupled group loses output channels."""
    return bool(graph.is_out_channel_pruning_fn(item.dep.handler))


def prune_outputs(graph: Any, module: nn.Module, channels: Sequence[int]) -> Any:
    """Return torch-pruning's group for the removal of output channels of a layer."""
    function = graph.get_pruner_of_module(module).prune_out_channels
    return graph.get_pruning_group(module, function, sorted(channels))
