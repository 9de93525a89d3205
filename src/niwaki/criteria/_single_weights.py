"""Criteria of single weights that look at data: relevance, gradient, Taylor."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from niwaki.accumulation import Totals
from niwaki.criteria._catalogue import register
from niwaki.criteria._composites import told
from niwaki.criteria._criterion import ByLayer, Criterion, Granularity, weights_of
from niwaki.criteria._starts import Evidence, check_evidence
from niwaki.errors import ModelError
from niwaki.models import class_logits, computes_weights, plain_copy
from niwaki.propagation import WEIGHT_NAMES, Composite, Layer, epsilon, per_class, propagate

__all__ = ["WeightGradient", "WeightRelevance", "WeightTaylor"]

Reduce = Literal["absolute", "absolute_of_sum", "squares"]
REDUCTIONS: tuple[Reduce, ...] = ("absolute", "absolute_of_sum", "squares")


class _Reduced(Criterion):
    """A signed value per weight and sample, gathered over the samples in one of three ways."""

    granularity: Granularity = "weight"

    def __init__(self, *, reduce: Reduce, normalise: str | None) -> None:
        super().__init__(normalise=normalise)
        if reduce not in REDUCTIONS:
            raise ValueError(f"reduce {reduce!r} is not one of {', '.join(map(repr, REDUCTIONS))}")
        self.reduce: Reduce = reduce

    @abstractmethod
    def signed(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
        """Compute the values of all weights, summed over the batch."""

    def batch(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
        """See `Criterion.batch`."""
        if self.reduce == "absolute_of_sum":
            return self.signed(model, inputs, labels)
        shape = torch.abs if self.reduce == "absolute" else torch.square
        sums: dict[str, Tensor] = {}
        for k in range(len(inputs)):  # one by one: a pass gives the sum over its batch only
            for layer, values in self.signed(model, inputs[k : k + 1], labels[k : k + 1]).items():
                more = shape(values.double())
                sums[layer] = sums[layer].add_(more) if layer in sums else more
        return sums

    def scores(self, totals: Totals, layers: Sequence[Layer], model: nn.Module) -> ByLayer:
        """See `Criterion.scores`."""
        return {
            layer.name: totals.sums[layer.name].abs() / totals.samples
            if layer.name in totals.sums
            else torch.zeros_like(weights_of(layer))  # its output is not used
            for layer in layers
        }

    def __repr__(self) -> str:
        return f"{type(self).__name__}(reduce={self.reduce!r}, normalise={self.normalise!r})"


@register("lrp", "weight")
class WeightRelevance(_Reduced):
    """Relevance of each weight: its share of the relevance that the units of its layer receive.

    A unit passes its relevance down through its weights. What passes through one of them, over all
    positions where it is used, is the relevance of this weight. In every layer these shares add up
    to the relevance that arrives, less what the biases take, so that layers can be compared as they
    are.

    The pass starts with 1 at the true class; a sample whose class has an output of exactly zero
    does not count, as in `Relevance`. The default rule is epsilon in all layers: rules that count
    positive contributions alone give an inhibiting weight nothing, whatever it prevents.

    Parameters
    ----------
    composite : Composite, optional
        Gives each operation its rule; default: `niwaki.propagation.epsilon`.
    reduce : {"absolute", "absolute_of_sum", "squares"}
        What is gathered over samples: absolute relevances, the absolute value of the sum of
        relevances (one pass per batch, and much faster), or squares.
    normalise : str, optional
        See `Scores.normalised`; default ``"none"``.
    max_loss : float, optional
        Share of a sample's relevance that may be lost before it is an error; None: any.
    """

    default_normalise: ClassVar[str] = "none"

    def __init__(
        self,
        *,
        composite: Composite | None = None,
        reduce: Reduce = "absolute",
        normalise: str | None = None,
        max_loss: float | None = 0.9,
    ) -> None:
        super().__init__(reduce=reduce, normalise=normalise)
        self.composite = composite or epsilon()
        self.max_loss = max_loss

    def signed(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
        """Compute the relevance of all weights, summed over the batch."""
        start = Evidence(labels)
        judged = per_class(model, inputs)
        done = propagate(
            judged, inputs, self.composite, start, weights=True, max_loss=self.max_loss
        )
        found: dict[str, Tensor] = dict(start.sums)
        for operation in done.operations:
            relevance = operation.ledger.weights
            if operation.form > 1:
                raise ModelError(
                    f"a weight is used in several forms, such as transposed or in parts, of which "
                    f"{operation.layer!r} is one, and their relevances cannot be added up. Take a "
                    "criterion that looks at the parameter itself, such as 'taylor' or 'magnitude'"
                )
            if relevance is not None and operation.kind in ("convolution", "linear"):
                if judged is not model and operation.last:  # both units have the same weights
                    relevance = relevance.sum(0, keepdim=True)
                found[operation.layer] = relevance + found.get(operation.layer, 0)
        return found

    def scores(self, totals: Totals, layers: Sequence[Layer], model: nn.Module) -> ByLayer:
        """See `Criterion.scores`."""
        check_evidence(totals, "true")
        return super().scores(totals, layers, model)

    def __repr__(self) -> str:
        return (
            f"WeightRelevance({told(self.composite)}, reduce={self.reduce!r}, "
            f"normalise={self.normalise!r})"
        )


@register("gradient", "weight")
class WeightGradient(_Reduced):
    """Absolute derivative of the loss by each weight; the loss is the cross-entropy.

    Parameters
    ----------
    reduce : {"absolute", "absolute_of_sum", "squares"}
        See `WeightRelevance`.
    normalise : str, optional
        See `Scores.normalised`; default ``"none"``.
    """

    def __init__(self, *, reduce: Reduce = "absolute", normalise: str | None = None) -> None:
        super().__init__(reduce=reduce, normalise=normalise)

    def network(self, model: nn.Module, inputs: Tensor) -> nn.Module:
        """Return the network with the weights that it computes as parameters."""
        return plain_copy(model) if computes_weights(model) else model

    def signed(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
        """Compute the derivatives of the summed loss."""
        # Leaves in the place of the parameters: the model's own may be frozen.
        leaves = {n: p.detach().requires_grad_() for n, p in model.named_parameters()}
        with torch.inference_mode(False), torch.enable_grad():
            # Copies, as what was made in inference mode has no part in derivatives.
            output = functional_call(model, leaves, (inputs.clone(),))
            loss = F.cross_entropy(class_logits(output), labels.clone(), reduction="sum")
            found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        return {
            owner(name): self.value(leaf.detach(), gradient)
            for (name, leaf), gradient in zip(leaves.items(), found, strict=True)
            if gradient is not None and leaf.dim() > 1
        }

    @staticmethod
    def value(weight: Tensor, gradient: Tensor) -> Tensor:
        """Make the signed value of a weight from its derivative."""
        return gradient


@register("taylor", "weight")
class WeightTaylor(WeightGradient):
    """Absolute product of each weight and the loss's derivative (Molchanov et al. 2019).

    The first-order change of the loss when the weight is set to zero; with ``reduce="squares"``
    the second-order one, with the squared derivatives of the samples for the curvature.

    Parameters
    ----------
    reduce : {"absolute", "absolute_of_sum", "squares"}
        See `WeightRelevance`.
    normalise : str, optional
        See `Scores.normalised`; default ``"none"``.
    """

    @staticmethod
    def value(weight: Tensor, gradient: Tensor) -> Tensor:
        """Multiply a weight by its derivative."""
        return weight * gradient


def owner(parameter: str) -> str:
    """Name of the layer that a parameter belongs to, as the engine names layers."""
    layer, _, name = parameter.rpartition(".")
    return layer if layer and name in WEIGHT_NAMES else parameter
