"""The one-line interface."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from niwaki.attribution._registry import create
from niwaki.attribution._targets import Target
from niwaki.ranges import checked

__all__ = ["explain"]


@checked()
def explain(
    model: nn.Module,
    inputs: Tensor,
    target: Target = None,
    method: str = "lrp.epsilon_plus",
    **options: Any,
) -> Tensor:
    """Compute heatmaps: how much each input value speaks for the chosen output.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode. It is read, never changed.
    inputs : Tensor
        Shape (N, ...), floating point.
    target : None, int, sequence of int, or Tensor
        None: each sample's largest output; an int: that class; integers, one per sample; a
        floating-point tensor over the outputs: a weighted sum of them.
    method : str
        One of `niwaki.attribution.names`.
    **options
        The method's own.

    Returns
    -------
    Tensor
        Heatmaps of the inputs' shape.

    Raises
    ------
    UnknownOptionError
        For an option that the method does not have.

    Examples
    --------
    >>> heatmaps = niwaki.explain(model, images, method="lrp.epsilon_plus")
    """
    return create(method, model, **options).attribute(inputs, target)
