"""Which name a network goes by, told from its class, its configuration and its shapes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from niwaki.models import _torchvision, zoo
from niwaki.models._origin import Origin

__all__ = ["recognise"]

Shapes = Mapping[str, Sequence[int]]


def recognise(model: nn.Module, shapes: Shapes) -> Origin | None:
    """Return what builds a network, where that can be told for sure.

    Parameters
    ----------
    model
        The network, or what pruning has made of it.
    shapes
        Shape of each parameter before pruning.

    Returns
    -------
    Origin or None
        A name of torchvision, timm or the zoo whose network has these very shapes, or a class of
        one's own that takes no arguments.
    """
    module, name = type(model).__module__, type(model).__qualname__
    classes = list(shapes.values())[-1][0] if shapes else None
    if classes is None:
        return None
    if module.startswith("timm."):
        config = getattr(model, "pretrained_cfg", None) or {}
        classes = getattr(model, "num_classes", classes)
        return _fitting(f"timm:{config.get('architecture')}", classes, shapes, _timm)
    if module.startswith("torchvision.models."):
        found = [
            _fitting(f"torchvision:{candidate}", classes, shapes, _from_torchvision)
            for candidate in _torchvision.names(module)
        ]
        origins = [origin for origin in found if origin is not None]
        random = not getattr(model, "transform_input", True)
        return Origin(origins[0].model, classes, random=random) if len(origins) == 1 else None
    if module == zoo.__name__:
        found = [
            _fitting(f"{module}:{builder}", classes, shapes, _from_zoo) for builder in zoo.__all__
        ]
        return next((origin for origin in found if origin is not None), None)
    if module.startswith(("torch.", "__main__")) or not name.isidentifier() or _needs(model):
        return None
    return Origin.of(f"{module}:{name}")


def _fitting(
    spec: str, classes: int, shapes: Shapes, build: Callable[[str, int], nn.Module]
) -> Origin | None:
    """Return the origin if it gives these shapes; nothing is allocated."""
    # Whatever a builder raises, it is not the one.
    with suppress(Exception), torch.device("meta"), torch.random.fork_rng([]):
        fresh = build(spec.rpartition(":")[2], classes)
        found = {name: list(p.shape) for name, p in fresh.named_parameters()}
        if found == {name: list(shape) for name, shape in shapes.items()}:
            return Origin(spec, classes)
    return None


def _timm(name: str, classes: int) -> nn.Module:
    import timm

    made: nn.Module = timm.create_model(name, num_classes=classes)
    return made


def _from_torchvision(name: str, classes: int) -> nn.Module:
    return _torchvision.rebuild(name, classes, random=False)


def _from_zoo(name: str, classes: int) -> nn.Module:
    builder: Any = getattr(zoo, name)
    made: nn.Module = builder(num_classes=classes)
    return made


def _needs(model: nn.Module) -> bool:
    """Whether a class cannot be made without arguments."""
    try:
        parameters = inspect.signature(type(model)).parameters.values()
    except (TypeError, ValueError):
        return True
    free = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return any(p.default is p.empty and p.kind not in free for p in parameters)
