"""The watch over a forward pass: every operation that carries the signal meets its rule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from niwaki.errors import PropagationError
from niwaki.propagation._calls import Call, Tag, Tags, carries_gradient, tensors_in
from niwaki.propagation._handlers import HANDLERS
from niwaki.propagation.composites import Composite
from niwaki.propagation.observers import Observer
from niwaki.propagation.operation import Operation
from niwaki.propagation.rules import Gradient, Pass

__all__ = ["Watch"]


class _Ruled(torch.autograd.Function):
    """Forward: the operation as it is. Backward: its rule."""

    @staticmethod
    def forward(ctx: Any, operation: Operation, call: Call, saved: Any, *inputs: Tensor) -> Any:
        assert operation.rule is not None
        ctx.operation = operation
        ctx.shapes = [x.shape for x in inputs]
        if operation.rule.needs_inputs:
            kept = list(saved if saved is not None else inputs)
            if call.inplace and kept[0] is inputs[0]:
                kept[0] = inputs[0].clone()  # about to be overwritten
            ctx.save_for_backward(*kept)
        output = call.run()
        if call.inplace:
            ctx.mark_dirty(inputs[0])
        return output

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, relevance: Tensor) -> Any:
        operation: Operation = ctx.operation
        assert operation.rule is not None
        shares = operation.rule.relevance(operation, ctx.saved_tensors, relevance)
        fitted = [
            share if share.shape == shape else share.sum_to_size(shape)
            for share, shape in zip(shares, ctx.shapes, strict=True)
        ]
        return (None, None, None, *fitted)


class Watch(TorchFunctionMode):
    """Context in which the operations of `model` that carry the signal follow a composite.

    The signal is what was given to `begin`; operations on anything else run as they are.

    Parameters
    ----------
    model : nn.Module
        Read for the names of its weights; not changed.
    composite : Composite
        Gives each operation its rule.
    observers : sequence of Observer
        Told about each layer.
    """

    def __init__(
        self, model: nn.Module, composite: Composite, observers: Sequence[Observer] = ()
    ) -> None:
        super().__init__()
        self.composite = composite
        self.observers = observers
        self.operations: list[Operation] = []
        self._model = model
        self._names = {id(t): name for name, t in _named_tensors(model)}
        self.tags = Tags(t for _, t in _named_tensors(model))

    def begin(self, signal: Tensor) -> Tensor:
        """Declare `signal`, which must require a gradient, to be the input."""
        self.tags[signal] = Tag(signal=True)
        return signal

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Give the call to its handler if one of its arguments carries the signal."""
        call = Call(func, args, kwargs or {})
        signals = [t for t in tensors_in((args, call.kwargs)) if self.tags[t].signal]
        if not signals:
            result = call.run()
            self.tags.note_constants(result)
            return result
        handler = HANDLERS.get(call.name)
        if handler is None:
            return self.unknown(call, signals)
        self.read(call, signals)
        return handler(self, call)

    # What handlers use.

    def read(self, call: Call, signals: Sequence[Tensor]) -> None:
        """Count the uses of the signals, and refuse those that no rule can serve."""
        for tensor in signals:
            tag = self.tags[tensor]
            tag.uses += 1
            if tag.absorbed:
                raise PropagationError(
                    f"the output of {tag.place.removeprefix('after ')} goes both into the batch "
                    f"norm that follows it and into {call.name!r}: its rule cannot fold the batch "
                    "norm into the layer. Let the other operation read it before the batch norm"
                )

    def operation(self, call: Call, signals: Sequence[Tensor], **known: Any) -> Operation:
        """Describe the operation of a call on `signals` (see `Operation` for what is known)."""
        tags = [self.tags[t] for t in signals]
        nearest = frozenset[Operation]().union(*(tag.nearest for tag in tags))
        known.setdefault("layer", Tag(signal=True, nearest=nearest).place)
        return Operation(
            name=call.name,
            input_shape=tuple(signals[0].shape),
            first=not nearest,
            nonnegative=all(tag.nonnegative for tag in tags),
            **known,
        )

    def apply(
        self,
        operation: Operation,
        call: Call,
        signals: Sequence[Tensor],
        saved: Sequence[Tensor] | None = None,
        **known: Any,
    ) -> Any:
        """Run a call under its operation's rule and tag what comes out.

        Parameters
        ----------
        saved : sequence of Tensor, optional
            What the rule shall see as the inputs, where that is not `signals`.
        known
            What is known of the output, see `Tag`.
        """
        operation.rule = operation.rule or self.composite.rule(operation)
        if operation.rule is None:
            raise self.no_rule(operation)
        nearest = frozenset[Operation]().union(*(self.tags[t].nearest for t in signals))
        if isinstance(operation.rule, Gradient) and not self.composite.looks_at_last:
            result = call.run()
        else:
            result = _Ruled.apply(operation, call, saved, *signals)  # type: ignore[no-untyped-call]
        self.operations.append(operation)
        known.setdefault("nearest", nearest)
        self.mark(result, **known)
        return result

    def mark(self, result: Any, **known: Any) -> None:
        """Tag all differentiable tensors of a result as signals."""
        for tensor in tensors_in(result):
            if tensor.requires_grad:
                self.tags[tensor] = Tag(signal=True, **known)

    def unknown(self, call: Call, signals: Sequence[Tensor]) -> Any:
        """Run an operation without a handler: fine if it does not carry the signal on."""
        operation = self.operation(call, signals, kind="other", function=lambda xs, w, b: xs[0])
        operation.rule = self.composite.rule(operation)
        before = [(t.requires_grad, t._version) for t in tensors_in((call.args, call.kwargs))]
        if operation.rule is not None and not isinstance(operation.rule, Gradient):
            if not isinstance(operation.rule, Pass) or len(signals) != 1:
                raise PropagationError(
                    f"{operation}: an operation that niwaki does not know can only be given the "
                    f"rules Pass (one signal, same shape) and Gradient, not {operation.rule}"
                )
            self.read(call, signals)
            return self.apply(operation, call, signals)
        result = call.run()
        after = [(t.requires_grad, t._version) for t in tensors_in((call.args, call.kwargs))]
        if not carries_gradient(result) and before == after:
            return result  # a shape, an index, a detached copy
        if operation.rule is None:
            raise self.no_rule(operation)
        self.read(call, signals)
        self.mark(result, nearest=frozenset().union(*(self.tags[t].nearest for t in signals)))
        return result

    def no_rule(self, operation: Operation, why: str = "") -> PropagationError:
        """Build the error for an operation without a rule."""
        return PropagationError(
            f"no rule for the operation {operation.name!r} ({operation.layer})"
            f"{': ' + why if why else ''}. It carries the signal, and its derivative is not a "
            f"relevance. To give it a rule, add a row to the composite {self.composite.name}: "
            f"composite.with_rows(Assign(Pass(), operation={operation.name!r})) passes relevance "
            "through unchanged; Gradient() in its place uses the derivative"
        )

    def layer_name(self, weight: Tensor) -> str:
        """Name of the layer that owns a weight; a made-up one for a weight made on the fly."""
        if id(weight) not in self._names:  # assigned since, as torch.nn.utils.prune does
            self._names.update({id(t): name for name, t in _named_tensors(self._model)})
        name = self._names.get(id(weight))
        return name if name is not None else f"unnamed layer {len(self.operations)}"

    def announce(self, unit: Operation, output: Tensor, *, activation: bool = False) -> None:
        """Tell observers about the output of a unit; the latest one is where relevance is read."""
        if not self.observers:
            return
        if activation:
            for observer in self.observers:
                observer.activation(unit, output)
            return
        if unit.handle is not None:
            unit.handle.remove()
        unit.handle = output.register_hook(lambda r: self._relevance(unit, r))
        unit.edge = torch.autograd.graph.get_gradient_edge(output)
        for observer in self.observers:
            observer.output(unit, output)

    def _relevance(self, unit: Operation, relevance: Tensor) -> None:
        for observer in self.observers:
            observer.relevance(unit, relevance)

    def finish(self, output: Tensor) -> Tag:
        """Look at the output: tell the last layers that they are, and return its tag."""
        tag = self.tags[output]
        for operation in tag.nearest:
            operation.last = True
            if self.composite.looks_at_last:
                operation.rule = self.composite.rule(operation) or operation.rule
        return tag


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that a model holds, also as plain attributes, by the name of their layer."""
    for prefix, module in model.named_modules():
        held = {**vars(module), **module._parameters, **module._buffers}
        for name, value in held.items():
            for tensor in tensors_in(value):
                own = prefix if name == "weight" else f"{prefix}.{name}".strip(".")
                yield own or name, tensor
