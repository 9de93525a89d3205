"""One forward pass under a composite and one backward pass along its rules."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.contexts import undisturbed
from niwaki.errors import (
    DataError,
    DisconnectedWarning,
    LostRelevanceError,
    ModelError,
    PrecisionWarning,
    PropagationError,
    SoftmaxOutputError,
    SoftmaxOutputWarning,
)
from niwaki.models import attended, check_steady, fitted, one_tensor
from niwaki.propagation.composites import Composite
from niwaki.propagation.observers import Observer
from niwaki.propagation.operation import Operation
from niwaki.propagation.rules import Gradient
from niwaki.propagation.watch import WITHOUT_RULES, Watch
from niwaki.ranges import TOLERANCE, checked

__all__ = ["Propagated", "check_inputs", "forward", "propagate"]

Start = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Propagated:
    """The result of a pass.

    Attributes
    ----------
    output : Tensor
        The network's output, detached.
    relevance : Tensor or None
        Relevance of the input, of its shape (with several starts, one after the other in a
        dimension in front); None if it was not asked for.
    operations : list of Operation
        All operations that carried the signal, in order, with the rule each one got.
    start : Tensor
        Relevance that the outputs started with; of several starts, the sum of the absolute ones.
    """

    output: Tensor
    relevance: Tensor | None
    operations: list[Operation]
    start: Tensor

    @property
    def lost(self) -> Tensor:
        """The share of its relevance that each sample lost on the way, shape (N,)."""
        return _lost_shares(self.operations, self.start)


@undisturbed
@checked(max_loss=TOLERANCE)
def propagate(
    model: nn.Module,
    inputs: Tensor,
    composite: Composite,
    start: Start,
    observers: Sequence[Observer] = (),
    *,
    to_input: bool = True,
    max_loss: float | None = 1e-3,
    conditions: Mapping[str, Sequence[int]] | None = None,
    weights: bool = False,
) -> Propagated:
    """Run `model` on `inputs` and send relevance back from its output.

    The model is not changed: no hooks, no gradients, no flags; also not if this fails.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode; must return one tensor.
    inputs : Tensor
        Batch of shape (N, ...), floating point.
    composite : Composite
        Gives each operation its rule.
    start : callable
        Gets the detached output, returns the relevance to start with, of the same shape; or with a
        dimension more in front, for several starts after one forward pass.
    observers : sequence of Observer
        Called with the outputs and relevances of layers.
    to_input : bool
        If false, the backward pass ends at the outputs of the first layers, which saves the most
        expensive step when only observers are interested.
    max_loss : float, optional
        Largest share of a sample's start relevance that may be lost in stabilizers and at units
        that nothing contributes to, absolute values added; None: any. (What biases and a large
        epsilon absorb is meant.)
    conditions : mapping of str to sequence of int, optional
        Layer name to the units whose relevance alone is passed on (concept-conditional
        relevance, Achtibat et al. 2023).
    weights : bool
        Whether operations note the relevance of their weights, in the ledger of each operation:
        summed over the batch, of the weight's shape.

    Raises
    ------
    ModelError
        For a model in training mode, one that gives NaN, or one that returns no single tensor.
    DataError
        For inputs that are not floating point or not finite.
    PropagationError
        For an operation without a rule, one that cannot be watched, or relevance that is lost.
    SoftmaxOutputError
        If the network ends in a softmax or sigmoid and a rule is not the gradient.

    Warns
    -----
    DisconnectedWarning
        If a part of the signal is cut off on its way, as by ``detach()``: it gets no relevance.
    PrecisionWarning
        If the network computes in half precision.
    """
    watch = Watch(model, composite, observers, _factors(conditions), weights)
    with torch.inference_mode(False), torch.enable_grad():
        leaf, output = forward(model, inputs, watch)
        _check_conditions(watch)
        _warn_of_rounding(output, watch.operations)
        if (cut := watch.cuts.of(output)) is not None:
            warnings.warn(str(cut), DisconnectedWarning, stacklevel=3)
        relevance = start(output.detach().clone()).detach().to(output)
        several = relevance.shape[1:] == output.shape and relevance.dim() == output.dim() + 1
        if not several and relevance.shape != output.shape:
            raise ValueError(
                f"the start relevance has shape {tuple(relevance.shape)}, the output "
                f"{tuple(output.shape)}"
            )
        ends: Any = [] if to_input else _first_outputs(watch)
        starts = list(relevance) if several else [relevance]
        found = [
            torch.autograd.grad(
                output,
                ends or leaf,
                one,
                allow_unused=True,
                retain_graph=number < len(starts),  # the last one frees memory as it goes
            )[0]
            for number, one in enumerate(starts, 1)
        ]
    watch.release()
    if to_input and any(one is None for one in found):
        raise PropagationError("the output does not depend on the input")
    _check_finite(relevance, found if to_input else [], watch.operations)
    total = relevance.abs().sum(0) if several else relevance
    if max_loss is not None:
        _check_evidence(output, total, watch.operations)
        _check_loss(watch.operations, total, max_loss)
    return Propagated(
        output.detach(),
        None if not to_input else torch.stack(found) if several else found[0],
        watch.operations,
        total,
    )


def forward(model: nn.Module, inputs: Tensor, watch: Watch) -> tuple[Tensor, Tensor]:
    """Run the forward pass under a watch; return a leaf in the input's place, and the output.

    Raises
    ------
    ModelError, DataError, PropagationError
        See `propagate`.
    """
    inputs = check_inputs(model, inputs)
    with torch.inference_mode(False), torch.enable_grad():
        leaf = inputs.detach().clone().requires_grad_()
        signal = watch.begin(leaf.clone())  # a copy, so that the model may overwrite its input
        with watch:
            with attended(model, inputs):
                output = model(signal)
            output = one_tensor(model, output, inputs)
        check_output(model, output, watch)
    return leaf, output


def _factors(conditions: Mapping[str, Sequence[int]] | None) -> dict[str, Tensor]:
    """Turn the units to let through into factors; how many units there are shows later."""
    return {name: torch.tensor(list(units)) for name, units in (conditions or {}).items()}


def _check_conditions(watch: Watch) -> None:
    """Complete the conditions' factors, now that the layers are known."""
    layers = {op.layer: op for op in watch.operations if op.kind in ("convolution", "linear")}
    for name, units in watch.conditions.items():
        if name not in layers:
            raise DataError(
                f"conditions: there is no layer {name!r}; layers: {', '.join(list(layers)[:20])}"
            )
        count = layers[name].units
        if len(units) == 0 or units.min() < 0 or units.max() >= count:
            raise DataError(f"conditions: {name!r} has the units 0 to {count - 1}")
        watch.conditions[name] = torch.zeros(count).index_fill_(0, units, 1.0)


def check_inputs(model: nn.Module, inputs: Any) -> Tensor:
    """Refuse a network in training mode, or one that is not steady (`niwaki.models.check_steady`).

    The inputs are returned as `niwaki.models.fitted` does.
    """
    training = next((name for name, m in model.named_modules() if m.training), None)
    if training is not None:
        raise ModelError(
            f"the network is in training mode (module {training or 'itself'!r}): its outputs "
            "depend on chance and on the batch. Call model.eval() first"
        )
    given = fitted(model, inputs)
    check_steady(model, given)
    return given


def check_output(model: nn.Module, output: Tensor, watch: Watch) -> None:
    """Refuse an output that is not finite, cut off, or behind a softmax."""
    if not torch.isfinite(output).all():
        bad = next((n for n, p in model.state_dict().items() if not _finite(p)), None)
        where = f"its weights hold NaN or infinite values, first in {bad!r}" if bad else "overflow"
        raise ModelError(f"the network's output is NaN or infinite: {where}")
    if not output.requires_grad:
        raise PropagationError(
            "the output does not depend on the input in a way that can be followed: the network "
            "runs under torch.no_grad(), detaches its signal, or is constant"
        )
    tag = watch.finish(output)
    if not tag.signal:
        raise PropagationError("the output does not depend on the input")
    if tag.ending:
        message = (
            f"the network ends in a {tag.ending} ({tag.place}): it mixes the evidence for all "
            "classes and saturates, so that what is explained is not the chosen class. Pass the "
            "network without it (for an nn.Sequential: model[:-1])"
        )
        if all(isinstance(op.rule, Gradient) for op in watch.operations):
            warnings.warn(message, SoftmaxOutputWarning, stacklevel=4)
        else:
            raise SoftmaxOutputError(message)


def _warn_of_rounding(output: Tensor, operations: Sequence[Operation]) -> None:
    """Say where a network computes in half precision: its rounding errors add up on the way."""
    tensors = [output, *(op.weight for op in operations if op.weight is not None)]
    half = {str(tensor.dtype) for tensor in tensors if tensor.dtype.itemsize < 4}
    if half:
        warnings.warn(
            f"the network computes in {' and '.join(sorted(half))}, whose rounding errors add up "
            "from layer to layer: relevance and derivatives are off by some percent, and by much "
            "more where contributions cancel (lrp.epsilon, lrp.alpha_2_beta_1). Pass "
            "copy.deepcopy(model).float() and inputs in single precision",
            PrecisionWarning,
            stacklevel=4,
        )


def _first_outputs(watch: Watch) -> list[Any]:
    """Return where to end a pass that only observers are interested in, if that is known."""
    firsts = [op for op in watch.operations if op.first and op.kind in ("convolution", "linear")]
    edges = [watch.edges[op] for op in firsts if op in watch.edges]
    return edges if len(edges) == len(firsts) else []


def _check_finite(start: Tensor, found: Sequence[Tensor], operations: list[Operation]) -> None:
    """Refuse numbers that are none, whatever made them."""
    if not torch.isfinite(start).all():
        raise DataError("the relevance to start with holds NaN or infinite values")
    if all(bool(torch.isfinite(one).all()) for one in found):
        return
    dtype = found[0].dtype
    raise PropagationError(
        f"the heatmap holds NaN or infinite values ({dtype}): numbers on the way back grew too "
        f"large, or a derivative is infinite (a root or a logarithm at zero). Operations: "
        f"{', '.join(dict.fromkeys(op.name for op in operations))}"
        + ("" if dtype == torch.float64 else ". Try the network and its inputs in more precision")
    )


def _check_evidence(output: Tensor, start: Tensor, operations: list[Operation]) -> None:
    """Refuse to explain outputs that are exactly zero; a derivative can be taken of them."""
    if all(isinstance(op.rule, Gradient) for op in operations):
        return
    chosen, evidence = (_by_sample(values) for values in (start != 0, start * output))
    silent = chosen.any(1) & (evidence == 0).all(1)
    if silent.any():
        which = ", ".join(map(str, silent.nonzero()[:5, 0].tolist()))
        raise PropagationError(
            f"the output to explain is exactly zero for {int(silent.sum())} of {len(silent)} "
            f"samples (first: {which}): a ReLU at the network's end is off, and there is no "
            "evidence to hand back. Explain another class (the predicted one), leave these samples "
            "out, or accept relevance that is lost with max_loss=None"
        )


def _lost_shares(operations: list[Operation], start: Tensor) -> Tensor:
    """Return what each sample loses: in sum, or beside all relevance where most of it arrives.

    Losses of both signs may cancel in the sum. Relevances of both signs may also add up to many
    times the start, so that the absolute losses are measured by the absolute relevance.
    """
    started = _by_sample(start.abs()).sum(1)
    lost, size, most = torch.zeros_like(started), torch.zeros_like(started), started
    for operation in operations:
        ledger = operation.ledger
        lost, size = lost + ledger.lost, size + ledger.lost_size
        most = torch.maximum(most, torch.as_tensor(ledger.arrived).to(most))
    shares = torch.maximum(lost.abs() / started, size / most)
    return torch.where(started > 0, shares, torch.zeros_like(started))


def _by_sample(values: Tensor) -> Tensor:
    """Return one row per sample, also where each has a single value, without a dimension."""
    return values.reshape(len(values), -1)


def _check_loss(operations: list[Operation], start: Tensor, max_loss: float) -> None:
    share = _lost_shares(operations, start).max()
    if share <= max_loss:
        return
    worst = max(operations, key=lambda op: float(torch.as_tensor(op.ledger.lost_size).sum()))
    raise LostRelevanceError(
        f"{float(share):.1%} of the relevance is lost on the way, most of it in {worst} "
        f"under {worst.rule}: its contributions are tiny beside the stabilizer, or units with "
        "relevance have no contribution that the rule counts. Choose a smaller stabilizer, "
        "another rule (Epsilon loses nothing where z-plus finds nothing above zero), or accept "
        "the loss with max_loss=None (as part of a name: NAME:max_loss=None). "
        f"{WITHOUT_RULES}",
        float(share),
    )


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
