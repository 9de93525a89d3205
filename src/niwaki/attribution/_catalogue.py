"""The catalogue of methods: a decorator registers, a name creates, and one call explains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn

from niwaki.attribution._method import Method
from niwaki.attribution._targets import Target
from niwaki.contexts import undisturbed
from niwaki.errors import suggested
from niwaki.options import make_with, split_options
from niwaki.ranges import checked
from niwaki.runs import described

Factory = Callable[..., Method]
F = TypeVar("F", bound=Factory)
_CATALOGUE: dict[str, Factory] = {}


def register(name: str) -> Callable[[F], F]:
    """Register a class or function that makes a method from a model and options."""

    def decorator(factory: F) -> F:
        _CATALOGUE[name] = factory
        return factory

    return decorator


def names() -> list[str]:
    """Return the names of all methods, sorted."""
    return sorted(_CATALOGUE)


def describe(name: str) -> str:
    """Return the first line of a method's documentation."""
    return (_lookup(split_options(name)[0]).__doc__ or "").strip().splitlines()[0]


def create(name: str, model: nn.Module, **options: Any) -> Method:
    """Make the method of that name for a model.

    Parameters
    ----------
    name : str
        One of `names`; with options as in ``"smoothgrad:samples=8,sigma=0.1"``.
    model : nn.Module
        In evaluation mode. It is read, never changed.
    **options
        The method's own; see its documentation.

    Raises
    ------
    ValueError
        For a name that does not exist.
    UnknownOptionError
        For an option that the method does not have.
    """
    plain, told = split_options(name)
    return make_with(f"method {plain!r}", _lookup(plain), model, **{**told, **options})


def told_apart(name: str) -> str:
    """Name a method so that another one that is registered by its name has another."""
    mark = str(described(_lookup(split_options(name)[0]))).rpartition(" ")[2]
    return f"{name} {mark}"


def _lookup(name: str) -> Factory:
    if name not in _CATALOGUE:
        hint = suggested(name, _CATALOGUE)
        raise ValueError(f"there is no method {name!r}; {hint}All: {', '.join(names())}")
    return _CATALOGUE[name]


@undisturbed
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
