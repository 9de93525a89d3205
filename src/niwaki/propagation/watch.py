"""The watch over a forward pass: every operation that carries the signal meets its rule."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from niwaki.errors import NoRuleError, PropagationError
from niwaki.propagation._bounds import Carry, as_it_is, bounds_of, carried, one_of
from niwaki.propagation._calls import MOVES, Call, Tag, Tags, carries_gradient, tensors_in
from niwaki.propagation._cuts import Cuts
from niwaki.propagation._names import Names
from niwaki.propagation._ruled import Ruled
from niwaki.propagation.composites import Composite
from niwaki.propagation.observers import Observer, Onlooker
from niwaki.propagation.operation import Operation, Signals
from niwaki.propagation.rules import Gradient, Pass

__all__ = ["HANDLERS", "Handler", "Watch"]

#: Takes a watch and a call, and runs the call under its rule.
Handler = Callable[["Watch", Call], Any]
#: The handlers of all operations that niwaki knows, by name; filled by ``_handlers``.
HANDLERS: dict[str, Handler] = {}

_SET_HOOKS = vars(torch._C.TensorBase)["_backward_hooks"].__set__


#: What serves a network that rules do not.
WITHOUT_RULES = (
    "The methods input_t_gradient, integrated_gradients and occlusion, and the criterion taylor, "
    "need no rules"
)


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
    conditions : mapping of str to Tensor, optional
        Factors that the relevance reaching a layer is multiplied by, one per unit.
    wants_weights : bool
        Whether operations note the relevance of their weights.
    """

    def __init__(
        self,
        model: nn.Module,
        composite: Composite,
        observers: Sequence[Observer] = (),
        conditions: Mapping[str, Tensor] | None = None,
        wants_weights: bool = False,
    ) -> None:
        super().__init__()
        self.composite = composite
        self.observers = observers
        self._onlookers = [one for one in observers if isinstance(one, Onlooker)]
        self.operations: list[Operation] = []
        self.edges: dict[Operation, Any] = {}  # where relevance reaches the units of a layer
        self._hooks: dict[Operation, Any] = {}
        self._late: dict[Operation, Signals] = {}  # inputs that rules need after all
        self.conditions = dict(conditions or {})
        self.wants_weights = wants_weights
        self._samples = 1
        self._shape = torch.Size()
        self._names = Names(model)
        self.tags = Tags(self._names.held, trusting=composite.is_derivative)
        self.cuts = Cuts(self.tags, self._names.held)

    def begin(self, signal: Tensor) -> Tensor:
        """Declare `signal`, which must require a gradient, to be the input."""
        self._samples = len(signal)
        self._shape = signal.shape
        self.tags[signal] = Tag(signal=True, carry=as_it_is)
        self.cuts.begin(signal)
        return signal

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Give the call to its handler if one of its arguments carries the signal."""
        call = Call(func, args, kwargs or {})
        if func == _SET_HOOKS:  # autograd does so within a Function, where no error may be raised
            return call.run()
        with _saved_as_usual():
            read = self.cuts.read(call)
            result = self.watched(call)
            self.cuts.note(call, read, result)
        return result

    def watched(self, call: Call) -> Any:
        """See `__torch_function__`."""
        if call.name == "get" and not carries_gradient(result := call.run()):
            return result  # a property: its shape, its device
        signals = [t for t in tensors_in((call.args, call.kwargs)) if self.tags[t].signal]
        if not signals:
            result = call.run()
            self.tags.note_constants((call.args, call.kwargs), result)
            return result
        if not torch.is_grad_enabled():
            return self.unfollowed(call, signals)
        handler = HANDLERS.get(call.name)
        if handler is None:
            return self.unknown(call, signals)
        tags = [self.tags[t] for t in signals]
        self.read(call, signals, tags)
        if any(tag.nearest for tag in tags):
            return handler(self, call)
        ways = {id(t): tag.carry for t, tag in zip(signals, tags, strict=True)}
        carry = carried(call, ways, moves=call.name in MOVES)
        result = handler(self, call)
        self.carry(call.args[0] if call.name == "setitem" else result, carry)
        return result

    def carry(self, result: Any, carry: Carry | None) -> None:
        """Remember how the bounds of a result come from those of the network's input."""
        several = isinstance(result, (tuple, list))
        for number, tensor in enumerate(result if several else [result]):
            tag = self.tags.latest(tensor) if isinstance(tensor, Tensor) else None
            if tag is not None and tag.signal and not tag.nearest:
                one = functools.partial(one_of, carry, number) if several and carry else carry
                tag.carry = one

    def unfollowed(self, call: Call, signals: Sequence[Tensor]) -> Any:
        """Run a call under torch.no_grad(), from where the signal cannot go on."""
        if call.name.startswith(("conv", "linear")) and torch.is_tensor(call.argument(1, "weight")):
            raise PropagationError(
                f"{call.name!r} ({self.tags[signals[0]].place}) runs under torch.no_grad(), where "
                "the signal cannot be followed: take torch.no_grad() out of the forward, or "
                "detach() what is meant to be constant; of activation checkpointing, take the form "
                "use_reentrant=False"
            )
        return call.run()

    # What handlers use.

    def read(self, call: Call, signals: Sequence[Tensor], tags: Sequence[Tag]) -> None:
        """Count the uses of signals, and refuse those that no rule can serve."""
        for signal, tag in zip(signals, tags, strict=True):
            tag.uses += 1
            if tag.pending is not None and call.name not in MOVES:
                raise self.no_rule(tag.pending)
            if tag.norm is not None:
                self.separate(call, signal, tag)

    def separate(self, call: Call, signal: Tensor, tag: Tag) -> None:
        """Let a batch norm stand alone after all: another operation reads its input too.

        So it is with the first layer of a pre-activation ResNet. The layer's units end before the
        norm then, and the norm becomes a diagonal linear layer of its own.
        """
        norm, unit = tag.norm, tag.unit
        assert norm is not None
        assert unit is not None
        tag.norm = None
        if signal._version != tag.version:
            raise PropagationError(
                f"{call.name!r} overwrites the output of {unit.layer}, which the batch norm that "
                "follows it has read: give it a copy"
            )
        if unit.absorbed is not None:
            unit.absorbed = None
            norm.rule = self.composite.rule(norm)
            if norm.rule is None:
                raise self.no_rule(norm)
            # A copy, as it may be overwritten from here on.
            self._late[norm] = (signal.detach().clone(),)
        self.announce(unit, signal)

    def operation(self, call: Call, signals: Sequence[Tensor], **known: Any) -> Operation:
        """Describe the operation of a call on `signals` (see `Operation` for what is known)."""
        tags = [self.tags[t] for t in signals]
        nearest = frozenset[Operation]().union(*(tag.nearest for tag in tags))
        known.setdefault("layer", Tag(signal=True, nearest=nearest).place)
        if not nearest and tags[0].carry is not None:
            known["bounds"] = functools.partial(
                bounds_of, tags[0].carry, self._shape, signals[0].dtype
            )
        return Operation(
            name=call.name,
            input_shape=tuple(signals[0].shape),
            samples=self._samples,
            wants_weights=self.wants_weights,
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
        weighted = operation.kind in ("convolution", "linear")
        may_change = weighted and self.composite.looks_at_last
        if isinstance(operation.rule, Gradient) and not may_change:
            result = call.run()
        else:
            result = Ruled.apply(  # type: ignore[no-untyped-call,unused-ignore]
                operation, call, saved, may_change, self._late, *signals
            )
        self.operations.append(operation)
        known.setdefault("nearest", nearest)
        self.mark(result, **known)
        return result

    def mark(self, result: Any, **known: Any) -> None:
        """Tag all differentiable tensors of a result as signals, and what they are views of."""
        for tensor in tensors_in(result):
            if tensor.requires_grad:
                _check_derivative(tensor)
                self.tags[tensor] = Tag(signal=True, **known)
                base = tensor._base  # a constant until the signal was written into a part of it
                if base is not None and base.requires_grad and not self._carries(base):
                    self.tags[base] = Tag(signal=True, nearest=known["nearest"])
                for onlooker in self._onlookers:
                    onlooker.made(tensor)

    def _carries(self, tensor: Tensor) -> bool:
        """Whether a tensor that may have changed is already known to carry the signal."""
        tag = self.tags.latest(tensor)
        return tag is not None and tag.signal

    def by_derivative(self, call: Call, signals: Sequence[Tensor], why: str) -> Any:
        """Run an operation that no rule serves, if the composite says to use its derivative."""
        operation = self.operation(call, signals, kind="other", function=lambda xs, w, b: xs[0])
        operation.rule = self.composite.rule(operation)
        if not isinstance(operation.rule, Gradient):
            raise self.no_rule(operation, why, passes=False)
        return self.apply(operation, call, signals)

    def unknown(self, call: Call, signals: Sequence[Tensor]) -> Any:
        """Run an operation without a handler: fine if it does not carry the signal on."""
        operation = self.operation(call, signals, kind="other", function=lambda xs, w, b: xs[0])
        operation.rule = self.composite.rule(operation)
        passes = isinstance(operation.rule, Pass) and len(signals) == 1
        tags = [self.tags[t] for t in signals]
        before = [(t.requires_grad, t._version) for t in tensors_in((call.args, call.kwargs))]
        if not (passes and call.inplace):
            result = call.run()
            after = [(t.requires_grad, t._version) for t in tensors_in((call.args, call.kwargs))]
            if not carries_gradient(result) and before == after:
                return result  # a shape, an index, a detached copy
        if operation.rule is None:
            raise self.no_rule(operation, passes=len(signals) == 1)
        self.read(call, signals, tags)
        if isinstance(operation.rule, Gradient):
            self.operations.append(operation)
            self.mark(result, nearest=frozenset().union(*(tag.nearest for tag in tags)))
            return result
        if passes:  # once more, so that the rule replaces the derivative
            result = self.apply(operation, call, signals)
        if not passes or not isinstance(result, Tensor) or result.shape != signals[0].shape:
            raise PropagationError(
                f"{operation}: an operation that niwaki does not know can only be given the "
                f"rules Pass (one signal, same shape) and Gradient, not {operation.rule}"
            )
        return result

    def no_rule(self, operation: Operation, why: str = "", *, passes: bool = True) -> NoRuleError:
        """Build the error for an operation without a rule; `passes`: `Pass` would be one."""
        row = f"composite.with_rows(Assign({{}}(), operation={operation.name!r}))"
        passing = f"{row.format('Pass')} passes relevance through unchanged; "
        return NoRuleError(
            f"no rule for the operation {operation.name!r} ({operation.layer})"
            f"{': ' + why if why else ''}. It carries the signal, and its derivative is not a "
            f"relevance. To give it a rule, add a row to the composite {self.composite.name}: "
            f"{passing if passes else ''}{row.format('Gradient')} uses the derivative. "
            f"{WITHOUT_RULES}"
        )

    def named(self, weight: Tensor, channel_dim: int) -> dict[str, Any]:
        """Say which layer a weight makes; one made on the fly gets a name that is made up."""
        self._names.keep(weight)
        name, form = self._names.of(weight, self.tags.owner(weight), channel_dim)
        return {"layer": name, "form": form}

    def announce(self, unit: Operation, output: Tensor, *, activation: bool = False) -> None:
        """Tell observers about the output of a unit; the latest one is where relevance is read."""
        if not self.observers and unit.layer not in self.conditions:
            return
        if activation:
            for observer in self.observers:
                observer.activation(unit, output)
            return
        if unit in self._hooks:
            self._hooks[unit].remove()
        self._hooks[unit] = output.register_hook(  # type: ignore[no-untyped-call,unused-ignore]
            lambda r: self._relevance(unit, r)
        )
        self.edges[unit] = torch.autograd.graph.get_gradient_edge(output)
        for observer in self.observers:
            observer.output(unit, output)

    def _relevance(self, unit: Operation, relevance: Tensor) -> Tensor | None:
        """Tell the observers, and let through what the conditions say."""
        factors = self.conditions.get(unit.layer)
        if factors is not None:
            last = unit.kind == "linear"
            shape = (-1,) if last else (-1, *[1] * (relevance.dim() - 2))
            relevance = relevance * factors.to(relevance).view(shape)
        for observer in self.observers:
            observer.relevance(unit, relevance)
        return None if factors is None else relevance

    def release(self) -> None:
        """Let go of the graph, which would otherwise stay in memory."""
        for held in (self.edges, self._hooks, self._late):
            held.clear()

    def finish(self, output: Tensor) -> Tag:
        """Look at the output: tell the last layers that they are, and return its tag."""
        tag = self.tags[output]
        for operation in tag.nearest:
            operation.last = True
            if self.composite.looks_at_last:
                operation.rule = self.composite.rule(operation) or operation.rule
        return tag


@contextmanager
def _saved_as_usual() -> Iterator[None]:
    """Lift hooks on saved tensors, such as those of activation checkpointing.

    That computes its tensors anew in the backward pass, where nobody watches, and hands them to
    rules in the order of an unwatched forward pass.
    """
    hooks: list[Any] = []
    top: Any = torch._C._autograd._top_saved_tensors_default_hooks
    while (hook := top(True)) is not None:
        hooks.append(hook)
        torch._C._autograd._pop_saved_tensors_default_hooks()
    try:
        yield
    finally:
        for pack, unpack in reversed(hooks):
            torch._C._autograd._push_saved_tensors_default_hooks(pack, unpack)


def _check_derivative(tensor: Tensor) -> None:
    """Refuse what autograd takes for differentiable and has no derivative for."""
    if tensor.grad_fn is not None and "NotImplemented" in tensor.grad_fn.name():
        raise PropagationError(
            f"a tensor of shape {tuple(tensor.shape)} was made by an operation without a "
            "derivative (a quantised layer, or a kernel of the model's own), so that nothing can "
            "be sent back through it. Explain the network in floating point"
        )
