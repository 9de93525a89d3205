"""What every attribution method is: a model and an answer to `attribute`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

from torch import Tensor, nn

from niwaki.attribution._targets import Target, select
from niwaki.propagation import Composite, propagate

__all__ = ["Method", "Propagating", "Start"]

Start = Literal["output", "one"]


class Method(ABC):
    """An attribution method for one model.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode, returning one tensor of shape (N, classes, ...). Never changed.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @abstractmethod
    def attribute(self, inputs: Tensor, target: Target = None) -> Tensor:
        """Compute the heatmaps of a batch.

        Parameters
        ----------
        inputs : Tensor
            Shape (N, ...), floating point, on the model's device.
        target : None, int, sequence of int, or Tensor
            What to explain. None: each sample's largest output; an int: that class; integers, one
            per sample; a floating-point tensor over the outputs: a weighted sum of them.

        Returns
        -------
        Tensor
            Of the inputs' shape and type.
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.model).__name__})"


class Propagating(Method):
    """A method that is one pass through the network and back under a composite.

    Parameters
    ----------
    model : nn.Module
        See `Method`.
    composite : Composite
        Gives each operation its rule.
    start : {"output", "one"}
        The relevance a chosen output starts with: its value, or 1.
    max_loss : float, optional
        Largest share of the relevance that may get lost in stabilizers and dead ends before it is
        an error; None: any.
    """

    def __init__(
        self,
        model: nn.Module,
        composite: Composite,
        *,
        start: Start = "output",
        max_loss: float | None = 1e-3,
    ) -> None:
        super().__init__(model)
        if start not in ("output", "one"):
            raise ValueError(f"start {start!r} is neither 'output' nor 'one'")
        self.composite = composite
        self.start = start
        self.max_loss = max_loss

    def attribute(self, inputs: Tensor, target: Target = None) -> Tensor:
        """See `Method.attribute`."""

        def begin(output: Tensor) -> Tensor:
            weights = select(output, target)
            return weights * output if self.start == "output" else weights

        result = propagate(self.model, inputs, self.composite, begin, max_loss=self.max_loss)
        assert result.relevance is not None
        return result.relevance

    def __repr__(self) -> str:
        return f"{type(self.model).__name__} under {self.composite}"
