"""A network with a single output column as a network with one output per class."""

from __future__ import annotations

import warnings
from typing import Any, cast

import torch
from torch import Tensor, nn

from niwaki.errors import ModelError, SoftmaxOutputWarning
from niwaki.models import deep_copy, respond
from niwaki.propagation.trace import trace

__all__ = ["check_logit", "per_class"]

_WAY_OUT = (
    "return the logit of the last linear layer or convolution as it is, or give the network two "
    "outputs, one for each class"
)


def per_class(model: nn.Module, inputs: Tensor) -> nn.Module:
    """Return a network that computes the same and has one output per class.

    That is the model itself, unless it has a single output column z, the logit of the second of
    two classes: evidence for the first class is then evidence against z, which rules that treat
    contributions of either sign differently cannot see in one column. The copy that is returned
    has the last layer twice, with halves of its weights: its outputs (-z/2, z/2) have the same
    largest class, the same softmax and the same margin.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode, returning shape (N, classes), (N, 1) or (N,). Never changed.
    inputs : Tensor
        A batch of shape (N, ...), to see what comes out.

    Returns
    -------
    nn.Module
        `model` itself or a changed copy.

    Raises
    ------
    ModelError
        If the single column does not come from one linear layer or convolution with one unit, or
        is changed behind it in a way that two columns cannot take.
    """
    output = respond(model, inputs)
    if not _single_column(output, len(inputs)):
        return model
    last = [layer for layer in trace(model, inputs) if layer.last]
    if len(last) != 1 or last[0].units != 1:
        names = ", ".join(repr(layer.name) for layer in last) or "no layer"
        raise ModelError(
            f"the network has one output, which comes from {names} and not from one layer with "
            f"one unit: it cannot be given one output per class. To do so, {_WAY_OUT}"
        )
    twin = deep_copy(model)
    _double(twin, last[0].name)
    _check(twin, inputs, output.view(-1, 1), last[0].name)
    return twin


def check_logit(model: nn.Module, inputs: Tensor) -> None:
    """Refuse a single output that is no logit but the probability that a sigmoid makes of it.

    It is never below 0, so that all samples would count as of the second class.

    Raises
    ------
    ModelError
        If all outputs lie between 0 and 1 and do not come straight from a layer.
    """
    output = respond(model, inputs)
    if _single_column(output, len(inputs)) and bool(((output >= 0) & (output <= 1)).all()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SoftmaxOutputWarning)  # the error says it, too
            per_class(model, inputs)


def _single_column(output: object, samples: int) -> bool:
    return isinstance(output, Tensor) and output.shape in ((samples, 1), (samples,))


def _double(model: nn.Module, name: str) -> None:
    """Put a layer with two units in the place of one with a single unit."""
    try:
        old = model.get_submodule(name)
    except AttributeError:
        old = model
    if not isinstance(old, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) or old is model:
        raise ModelError(
            f"the network has one output, and its last layer {name!r} is no nn.Linear or "
            f"convolution module: it cannot be given one output per class. To do so, {_WAY_OUT}"
        )
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, _doubled(old))


def _doubled(old: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) -> nn.Module:
    """Return a layer with the units -z/2 and z/2; on "meta" no random number is drawn for it."""
    bias = old.bias
    new: Any
    if isinstance(old, nn.Linear):
        new = nn.Linear(old.in_features, 2, bias is not None, device="meta")
    else:
        kind = next(k for k in (nn.Conv1d, nn.Conv2d, nn.Conv3d) if isinstance(old, k))
        places = (old.kernel_size, old.stride, old.padding, old.dilation)
        new = kind(
            old.in_channels,
            2,
            *places,  # type: ignore[arg-type]
            bias=bias is not None,
            padding_mode=old.padding_mode,
            device="meta",
        )
    new.weight = nn.Parameter(torch.cat([-old.weight, old.weight]).detach() / 2)
    if bias is not None:
        new.bias = nn.Parameter(torch.cat([-bias, bias]).detach() / 2)
    return cast(nn.Module, new.eval())


def _check(twin: nn.Module, inputs: Tensor, column: Tensor, name: str) -> None:
    """Compare the twin's outputs with what they must be."""
    expected = torch.cat([-column, column], 1) / 2
    try:
        with torch.no_grad():
            found = twin(inputs)
        right = found.shape == expected.shape and bool(
            torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * float(column.abs().max()))
        )
    except (RuntimeError, ValueError, IndexError, TypeError):
        right = False
    if not right:
        raise ModelError(
            f"the network has one output, and what it does to it behind the layer {name!r} (such "
            "as a change of shape, a norm or an activation) does not serve two outputs: it cannot "
            f"be given one output per class. To do so, {_WAY_OUT}"
        )
