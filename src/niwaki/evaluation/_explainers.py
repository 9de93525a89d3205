"""How the evaluations name methods: by the catalogue, or as functions that make one for a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from itertools import chain
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from niwaki import attribution, models
from niwaki.attribution import ClassChoice, Method, Propagating, chosen_classes
from niwaki.data import Data, batches
from niwaki.errors import DataError
from niwaki.propagation import per_class

__all__ = [
    "ExplainFunction",
    "Factory",
    "Methods",
    "factories",
    "quantus_explain",
    "tolerant",
    "with_classes",
]

Factory: TypeAlias = Callable[[nn.Module], Method]
Methods: TypeAlias = "str | Sequence[str] | Mapping[str, Factory]"


def factories(methods: Methods) -> dict[str, Factory]:
    """Return a function for each method that makes it for a model, by the method's title.

    Raises
    ------
    ValueError
        For a name that is not in the catalogue, or no method at all.
    """
    if isinstance(methods, Mapping):
        found = dict(methods)
        for title, make in found.items():
            if isinstance(make, Method):
                raise DataError(
                    f"methods: {title!r} is a method that is made already, for one network; pass a "
                    f"function that makes it, such as {{{title!r}: lambda network: "
                    "niwaki.attribution.create('lrp.epsilon_plus', network)}"
                )
    else:
        wanted = [methods] if isinstance(methods, str) else list(methods)
        for name in wanted:
            attribution.describe(name)  # which knows the names
        found = {name: partial(attribution.create, name) for name in wanted}
    if not found:
        raise ValueError(f"no method is given; choose among {', '.join(attribution.names())}")
    return found


def tolerant(method: Method) -> Method:
    """Let a method explain networks and inputs that are damaged on purpose.

    There, relevance is lost in units that nothing contributes to, which is an error elsewhere.
    """
    if isinstance(method, Propagating):
        method.max_loss = None
    return method


def with_classes(
    model: nn.Module, data: Data, target: ClassChoice, batch_size: int
) -> tuple[nn.Module, Iterator[tuple[Tensor, Tensor]]]:
    """Check the model; return what to explain, and batches of images with their chosen classes.

    What is explained is the model itself, or for one that ends in a single column its twin with an
    output per class, see `niwaki.propagation.per_class`.
    """
    models.check(model)
    found = batches(data, batch_size, models.home(model))
    first = next(found)  # `batches` refuses empty data
    judged = per_class(model, first[0])

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for inputs, labels in chain([first], found):
            output = models.class_outputs(judged, inputs, "an evaluation of heatmaps")
            yield inputs, chosen_classes(output, labels, target)

    return judged, pairs()


class ExplainFunction(Protocol):
    """What Quantus calls an ``explain_func``."""

    def __call__(
        self,
        model: nn.Module,
        inputs: NDArray[Any],
        targets: NDArray[Any],
        **kwargs: Any,
    ) -> NDArray[Any]:
        """Return heatmaps of the inputs' shape."""
        ...


def quantus_explain(method: str, **options: Any) -> ExplainFunction:
    """Make an ``explain_func`` for the metrics of Quantus (Hedström et al. 2023).

    Parameters
    ----------
    method : str
        One of `niwaki.attribution.names`.
    **options
        The method's own. Where relevance is lost it is no error here, because many metrics damage
        inputs or networks on purpose.

    Returns
    -------
    callable
        ``explain_func(model, inputs, targets, **kwargs)`` with arrays in and out: inputs of shape
        (N, C, H, W), one class per image, heatmaps of the inputs' shape. Among the `kwargs`,
        Quantus's ``explain_func_kwargs``, ``device`` says where to compute (default: where the
        model is); all others are options of the method and overrule those given here.

    Raises
    ------
    ModuleNotFoundError
        If Quantus is not installed.
    ValueError
        For a method that does not exist.

    Examples
    --------
    >>> metric = quantus.PixelFlipping(features_in_step=28)
    >>> explain_func = niwaki.evaluation.quantus_explain("lrp.epsilon_plus")
    >>> metric(model=model, x_batch=x, y_batch=y, explain_func=explain_func)
    """
    if find_spec("quantus") is None:
        raise ModuleNotFoundError(
            "Quantus is not installed; install it with: pip install 'niwaki[evaluation]'"
        )
    attribution.describe(method)  # which knows the names

    def explain_func(
        model: nn.Module,
        inputs: NDArray[Any],
        targets: NDArray[Any],
        *,
        device: str | torch.device | None = None,
        **kwargs: Any,
    ) -> NDArray[Any]:
        models.check(model)
        where = models.device_of(model) if device is None else torch.device(device)
        kind = next((p.dtype for p in model.parameters()), torch.get_default_dtype())
        made = tolerant(attribution.create(method, model, **{**options, **kwargs}))
        classes = torch.as_tensor(np.asarray(targets), device=where).long()
        heatmaps = made.attribute(torch.as_tensor(inputs, dtype=kind, device=where), classes)
        found: NDArray[Any] = heatmaps.detach().cpu().numpy()
        return found

    return explain_func
