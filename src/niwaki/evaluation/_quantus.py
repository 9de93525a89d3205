"""Every method of the catalogue in the form in which Quantus's metrics ask for heatmaps."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from niwaki import attribution
from niwaki.evaluation._explainers import device_of, tolerant

__all__ = ["ExplainFunction", "quantus_explain"]


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
        The method's own. Where relevance gets lost it is no error here, because many metrics damage
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
        where = device_of(model) if device is None else torch.device(device)
        kind = next((p.dtype for p in model.parameters()), torch.get_default_dtype())
        made = tolerant(attribution.create(method, model, **{**options, **kwargs}))
        classes = torch.as_tensor(np.asarray(targets), device=where).long()
        heatmaps = made.attribute(torch.as_tensor(inputs, dtype=kind, device=where), classes)
        found: NDArray[Any] = heatmaps.detach().cpu().numpy()
        return found

    return explain_func
