"""Whether two networks are the same: a short hash of what they are made of."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from niwaki.hashing import content, without_addresses
from niwaki.processes import check_same, size

__all__ = ["check_same_network", "fingerprint"]

_PASSING = {"training"}  # attributes of a module that are no part of what it computes
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)


def fingerprint(model: nn.Module) -> str:
    """Return a short hash of a network: of its modules, their settings, parameters and buffers.

    Settings are what a module prints of itself and its plain attributes, such as a stride or an
    epsilon. Two networks of equal weights that differ in a stride or an activation differ.
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
    known = {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and name not in _PASSING and _is_plain(value)
    }
    return repr(sorted(known.items()))


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_is_plain(entry) for entry in value)
    return isinstance(value, _PLAIN)
