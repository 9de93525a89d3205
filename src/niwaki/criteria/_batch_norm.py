"""The scale of the batch norm behind a layer as a criterion: network slimming."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from niwaki.accumulation import Totals
from niwaki.criteria._catalogue import register
from niwaki.criteria._criterion import ByLayer, Criterion
from niwaki.data import Data, batches
from niwaki.errors import ModelError
from niwaki.models import home, respond
from niwaki.propagation import Layer, check_inputs

__all__ = ["BatchNormScale"]


@register("bn_scale")
class BatchNormScale(Criterion):
    """Absolute scale of the batch norm behind a layer (network slimming, Liu et al. 2017).

    A layer that no batch norm with a scale directly follows has no score, as there is nothing that
    could stand for it: pruning leaves it alone, and whatever is coupled to it. Of the data, only
    the first sample is looked at, to follow the signal.

    Parameters
    ----------
    normalise : str, optional
        See `Scores.normalised`; default ``"none"``.

    Raises
    ------
    ModelError
        When scoring a network in which no hidden layer has a batch norm behind it.
    """

    needs_data: ClassVar[bool] = False

    def __init__(self, *, normalise: str | None = None) -> None:
        super().__init__(normalise=normalise)
        self._scales: list[tuple[Tensor, Tensor]] = []

    def prepared(self, model: nn.Module, data: Data, batch_size: int) -> Criterion:
        """Return the criterion with the scales that a forward pass meets."""
        sample = next(iter(batches(data, 2, home(model))))[0][:2].clone()
        sample = check_inputs(model, sample)
        ready = copy.copy(self)
        with _NormsBehindLayers() as found:
            respond(model, sample)
        ready._scales = found.scales
        return ready

    def scores(self, totals: Totals, layers: Sequence[Layer], model: nn.Module) -> ByLayer:
        """See `Criterion.scores`."""
        scores: dict[str, Tensor] = {}
        for layer in layers:
            for weight, scale in self._scales:
                if weight is layer.operation.weight and len(scale) == layer.units:
                    size = scale.detach().double().abs()
                    scores[layer.name] = size + scores.get(layer.name, 0)
        if not scores:
            raise ModelError(
                f"no hidden layer of {type(model).__name__}, such as {layers[0].name!r}, has a "
                "batch norm with a scale directly behind it: bn_scale has nothing to score. Use "
                "another criterion, such as 'weight'"
            )
        return scores


_LAYERS = {f"{kind}{d}d" for kind in ("conv", "conv_transpose") for d in (1, 2, 3)} | {"linear"}


class _NormsBehindLayers(TorchFunctionMode):
    """Context that notes each batch norm's scale, with the weight of the layer it directly follows.

    Attributes
    ----------
    scales : list of pair of Tensor
        Weight and scale.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scales: list[tuple[Tensor, Tensor]] = []
        self._outputs: dict[int, tuple[Tensor, int, Tensor]] = {}  # kept, as ids are used again

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the call, and look at it if it is a layer or a batch norm."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "batch_norm":
            self._norm(args[0], kwargs.get("weight", args[3] if len(args) > 3 else None))
        result = func(*args, **kwargs)
        if name in _LAYERS:
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            self._outputs[id(result)] = result, result._version, weight
        return result

    def _norm(self, inputs: Tensor, scale: Tensor | None) -> None:
        output, version, weight = self._outputs.get(id(inputs), (None, 0, None))
        if output is inputs and inputs._version == version and scale is not None:
            assert weight is not None
            self.scales.append((weight, scale))
