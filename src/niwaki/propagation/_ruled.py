"""An operation of the forward pass whose way back is its rule in place of its derivative."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from niwaki.errors import PropagationError
from niwaki.propagation._calls import Call
from niwaki.propagation.operation import Operation, Signals

__all__ = ["Ruled"]


class Ruled(torch.autograd.Function):
    """Forward: the operation as it is. Backward: its rule.

    Takes the operation; the call that runs it; what the rule shall see as the inputs, where that is
    not `signals`; whether inputs are kept for a rule that may still change; a table for the inputs
    of operations whose rules turn out to need them only after they ran; and the signals.
    """

    @staticmethod
    def forward(
        ctx: Any,
        operation: Operation,
        call: Call,
        inputs: Sequence[Tensor] | None,
        may_change: bool,
        late: Mapping[Operation, Signals],
        *signals: Tensor,
    ) -> Any:
        assert operation.rule is not None
        ctx.operation, ctx.late = operation, late
        ctx.shapes = [x.shape for x in signals]
        if operation.rule.needs_inputs or may_change:
            kept = signals if inputs is None else inputs
            if call.inplace:  # about to overwrite its first input
                storage = signals[0].untyped_storage().data_ptr()
                kept = [x.clone() if x.untyped_storage().data_ptr() == storage else x for x in kept]
            ctx.save_for_backward(*kept)
        output = call.run()
        if call.inplace:
            ctx.mark_dirty(signals[0])
        return output

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator,unused-ignore]
    def backward(ctx: Any, relevance: Tensor, *_: Any) -> Any:  # of places there is no derivative
        operation: Operation = ctx.operation
        assert operation.rule is not None
        inputs = ctx.late.get(operation) or ctx.saved_tensors
        dtype = relevance.dtype
        if dtype.itemsize < 4 and operation.name != "prelu":  # stabilizers would be nothing there
            inputs, relevance = tuple(x.float() for x in inputs), relevance.float()
        shares = operation.rule.relevance(operation, inputs, relevance)
        pairs = zip(shares, ctx.shapes, strict=True)
        fitted = (_fit(operation, share, shape).to(dtype) for share, shape in pairs)
        return (*[None] * 5, *fitted)


def _fit(operation: Operation, share: Tensor, shape: torch.Size) -> Tensor:
    """Sum a share over the dimensions along which its input was repeated."""
    if share.shape == shape:
        return share
    leading = (1,) * (share.dim() - len(shape)) + tuple(shape)
    if len(leading) != share.dim() or any(
        n not in (1, m) for n, m in zip(leading, share.shape, strict=True)
    ):
        raise PropagationError(
            f"{operation} under {operation.rule}: relevance of shape {tuple(share.shape)} does not "
            f"fit its input of shape {tuple(shape)}; the rule serves only operations that keep it"
        )
    return share.sum_to_size(shape)
