"""One forward pass under a composite and one backward pass along its rules."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.errors import (
    DataError,
    ModelError,
    PropagationError,
    SoftmaxOutputError,
    SoftmaxOutputWarning,
)
from niwaki.propagation.composites import Composite
from niwaki.propagation.observers import Observer
from niwaki.propagation.operation import Operation
from niwaki.propagation.rules import Gradient
from niwaki.propagation.watch import Watch

__all__ = ["Propagated", "propagate"]

Start = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Propagated:
    """What a pass gave.

    Attributes
    ----------
    output : Tensor
        The network's output, detached.
    relevance : Tensor or None
        Relevance of the input, of its shape; None if it was not asked for.
    operations : list of Operation
        All operations that carried the signal, in order, with the rule each one got.
    """

    output: Tensor
    relevance: Tensor | None
    operations: list[Operation]


def propagate(
    model: nn.Module,
    inputs: Tensor,
    composite: Composite,
    start: Start,
    observers: Sequence[Observer] = (),
    *,
    to_input: bool = True,
    max_loss: float | None = 1e-3,
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
        Gets the detached output, returns the relevance to start with, of the same shape.
    observers : sequence of Observer
        Told about outputs and relevances of layers.
    to_input : bool
        If false, the pass back ends at the outputs of the first layers, which saves the most
        expensive step when only observers are interested.
    max_loss : float, optional
        Largest share of the start relevance that may get lost in stabilizers and at units that
        nothing contributes to; None: any. (What biases and a large epsilon absorb is meant.)

    Raises
    ------
    ModelError
        For a model in training mode, one that gives NaN, or one that returns no single tensor.
    DataError
        For inputs that are not floating point or not finite.
    PropagationError
        For an operation without a rule, one that cannot be watched, or relevance that gets lost.
    SoftmaxOutputError
        If the network ends in a softmax or sigmoid and a rule is not the gradient.
    """
    check_inputs(model, inputs)
    watch = Watch(model, composite, observers)
    with torch.enable_grad():
        leaf = inputs.detach().requires_grad_()
        signal = watch.begin(leaf.clone())  # a copy, so that the model may overwrite its input
        with watch:
            output = model(signal)
        check_output(model, output, watch)
        relevance = start(output.detach().clone()).detach().to(output)
        if relevance.shape != output.shape:
            raise ValueError(
                f"the start relevance has shape {tuple(relevance.shape)}, the output "
                f"{tuple(output.shape)}"
            )
        result = None
        edges = [] if to_input else _first_outputs(watch.operations)
        if edges:
            torch.autograd.grad(output, edges, relevance, allow_unused=True)
        else:
            (relevance_of_input,) = torch.autograd.grad(output, leaf, relevance)
            result = relevance_of_input if to_input else None
    watch.release()
    if max_loss is not None:
        _check_loss(watch.operations, float(relevance.abs().sum()), max_loss)
    return Propagated(output.detach(), result, watch.operations)


def check_inputs(model: nn.Module, inputs: Tensor) -> None:
    training = next((name for name, m in model.named_modules() if m.training), None)
    if training is not None:
        raise ModelError(
            f"the network is in training mode (module {training or 'itself'!r}): its outputs "
            "depend on chance and on the batch. Call model.eval() first"
        )
    if not inputs.is_floating_point():
        raise DataError(f"inputs must be floating point, not {inputs.dtype}")
    if not torch.isfinite(inputs).all():
        raise DataError("the inputs hold NaN or infinite values")


def check_output(model: nn.Module, output: object, watch: Watch) -> None:
    if not isinstance(output, Tensor):
        raise ModelError(
            f"the network returns a {type(output).__name__}, not one tensor; wrap it in a module "
            "whose forward returns the tensor to explain"
        )
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


def _first_outputs(operations: list[Operation]) -> list[Any]:
    """Return where to end a pass that only observers are interested in, if that is known."""
    firsts = [op for op in operations if op.first and op.kind in ("convolution", "linear")]
    edges = [op.edge for op in firsts if op.edge is not None]
    return edges if len(edges) == len(firsts) else []


def _check_loss(operations: list[Operation], start: float, max_loss: float) -> None:
    lost = sum(float(op.lost) for op in operations)
    if start == 0 or abs(lost) <= max_loss * start:
        return
    worst = max(operations, key=lambda op: abs(float(op.lost)))
    raise PropagationError(
        f"{abs(lost) / start:.1%} of the relevance gets lost on its way, most of it in {worst} "
        f"under {worst.rule}: its contributions are tiny beside the stabilizer, or units with "
        "relevance have no contribution that the rule counts. Choose a smaller stabilizer, "
        "another rule (Epsilon loses nothing where z-plus finds nothing above zero), or accept "
        "the loss with max_loss=None"
    )


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
