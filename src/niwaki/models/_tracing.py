"""What a network does, operation by operation, listed by running its code on stand-ins."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from niwaki.models.zoo import ShortcutA

__all__ = ["list_operations"]

_LAYERS = (ShortcutA, nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._BatchNorm)


def list_operations(model: nn.Module, example: Tensor | None = None) -> fx.Graph:
    """List what a network does with its first argument; the others have their defaults.

    `torch.fx` patches `nn.Module` for the whole process while it traces, which breaks every other
    thread. Here only the classes of this network's own modules are replaced for a moment.

    Parameters
    ----------
    model : nn.Module
        A copy that is ours: no other thread may use it meanwhile.
    example : Tensor, optional
        A batch of inputs. With it, code that asks for a shape gets numbers, and may branch on them:
        what is listed is then right for this network and inputs of this size alone. Only the number
        of samples stays open.

    Raises
    ------
    Exception
        Whatever the network's own code does with a stand-in for a tensor.
    """
    return (_Tracer() if example is None else _KnowingTracer(example)).listed(model)


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


class _KnowingTracer(_Tracer):
    """Runs every operation on an example as well, so that shapes are known."""

    def __init__(self, example: Tensor) -> None:
        super().__init__()
        self.example = example

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Make a stand-in that will know its value."""
        return _Known(node, self)

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any
    ) -> fx.Proxy:
        """List an operation, and run it."""
        made: Any = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        with torch.no_grad():
            made.value = self._value(kind, target, _values(args), _values(kwargs))
        return made  # type: ignore[no-any-return]

    def _value(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        if kind == "placeholder":
            return self.example.clone()
        if kind == "get_attr":
            return self._attribute(str(target))
        if kind == "call_function":
            return target(*args, **kwargs)
        if kind == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        module = self._attribute(str(target))
        with _untold(module):
            return module(*args, **kwargs)

    def _attribute(self, path: str) -> Any:
        """Find a module, parameter or buffer, past the classes that tell."""
        found: Any = self.root
        for name in path.split("."):
            held = (found._modules, found._parameters, found._buffers, vars(found))
            found = next(values[name] for values in held if name in values)
        return found


@contextmanager
def _untold(module: nn.Module) -> Iterator[None]:
    """Give a module and what is in it their own classes for a moment."""
    telling = [(one, one.__class__) for one in module.modules()]
    try:
        for one, kind in telling:
            one.__class__ = kind.__mro__[1]
        yield
    finally:
        for one, kind in telling:
            one.__class__ = kind


class _Known(fx.Proxy):
    """A stand-in for a value that is known for the example."""

    value: Any = None

    @property
    def shape(self) -> Any:
        """Its shape; the number of samples is a stand-in again."""
        if not isinstance(self.value, Tensor):
            return super().__getattr__("shape")
        tracer: Any = self.tracer
        numbers = list(self.value.shape)
        if numbers and numbers[0] == len(tracer.example):
            numbers[0] = tracer.create_proxy("call_method", "size", (self, 0), {})
        return _Shape(numbers)

    def size(self, dim: int | None = None) -> Any:
        """As `shape`."""
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        """Count its dimensions."""
        return int(self.value.dim())

    @property
    def ndim(self) -> int:
        """Count its dimensions."""
        return self.dim()

    @property
    def dtype(self) -> Any:
        """Its type."""
        return self.value.dtype

    @property
    def device(self) -> Any:
        """Where it is."""
        return self.value.device

    @property
    def is_cuda(self) -> bool:
        """Whether it is on a GPU."""
        return bool(self.value.is_cuda)


class _Shape(tuple[Any, ...]):
    """Numbers of which the first may be a stand-in, which is the same in all shapes."""

    __slots__ = ()
    __hash__ = tuple.__hash__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, tuple) and _numbers(self) == _numbers(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __fx_create_arg__(self, tracer: fx.Tracer) -> Any:
        return tuple(tracer.create_arg(number) for number in self)

    def numel(self) -> Any:
        """Multiply them."""
        return math.prod(self)


def _numbers(shape: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(n.value if isinstance(n, _Known) else n for n in shape)


def _values(args: Any) -> Any:
    """Put what is known in place of stand-ins."""
    return fx.node.map_aggregate(args, _value_of)


def _value_of(arg: Any) -> Any:
    if isinstance(arg, fx.proxy.Attribute):
        return getattr(_value_of(arg.root), arg.attr)
    if isinstance(arg, _Known):
        return arg.value
    return tuple(map(_value_of, arg)) if isinstance(arg, _Shape) else arg
