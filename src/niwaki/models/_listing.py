"""Listing a network's operations without a change to torch's own classes, so that threads may."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import fx, nn

from niwaki.models.zoo import ShortcutA

__all__ = ["list_operations"]

_LAYERS = (ShortcutA, nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._BatchNorm)


def list_operations(model: nn.Module) -> fx.Graph:
    """List what a network does with its first argument; the others have their defaults.

    `torch.fx` patches `nn.Module` for the whole process while it traces, which breaks every other
    thread. Here only the classes of this network's own modules are replaced for a moment.

    Parameters
    ----------
    model : nn.Module
        A copy that is ours: no other thread may use it meanwhile.

    Raises
    ------
    Exception
        Whatever the network's own code does with a stand-in for a tensor.
    """
    return _Tracer().listed(model)


class _Tracer(fx.Tracer):
    """Sees torch's own modules as operations, and those of ours that pruning knows."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _LAYERS) or super().is_leaf_module(m, module_qualified_name)

    def path_of_module(self, mod: nn.Module) -> str:
        return self.submodule_paths[mod]  # type: ignore[index]

    def listed(self, root: nn.Module) -> fx.Graph:
        """List the operations of a network that is ours."""
        self.root = root
        self.graph = fx.Graph(tracer_cls=type(self))
        self.submodule_paths = {module: name for name, module in root.named_modules()}
        self.tensor_attrs = {}
        image = self.create_proxy("placeholder", "image", (), {})
        with self._telling(root):
            result = root.forward(image)
            self.create_node("output", "output", (self.create_arg(result),), {})
        return self.graph

    @contextmanager
    def _telling(self, root: nn.Module) -> Iterator[None]:
        """Let the modules tell when they are called, and when their parameters are taken."""
        proxies: dict[str, fx.Proxy] = {}
        telling: dict[type, type] = {}
        changed = [(module, module.__class__) for module in root.modules()]
        try:
            for module, kind in changed:
                if kind not in telling:
                    telling[kind] = self._telling_class(kind, proxies)
                module.__class__ = telling[kind]
            yield
        finally:
            for module, kind in changed:
                module.__class__ = kind

    def _telling_class(self, kind: type, proxies: dict[str, fx.Proxy]) -> type:
        plain_call: Callable[..., Any] = kind.__call__
        plain_get: Callable[..., Any] = kind.__getattr__  # type: ignore[attr-defined]

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            def forward(*args: Any, **kwargs: Any) -> Any:
                return plain_call(module, *args, **kwargs)

            return self.call_module(module, forward, args, kwargs)

        def get(module: nn.Module, name: str) -> Any:
            return self.getattr(name, plain_get(module, name), proxies)

        own = {"__call__": call, "__getattr__": get, "__module__": kind.__module__}
        return type(kind.__name__, (kind,), own)
