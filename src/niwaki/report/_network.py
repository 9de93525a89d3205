"""What a network is made of: its layers, their cost, what may be removed, and their rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor, nn

from niwaki import models
from niwaki.contexts import undisturbed
from niwaki.errors import NiwakiError
from niwaki.evaluation import Cost, cost, latency, seconds_per_mac
from niwaki.propagation import Composite, Layer, epsilon_plus, resolve_operations, trace
from niwaki.pruning import Coupling, couple

__all__ = ["LayerInfo", "NetworkInfo", "network_info"]


@dataclass(frozen=True)
class LayerInfo:
    """A convolution or linear layer.

    Attributes
    ----------
    name, kind : str
        Its name, and ``"convolution"`` or ``"linear"``.
    weight : tuple of int
        Shape of its weight.
    params, macs : int
        Parameters of its weight and bias, and multiply-accumulates of one sample.
    milliseconds : float or None
        Time of one sample, up to the next layer; None for a layer that is not a module.
    removable : int
        How many of its units pruning may remove.
    together : tuple of str
        The layers that lose units with it.
    why_not : str
        Why units must stay, where some must.
    rule : str
        The rule of relevance that it gets; empty where the network is refused.
    """

    name: str
    kind: str
    weight: tuple[int, ...]
    params: int
    macs: int
    milliseconds: float | None
    removable: int
    together: tuple[str, ...]
    why_not: str
    rule: str


@dataclass(frozen=True)
class NetworkInfo:
    """The result of `network_info`.

    Attributes
    ----------
    layers : tuple of LayerInfo
        In the order in which the signal meets them.
    cost : Cost
        Cost of the whole network.
    milliseconds : float
        Median time of a forward pass of one sample.
    size : int
        Bytes of its parameters and buffers.
    composite : str
        Name of the composite that chose the rules.
    operations : dict of str to tuple of str
        The other operations that carry the signal, each with the rules that it gets; they may be
        several, as a rule can depend on the place.
    remarks : tuple of str
        What does not work with this network, in words.
    """

    layers: tuple[LayerInfo, ...]
    cost: Cost
    milliseconds: float
    size: int
    composite: str
    operations: dict[str, tuple[str, ...]] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


@undisturbed
def network_info(
    model: nn.Module, inputs: Tensor, composite: Composite | None = None
) -> NetworkInfo:
    """Look at a network without changing it.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode.
    inputs : Tensor
        A batch of shape (N, ...); the first sample is used.
    composite : Composite, optional
        Whose rules are shown; by default `niwaki.propagation.epsilon_plus`.

    Returns
    -------
    NetworkInfo
        Its layers and what they cost; times depend on the machine, all else does not.

    Raises
    ------
    ModelError, DataError
        For a network or inputs that cannot be used.
    """
    models.check(model)
    chosen, one = composite or epsilon_plus(), inputs[:1]
    remarks: list[str] = []
    rules, others = _rules(model, one, chosen, remarks)
    layers = trace(model, one)
    coupling = _coupling(model, one, layers, remarks)
    times = seconds_per_mac(model, one)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return NetworkInfo(
        tuple(_layer(model, layer, coupling, times, rules) for layer in layers),
        cost(model, one),
        1000 * latency(model, one),
        sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()),
        chosen.name,
        others,
        tuple(remarks),
    )


def _rules(
    model: nn.Module, inputs: Tensor, composite: Composite, remarks: list[str]
) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """Return the rules of layers and of other operations; a refusal becomes a remark."""
    try:
        found = resolve_operations(model, inputs, composite)
    except NiwakiError as error:
        remarks.append(f"LRP ({composite.name}) is refused: {error}")
        return {}, {}
    weighted = ("convolution", "linear")
    rules = {op.layer: str(op.rule) for op in found if op.kind in weighted}
    others: dict[str, tuple[str, ...]] = {}
    for op in found:
        if op.kind not in weighted:
            others[op.name] = tuple(dict.fromkeys((*others.get(op.name, ()), str(op.rule))))
    return rules, others


def _coupling(
    model: nn.Module, inputs: Tensor, layers: list[Layer], remarks: list[str]
) -> Coupling | None:
    """Find what may be removed; where nothing can be followed, the reason becomes a remark."""
    try:
        hidden = [layer.name for layer in layers if not layer.last]
        return couple(models.deep_copy(model), inputs, hidden)
    except NiwakiError as error:
        remarks.append(f"Units of this network cannot be pruned: {error}")
        return None


def _layer(
    model: nn.Module,
    layer: Layer,
    coupling: Coupling | None,
    times: Mapping[str, float],
    rules: Mapping[str, str],
) -> LayerInfo:
    weight, bias = layer.operation.weight, layer.operation.bias
    assert weight is not None
    groups = [group for group in coupling or () if layer.name in group.layers]
    channels = {
        channel
        for group in groups
        for member in group.members
        if member.output and member.layer == layer.name
        for unit in member.channels
        for channel in unit
    }
    together = sorted({name for group in groups for name in group.layers} - {layer.name})
    why_not = "" if coupling is None else coupling.kept.get(layer.name, "")
    if layer.last:
        why_not = "its units are the network's outputs"
    seconds = times.get(layer.name)
    return LayerInfo(
        layer.name,
        layer.kind,
        tuple(weight.shape),
        weight.numel() + (0 if bias is None else bias.numel()),
        layer.macs,
        None if seconds is None else 1000 * seconds * layer.macs,
        len(channels),
        tuple(together),
        why_not,
        rules.get(layer.name, ""),
    )
