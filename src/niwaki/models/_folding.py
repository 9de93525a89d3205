"""Batch norms folded into the layers before them, so that fewer operations have to be run."""

from __future__ import annotations

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fold_norms(graph: fx.Graph, modules: dict[str, nn.Module]) -> None:
    """Fold each batch norm into the layer before it, where that is read by nothing else."""
    calls: dict[str, int] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls[str(node.target)] = calls.get(str(node.target), 0) + 1
    for node in list(graph.nodes):
        if node.op != "call_module" or type(modules[str(node.target)]) not in _NORMS:
            continue
        before, norm = node.args[0], modules[str(node.target)]
        if not isinstance(before, fx.Node) or before.op != "call_module":
            continue
        layer, name = modules[str(before.target)], str(before.target)
        if len(before.users) > 1 or calls[name] > 1 or norm.running_mean is None:
            continue
        if type(layer) in _CONVOLUTIONS:
            modules[name] = fuse_conv_bn_eval(layer, norm)  # type: ignore[type-var, arg-type]
        elif type(layer) is nn.Linear and type(norm) is nn.BatchNorm1d:
            modules[name] = fuse_linear_bn_eval(layer, norm)
        else:
            continue
        node.replace_all_uses_with(before)
        graph.erase_node(node)
