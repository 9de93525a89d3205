"""What every attribution method is: a model and an answer to `attribute`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from niwaki.attribution._targets import Target, select
from niwaki.errors import DataError
from niwaki.propagation import Composite, Maps, Propagated, propagate
from niwaki.ranges import TOLERANCE, checked

__all__ = ["Method", "Propagating", "Start", "baseline_of"]

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
            Heatmaps with the shape and type of the inputs.
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.model).__name__})"


@checked(max_loss=TOLERANCE)
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
        Largest share of the relevance that may be lost in stabilizers and dead ends before it is
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
        self.composite = composite
        self.start = start
        self.max_loss = max_loss

    def attribute(
        self,
        inputs: Tensor,
        target: Target = None,
        *,
        conditions: Mapping[str, Sequence[int]] | None = None,
    ) -> Tensor:
        """Compute heatmaps, see `Method.attribute`.

        Parameters
        ----------
        inputs, target
            See `Method.attribute`.
        conditions : mapping of str to sequence of int, optional
            Layer name to the units whose relevance alone is passed on: what the network sees
            of the target *through* these units (Achtibat et al. 2023).
        """
        result = self._propagate(inputs, [target], conditions=conditions)
        assert result.relevance is not None
        return result.relevance[0]

    def attribute_each(self, inputs: Tensor, targets: Sequence[Target]) -> Tensor:
        """Compute the heatmaps of several targets after one forward pass.

        Parameters
        ----------
        inputs : Tensor
            Shape (N, ...).
        targets : sequence
            Each as in `Method.attribute`.

        Returns
        -------
        Tensor
            Shape (targets, N, ...).
        """
        if len(targets) == 0:
            raise DataError("give at least one target")
        result = self._propagate(inputs, targets)
        assert result.relevance is not None
        return result.relevance

    def attribute_with_loss(
        self, inputs: Tensor, targets: Sequence[Target]
    ) -> tuple[Tensor, Tensor]:
        """Compute what `attribute_each` does, whatever is lost, and return how much that is.

        Parameters
        ----------
        inputs, targets
            See `attribute_each`.

        Returns
        -------
        tuple of Tensor
            The heatmaps, and for each sample the share of the relevance of all targets that got
            lost on its way, shape (N,).
        """
        result = self._propagate(inputs, targets, max_loss=None)
        assert result.relevance is not None
        return result.relevance, result.lost

    def layers(
        self, inputs: Tensor, target: Target = None, names: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Compute the relevance that reaches layers, as maps.

        Parameters
        ----------
        inputs, target
            See `Method.attribute`.
        names : sequence of str, optional
            Layers wanted; default: all convolutions and linear layers.

        Returns
        -------
        dict of str to Tensor
            Maps in the shape of each layer's output; sum over space for a value per channel.
        """
        maps = Maps(None if names is None else set(names))
        self._propagate(inputs, [target], observers=[maps])
        for name in names or ():
            if name not in maps.relevances:
                raise DataError(f"no relevance reaches a layer {name!r}")
        return maps.relevances

    def weights(self, inputs: Tensor, target: Target = None) -> dict[str, Tensor]:
        """Compute the relevance of each layer's weights, summed over the batch.

        Returns
        -------
        dict of str to Tensor
            Relevance in the shape of each layer's weight, for layers whose rule is one of LRP.
        """
        result = self._propagate(inputs, [target], weights=True)
        found: dict[str, Tensor] = {}
        for operation in result.operations:
            if operation.ledger.weights is not None and operation.kind != "batch_norm":
                before = found.get(operation.layer, 0)
                found[operation.layer] = operation.ledger.weights + before
        return found

    def begin(self, output: Tensor, target: Target) -> Tensor:
        """Return the relevance that the outputs start with."""
        weights = select(output, target)
        return weights * output if self.start == "output" else weights

    def _propagate(self, inputs: Tensor, targets: Sequence[Target], **options: Any) -> Propagated:
        def start(output: Tensor) -> Tensor:
            return torch.stack([self.begin(output, target) for target in targets])

        options = {"max_loss": self.max_loss, **options}
        return propagate(self.model, inputs, self.composite, start, **options)

    def __repr__(self) -> str:
        return f"{type(self.model).__name__} under {self.composite}"


def baseline_of(baseline: float | Tensor, inputs: Tensor) -> Tensor:
    """Broadcast a baseline to inputs.

    Raises
    ------
    DataError
        If it does not fit them.
    """
    try:
        return torch.as_tensor(baseline).to(inputs).expand_as(inputs)
    except RuntimeError:
        raise DataError(
            f"the baseline does not broadcast to inputs of shape {tuple(inputs.shape)}"
        ) from None
