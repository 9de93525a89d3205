"""The network walk: where channels go, and which operations read them."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from niwaki.models.network import Network
from niwaki.models.zoo import ShortcutA
from niwaki.pruning import Group, Member

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_Norm = nn.modules.batchnorm._BatchNorm
NOBODY = -1  # the label of a channel that belongs to no unit of the group

_CHANNELWISE = (
    nn.modules.batchnorm._BatchNorm, nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.modules.dropout._DropoutNd, nn.modules.padding._ConstantPadNd,
    nn.modules.padding._ReflectionPadNd, nn.modules.padding._ReplicationPadNd, nn.Upsample,
    nn.Identity, nn.PReLU, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU,
    nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus,
)  # fmt: skip
# Functions of torch and torch.nn.functional, and methods of tensors, by name.
CHANNELWISE_NAMES = frozenset((
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish",
    "hardsigmoid", "hardtanh", "sigmoid", "tanh", "softplus", "prelu", "dropout", "dropout2d",
    "alpha_dropout", "feature_dropout", "batch_norm", "interpolate", "max_pool1d", "max_pool2d",
    "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d",
    "adaptive_max_pool3d", "contiguous", "clone", "detach", "neg", "abs", "exp", "square", "sqrt",
    "clamp", "float", "double",
))  # fmt: skip
_SUMS = frozenset(["add", "sub", "mul", "truediv", "div", "maximum", "minimum"])
_REDUCTIONS = frozenset(["mean", "sum", "amax"])
_RESHAPES = frozenset(["flatten", "view", "reshape", "squeeze", "unsqueeze"])
_CONCATENATIONS = frozenset(["cat", "concat", "concatenate"])


class NotFollowedError(Exception):
    """Channels of a group enter an operation that may mix or move them."""


def find_readers(network: Network, group: Group) -> dict[fx.Node, Tensor]:
    """Find the operations that read a group's channels.

    Parameters
    ----------
    network : Network
        The operations.
    group : Group
        The channels, from `niwaki.pruning.couple` of the same network.

    Returns
    -------
    dict of fx.Node to Tensor
        For each reader, in the order in which they run, the unit of the group that each channel of
        its input belongs to, or -1; shape (channels,).

    Raises
    ------
    NotFollowedError
        With the operation.
    """
    outputs = {member.layer: member for member in group.members if member.output}
    inputs = {member.layer: member for member in group.members if not member.output}
    labels: dict[fx.Node, Tensor] = {}
    readers: dict[fx.Node, Tensor] = {}
    for node in network.nodes:
        name, module = str(node.target), network.module(node)
        arriving = [labels[n] for n in node.all_input_nodes if n in labels]
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear, ShortcutA)):
            depthwise = _is_depthwise(module) and name in outputs
            if arriving and not depthwise:
                _check_channel_axis(network, node, module)
                if name in inputs:
                    _check_same_channels(inputs[name], arriving[0], name)
                elif not isinstance(module, ShortcutA):
                    raise NotFollowedError(f"{name} reads channels that it would not lose")
                readers[node] = arriving[0]
            if name in outputs:
                labels[node] = _unit_labels(outputs[name], network.shapes[node][0])
        elif arriving and not _counts_images(node):
            labels[node] = _labels_after(network, node, module, labels)
    if network.output in labels:
        raise NotFollowedError("they reach the network's output")
    if not readers:
        raise NotFollowedError("nothing reads them")
    return readers


def find_equal_readers(network: Network, layer: str) -> dict[str, Tensor]:
    """Find what reads all channels of a layer, whatever mixes them on the way as equals.

    Returns
    -------
    dict of str to Tensor
        For each reader, and each norm on the way, the channel that each place of its input is of.

    Raises
    ------
    NotFollowedError
        If the layer or a reader is called in a way that cannot be followed, or there is no reader.
    """
    labels: dict[fx.Node, Tensor] = {}
    found: dict[str, Tensor] = {}
    calls = [str(node.target) for node in network.nodes if node.op == "call_module"]
    for node in network.nodes:
        module, name = network.module(node), str(node.target)
        arriving = [labels[n] for n in node.all_input_nodes if n in labels]
        if name == layer and module is not None:
            if arriving or calls.count(name) > 1 or type(module) not in _LAYERS:
                raise NotFollowedError(f"{name} is called in a way that cannot be followed")
            labels[node] = torch.arange(network.shapes[node][0])
        elif arriving and isinstance(module, (*_LAYERS, _Norm)):
            if calls.count(name) > 1 or getattr(module, "groups", 1) > 1:
                raise NotFollowedError(f"{name} reads them in a way that cannot be followed")
            found[name] = arriving[0]
            if isinstance(module, _Norm):
                labels[node] = arriving[0]
        elif arriving and node in network.shapes:
            before = next(n for n in node.all_input_nodes if n in labels)
            passed = _labels_after_reshape(
                network.shapes[before], network.shapes[node], labels[before]
            )
            if passed is None and network.shapes[node][:1] == (len(arriving[0]),):
                passed = arriving[0]
            if passed is not None:  # otherwise it is a number of all channels
                labels[node] = passed
    if network.output in labels or not found:
        raise NotFollowedError(f"nothing is known to read {layer}")
    return found


def _unit_labels(member: Member, width: int) -> Tensor:
    labels = torch.full((width,), NOBODY)
    for unit, channels in enumerate(member.channels):
        labels[list(channels)] = unit
    return labels


def _check_same_channels(member: Member, found: Tensor, name: str) -> None:
    if not torch.equal(_unit_labels(member, len(found)), found):
        raise NotFollowedError(f"{name} reads other channels than it would lose")


def _check_channel_axis(network: Network, node: fx.Node, module: nn.Module) -> None:
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or (
        isinstance(module, nn.Linear) and len(network.shapes[source]) > 1
    ):
        raise NotFollowedError(f"{node.target} does not read the channels that were followed")


def _is_depthwise(module: nn.Module) -> bool:
    groups = getattr(module, "groups", 1)
    return groups > 1 and groups == module.in_channels == module.out_channels


def _labels_after(
    network: Network, node: fx.Node, module: nn.Module | None, labels: dict[fx.Node, Tensor]
) -> Tensor:
    """Label what an operation makes of labelled values."""
    shape = network.shapes.get(node)
    if shape is None:  # a size, which no channel changes but whose removal may
        raise NotFollowedError(f"their number is used by {node.name}")
    sources = [n for n in node.all_input_nodes if n in network.shapes]
    name = _function_name(node)
    found: Tensor | None = None
    if isinstance(module, _CHANNELWISE) or (module is None and name in CHANNELWISE_NAMES):
        found = labels.get(sources[0])
    elif module is None and name in _SUMS:
        found = _labels_of_sum([labels.get(n) for n in sources])
    elif module is None and name in _CONCATENATIONS:
        found = _labels_of_concatenation(network, node, labels)
    elif isinstance(module, nn.Flatten) or (module is None and name in _RESHAPES):
        found = _labels_after_reshape(network.shapes[sources[0]], shape, labels[sources[0]])
    elif module is None and name in _REDUCTIONS:
        before = network.shapes[sources[0]]
        kept = shape[:1] == before[:1] and len(shape) in (1, len(before))
        found = labels[sources[0]] if kept and _reduces_space(node, len(before) + 1) else None
    if found is None or len(found) != shape[0]:
        raise NotFollowedError(f"they enter {node.name}")
    return found


def _counts_images(node: fx.Node) -> bool:
    """Whether a value is a size of which only the number of images is used."""
    if node.op == "call_method" and node.target == "size" and len(node.args) > 1:
        return isinstance(node.args[1], int) and node.args[1] == 0
    shape = node.op == "call_function" and node.target is getattr and node.args[1] == "shape"
    if not shape and not (node.op == "call_method" and node.target == "size"):
        return False
    return all(user.target is operator.getitem and user.args[1] == 0 for user in node.users)


def _function_name(node: fx.Node) -> str:
    if node.op == "call_function":
        return str(getattr(node.target, "__name__", "")).removeprefix("_")
    return str(node.target)


def _labels_of_sum(arriving: list[Tensor | None]) -> Tensor | None:
    """Labels that the labelled values of a sum agree on; a channel of the others goes with them."""
    known = [labels for labels in arriving if labels is not None]
    return known[0] if all(torch.equal(labels, known[0]) for labels in known) else None


def _labels_of_concatenation(
    network: Network, node: fx.Node, labels: dict[fx.Node, Tensor]
) -> Tensor | None:
    axis = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
    parts = node.kwargs.get("tensors", node.args[0] if node.args else None)
    if (axis != 1 and axis != -len(network.shapes[node])) or not isinstance(parts, (list, tuple)):
        return None
    nobody = [torch.full((network.shapes[part][0],), NOBODY) for part in parts]
    return torch.cat([labels.get(part, none) for part, none in zip(parts, nobody, strict=True)])


def _labels_after_reshape(
    before: tuple[int, ...], after: tuple[int, ...], labels: Tensor
) -> Tensor | None:
    """Label what a reshape makes of labelled channels, if it leaves them in their order."""
    space = torch.Size(before[1:]).numel()
    if after == (before[0] * space,):  # flattened: each channel becomes its positions
        return labels.repeat_interleave(space)
    if after[:1] == before[:1] and torch.Size(after).numel() == torch.Size(before).numel():
        return labels
    return None


def _reduces_space(node: fx.Node, dimensions: int) -> bool:
    axes: Any = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    if isinstance(axes, int):
        axes = (axes,)
    if not isinstance(axes, (tuple, list)):
        return False
    return all(isinstance(axis, int) and axis % dimensions >= 2 for axis in axes)
