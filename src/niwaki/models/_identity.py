"""Which network this is: the fingerprint of its weights, and what is known to build it."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from niwaki.hashing import content, without_addresses
from niwaki.models import _torchvision, zoo
from niwaki.models._origin import Origin
from niwaki.processes import check_same, size

__all__ = ["check_same_network", "fingerprint", "own_attributes", "recognise"]

_OF_ALL = frozenset(vars(nn.Module()))
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)


def fingerprint(model: nn.Module) -> str:
    """Return a short hash of a network: of its modules, their settings, parameters and buffers.

    Settings are what a module prints of itself, its plain attributes, such as a stride or an
    epsilon, and the names of functions among them. Two networks of equal weights that differ in a
    stride or an activation differ.
    """
    sha = hashlib.sha256()
    for name, module in model.named_modules(remove_duplicate=False):
        kind = type(module).__qualname__
        sha.update(f"{name}={kind}({_own_text(module)}){_settings(module)};".encode())
        for place, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                sha.update(f"{place}{tuple(tensor.shape)}{tensor.dtype}".encode())
                sha.update(content(tensor))
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):  # packed weights of quantised layers, and the like
            sha.update(f"{name}{without_addresses(repr(value))}".encode())
    return sha.hexdigest()[:16]


def own_attributes(module: nn.Module) -> dict[str, Any]:
    """Return the attributes of a module, but for those that every module has."""
    return {name: value for name, value in vars(module).items() if name not in _OF_ALL}


def check_same_network(model: nn.Module) -> None:
    """Refuse to go on where processes that work together have different networks.

    Raises
    ------
    NiwakiError
        Naming the first module that differs.
    """
    if size() > 1:
        modules = model.named_modules(remove_duplicate=False)
        check_same(
            "network",
            [(name or type(model).__name__, _mark(module)) for name, module in modules],
        )


def _mark(module: nn.Module) -> str:
    """Return a hash of what a module has beside its children."""
    sha = hashlib.sha256(f"{type(module).__qualname__}({_own_text(module)})".encode())
    sha.update(_settings(module).encode())
    for place, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None:
            sha.update(f"{place}{tuple(tensor.shape)}{tensor.dtype}".encode() + content(tensor))
    return sha.hexdigest()[:16]


def _own_text(module: nn.Module) -> str:
    try:
        text = module.extra_repr()
        if isinstance(module, (torch.fx.GraphModule, torch.jit.ScriptModule)):
            text += str(module.code)
        return without_addresses(text)
    except Exception:  # somebody's own, which fails: its attributes must do
        return ""


def _settings(module: nn.Module) -> str:
    # None is what stands where a pass keeps something before there was one.
    own = {name: one for name, one in own_attributes(module).items() if one is not None}
    known = {name: _told(one) for name, one in own.items() if _is_plain(one)}
    return repr(sorted(known.items()))


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_is_plain(entry) for entry in value)
    if isinstance(value, partial):
        return all(map(_is_plain, (value.func, *value.args, *value.keywords.values())))
    return isinstance(value, (*_PLAIN, FunctionType, BuiltinFunctionType))


def _told(value: Any) -> Any:
    """Return a setting as something whose text is the same in every process."""
    if isinstance(value, (FunctionType, BuiltinFunctionType)):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, (tuple, list)):
        return type(value)(map(_told, value)) if type(value) in (tuple, list) else value
    if isinstance(value, partial):
        keywords = {name: _told(one) for name, one in value.keywords.items()}
        return [_told(value.func), list(map(_told, value.args)), keywords]
    return value


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
