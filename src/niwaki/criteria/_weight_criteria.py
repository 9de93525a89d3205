"""How much a single weight matters: the criteria of unstructured pruning, and their catalogue."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, ClassVar, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from niwaki.accumulation import Totals
from niwaki.criteria._composites import told
from niwaki.criteria._criterion import Criterion
from niwaki.criteria._starts import Evidence, check_evidence
from niwaki.errors import UnknownOptionError
from niwaki.handed_on import make_with
from niwaki.models import class_logits
from niwaki.propagation import Composite, Layer, epsilon, per_class, propagate

__all__ = [
    "Lamp",
    "Magnitude",
    "RandomWeights",
    "WeightCriterion",
    "WeightGradient",
    "WeightRelevance",
    "WeightTaylor",
    "create_weight_criterion",
    "describe_weight_criterion",
    "weight_criteria",
]

Reduce = Literal["absolute", "absolute_of_sum", "squares"]
REDUCTIONS: tuple[Reduce, ...] = ("absolute", "absolute_of_sum", "squares")


class WeightCriterion(Criterion):
    """A criterion whose values have the shape of each layer's weight.

    `batch` gives sums by layer name, as `Criterion.batch` does; `scores` gets the layers with
    their weights.
    """

    def network(self, model: nn.Module, inputs: Tensor) -> nn.Module:
        """Return the network itself: the last layer's weights are scored too, as they are."""
        return model


W = TypeVar("W", bound=type[WeightCriterion])
_CATALOGUE: dict[str, type[WeightCriterion]] = {}


def _named(name: str) -> Callable[[W], W]:
    def decorator(criterion: W) -> W:
        criterion.name = name
        _CATALOGUE[name] = criterion
        return criterion

    return decorator


def weight_criteria() -> list[str]:
    """Return the names of all criteria of weights, sorted."""
    return sorted(_CATALOGUE)


def describe_weight_criterion(name: str) -> str:
    """Return a line on what a criterion of weights is."""
    return (_CATALOGUE[name].__doc__ or "").strip().splitlines()[0]


def create_weight_criterion(criterion: str | Criterion, **options: Any) -> WeightCriterion:
    """Make the criterion of weights of that name; one that is made already is handed on.

    Raises
    ------
    ValueError
        For a name that does not exist, or a criterion of units.
    UnknownOptionError
        For an option that the criterion does not have; one that is made already has none.
    """
    if isinstance(criterion, WeightCriterion):
        if options:
            raise UnknownOptionError(min(options), {f"{criterion} (made already)": ()})
        return criterion
    if isinstance(criterion, Criterion):
        raise ValueError(
            f"{criterion} scores units, not weights; of weights: {', '.join(weight_criteria())}"
        )
    if criterion not in _CATALOGUE:
        close = get_close_matches(criterion, _CATALOGUE, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise ValueError(
            f"there is no criterion {criterion!r} of weights; {hint}All: "
            f"{', '.join(weight_criteria())}"
        )
    return make_with(f"criterion {criterion!r} of weights", _CATALOGUE[criterion], **options)


class _Reduced(WeightCriterion):
    """A signed value per weight and sample, gathered over the samples in one of three ways."""

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

    def scores(
        self, totals: Totals, layers: Sequence[Layer], model: nn.Module
    ) -> dict[str, Tensor]:
        """See `Criterion.scores`."""
        return {
            layer.name: totals.sums[layer.name].abs() / totals.samples
            if layer.name in totals.sums
            else torch.zeros_like(_weight(layer))  # its output is not used
            for layer in layers
        }

    def __repr__(self) -> str:
        return f"{type(self).__name__}(reduce={self.reduce!r}, normalise={self.normalise!r})"


@_named("lrp")
class WeightRelevance(_Reduced):
    """Relevance of each weight: its share in what its layer's units receive.

    A unit hands its relevance down through its weights; what goes through one of them, over all
    places where it is used, is the weight's. In every layer these shares add up to the relevance
    that arrives, less what the biases take, so that layers can be compared as they are.

    The pass starts with 1 at the true class; a sample whose class has an output of exactly zero
    counts for nothing, as in `Relevance`. The default rule is epsilon in all layers: rules that
    count positive contributions alone give an inhibiting weight nothing, whatever it prevents.

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
        Share of a sample's relevance that may get lost before it is an error; None: any.
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
            if relevance is not None and operation.kind in ("convolution", "linear"):
                if judged is not model and operation.last:  # both units have the same weights
                    relevance = relevance.sum(0, keepdim=True)
                found[operation.layer] = relevance + found.get(operation.layer, 0)
        return found

    def scores(
        self, totals: Totals, layers: Sequence[Layer], model: nn.Module
    ) -> dict[str, Tensor]:
        """See `Criterion.scores`."""
        check_evidence(totals, "true")
        return super().scores(totals, layers, model)

    def __repr__(self) -> str:
        return (
            f"WeightRelevance({told(self.composite)}, reduce={self.reduce!r}, "
            f"normalise={self.normalise!r})"
        )


@_named("gradient")
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

    def signed(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
        """Compute the derivatives of the summed loss."""
        # Leaves in the place of the parameters: the model's own may be frozen.
        leaves = {n: p.detach().requires_grad_() for n, p in model.named_parameters()}
        with torch.inference_mode(False), torch.enable_grad():
            output = functional_call(model, leaves, (inputs,))
            loss = F.cross_entropy(class_logits(output), labels, reduction="sum")
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


@_named("taylor")
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


@_named("magnitude")
class Magnitude(WeightCriterion):
    """Absolute value of each weight (Han et al. 2015); needs no data.

    Parameters
    ----------
    normalise : str, optional
        See `Scores.normalised`; default ``"none"``.
    """

    needs_data: ClassVar[bool] = False

    def scores(
        self, totals: Totals, layers: Sequence[Layer], model: nn.Module
    ) -> dict[str, Tensor]:
        """See `Criterion.scores`."""
        return {layer.name: _weight(layer).abs() for layer in layers}


@_named("lamp")
class Lamp(WeightCriterion):
    """Layer-adaptive magnitude (Lee et al. 2021): a weight's square, over those not smaller.

    The sum runs over the weights of the layer that would still be there when this one goes.

    Parameters
    ----------
    normalise : str, optional
        See `Scores.normalised`; default ``"none"``.
    """

    needs_data: ClassVar[bool] = False

    def scores(
        self, totals: Totals, layers: Sequence[Layer], model: nn.Module
    ) -> dict[str, Tensor]:
        """See `Criterion.scores`."""
        return {layer.name: self._of(_weight(layer)) for layer in layers}

    @staticmethod
    def _of(weight: Tensor) -> Tensor:
        squares, order = weight.square().flatten().sort(descending=True, stable=True)
        scores = torch.empty_like(squares)
        scores[order] = squares / squares.cumsum(0).clamp(min=torch.finfo(squares.dtype).tiny)
        return scores.view_as(weight)


@_named("random")
class RandomWeights(WeightCriterion):
    """Uniform random scores: what any criterion must beat.

    Parameters
    ----------
    seed : int
        Of the draw; the same seed gives the same scores for the same layers.
    normalise : str, optional
        See `Scores.normalised`; default ``"none"``.
    """

    needs_data: ClassVar[bool] = False

    def __init__(self, *, seed: int = 0, normalise: str | None = None) -> None:
        super().__init__(normalise=normalise)
        self.seed = seed

    def scores(
        self, totals: Totals, layers: Sequence[Layer], model: nn.Module
    ) -> dict[str, Tensor]:
        """See `Criterion.scores`."""
        generator = torch.Generator().manual_seed(self.seed)
        return {
            layer.name: torch.rand(_weight(layer).shape, generator=generator, dtype=torch.float64)
            for layer in layers
        }


def owner(parameter: str) -> str:
    """Name of the layer that a parameter belongs to, as the engine names layers."""
    layer, _, name = parameter.rpartition(".")
    return layer if layer and name.startswith("weight") else parameter


def _weight(layer: Layer) -> Tensor:
    assert layer.operation.weight is not None
    return layer.operation.weight.detach().double()
