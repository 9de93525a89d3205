"""A copy of a network as a list of operations that can be run piecewise."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from niwaki.models._plain_copy import deep_copy
from niwaki.models._steady import varied
from niwaki.models._tracing import list_operations

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_MAKE_WEIGHTS = (WeightNorm, SpectralNorm, BasePruningMethod)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fold_norms(graph: fx.Graph, modules: dict[str, nn.Module]) -> None:
    """Fold each batch norm into the layer before it, where that is read by nothing else."""
    calls: dict[str, int] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls[str(node.target)] = calls.get(str(node.target), 0) + 1
    for node in list(graph.nodes):
        if node.op != "call_module" or type(modules[str(node.target)]) not in _NORMS:
            continue
        before, norm = node.args[0], modules[str(node.target)]
        if not isinstance(before, fx.Node) or before.op != "call_module":
            continue
        layer, name = modules[str(before.target)], str(before.target)
        if len(before.users) > 1 or calls[name] > 1 or norm.running_mean is None:
            continue
        if type(layer) in _CONVOLUTIONS:
            modules[name] = fuse_conv_bn_eval(layer, norm)  # type: ignore[type-var, arg-type]
        elif type(layer) is nn.Linear and type(norm) is nn.BatchNorm1d:
            modules[name] = fuse_linear_bn_eval(layer, norm)
        else:
            continue
        node.replace_all_uses_with(before)
        graph.erase_node(node)


_IN_PLACE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}

_FEW, _MORE = 3, 5  # rows of two batches to learn from: not 1, which broadcasts


class UntraceableError(Exception):
    """The network's operations cannot be listed, or are not what the network does."""


class Network:
    """The operations of a network in evaluation mode, none of them in place.

    Parameters
    ----------
    model : nn.Module
        Copied, not changed.
    example : Tensor
        A batch of inputs to learn the shapes from and to compare with the model.
    fold : bool
        Whether batch norms are folded into the layers before them, so that fewer operations run.

    sized : bool
        Whether code that asks for shapes may get those of the example, where it cannot be followed
        otherwise: the operations are then those for inputs of this size alone.

    Attributes
    ----------
    modules : dict of str to nn.Module
        The copy's own, by name.
    nodes : list of fx.Node
        In the order in which they run.
    shapes : dict of fx.Node to tuple of int
        Shape of one row of each tensor that has one row per image.
    constants : set of fx.Node
        Those that do not depend on the inputs.
    output : fx.Node
        The one whose value the network returns.

    Raises
    ------
    UntraceableError
        With the reason.
    """

    def __init__(
        self, model: nn.Module, example: Tensor, *, fold: bool = False, sized: bool = False
    ) -> None:
        try:
            self._list(model, example, None, fold=fold)
        except UntraceableError:
            if not sized:
                raise
            self._list(model, example, _probes(example), fold=fold)

    def _list(self, model: nn.Module, example: Tensor, known: Tensor | None, *, fold: bool) -> None:
        own = deep_copy(model)
        _drop_hooks(own)
        try:
            graph = list_operations(own, known)
        except Exception as error:  # whatever the network's own code does with a stand-in
            raise UntraceableError(f"{type(error).__name__}: {error}") from error
        self.modules = dict(own.named_modules())
        _out_of_place(graph, self.modules)
        _of_any_layout(graph)
        if fold:
            fold_norms(graph, self.modules)
        _drop_unused(graph)
        for module in self.modules.values():
            if isinstance(module, nn.Conv2d):  # which CPU and GPU convolve fastest so
                module.to(memory_format=torch.channels_last)
        self._root = own
        self.nodes = list(graph.nodes)
        self.input = next(node for node in self.nodes if node.op == "placeholder")
        last = self.nodes.pop()
        if not isinstance(last.args[0], fx.Node):
            raise UntraceableError("it does not return one tensor")
        self.output = last.args[0]
        self.constants: set[fx.Node] = set()
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}
        self._learn(model, example)

    def _learn(self, model: nn.Module, example: Tensor) -> None:
        for node in self.nodes:
            if node is not self.input and all(n in self.constants for n in node.all_input_nodes):
                self.constants.add(node)
        rows = _probes(example)
        few, order = rows[:_FEW], torch.tensor([2, 0, 1, 4, 3], device=rows.device)
        with torch.no_grad():
            try:
                values, others = self.run(few, self.nodes), self.run(rows[order], self.nodes)
                alone = self.run(rows[:1], self.nodes)
                expected = model(few.clone())
            except Exception as error:
                raise UntraceableError(f"{type(error).__name__}: {error}") from error
        if not _close(values[self.output], expected):
            hooked = ", which hooks may change" if _hooked(model) else ""
            raise UntraceableError(
                f"its listed operations give other outputs than the network{hooked}"
            )
        for node, value in values.items():
            if not isinstance(value, Tensor) or node in self.constants:
                continue
            other = others[node]
            if value.dim() == 0 or len(value) != _FEW or len(other) != len(rows):
                raise UntraceableError(f"{node.name} has no row for each image")
            if alone[node].shape != value[:1].shape:
                raise UntraceableError(f"{node.name} makes another shape of a single image")
            if not _close(value[order[:_FEW]], other[:_FEW]):
                raise UntraceableError(f"{node.name} brings images of a batch together")
            self.shapes[node] = tuple(value.shape[1:])

    def module(self, node: fx.Node) -> nn.Module | None:
        """Return the module that a node calls, if it calls one."""
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def run(
        self,
        inputs: Tensor,
        keep: Collection[fx.Node],
        look: Callable[[fx.Node, Any], None] | None = None,
    ) -> dict[fx.Node, Any]:
        """Run the whole network and return the values that are to be kept.

        Parameters
        ----------
        inputs : Tensor
            Shape (N, ...).
        keep : collection of fx.Node
            Whose values are returned.
        look : callable, optional
            Told each operation and its value.
        """
        env: dict[fx.Node, Any] = {}
        release = last_uses(self.nodes, keep)
        for node in self.nodes:
            env[node] = inputs if node is self.input else self.call(node, env)
            if look is not None:
                look(node, env[node])
            for done in release[node]:
                del env[done]
        return env

    def silenced(self, inputs: Tensor, silent: Mapping[fx.Node, Tensor]) -> Tensor:
        """Return the outputs where some operations see some channels of their input as zeros."""
        env: dict[Any, Any] = {}
        for node in self.nodes:
            if node is self.input:
                env[node] = inputs
                continue
            seen = env
            if node in silent:
                source = env[node.args[0]]
                seen = {**env, node.args[0]: source.index_fill(1, silent[node], 0)}
            env[node] = self.call(node, seen)
        return env[self.output]  # type: ignore[no-any-return]

    def call(self, node: fx.Node, env: Mapping[fx.Node, Any]) -> Any:
        """Run one operation on values that are there."""
        if node.op == "placeholder":
            return node.args[0] if node.args else None
        if node.op == "get_attr":
            return _attribute(self._root, str(node.target))
        args = fx.node.map_arg(node.args, env.__getitem__)
        kwargs = fx.node.map_arg(node.kwargs, env.__getitem__)
        if node.op == "call_module":
            return self.modules[str(node.target)](*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)


def _hooked(model: nn.Module) -> list[dict[int, Any]]:
    """Return the hooks of all modules, but for those that make weights of parameters."""
    found = []
    for module in model.modules():
        makes = any(isinstance(h, _MAKE_WEIGHTS) for h in module._forward_pre_hooks.values())
        own = [module._forward_hooks, *([] if makes else [module._forward_pre_hooks])]
        found += [hooks for hooks in own if hooks]
    return found


def _drop_hooks(own: nn.Module) -> None:
    """Take a caller's hooks off a copy: what they change cannot be told from what layers do.

    Where they change something, the operations that are listed give other outputs.
    """
    for hooks in _hooked(own):
        hooks.clear()


def _probes(example: Tensor) -> Tensor:
    """Make images that differ from each other, however few and plain the given ones are."""
    images = torch.cat([example] * _MORE)[:_MORE]
    return varied(images) if images.is_floating_point() else images


def _close(found: Tensor, expected: Tensor) -> bool:
    """Whether two values are the same but for rounding."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if not (found.is_floating_point() or found.is_complex()) or not found.numel():
        return torch.equal(found, expected)
    size = float(expected.abs().nan_to_num(0, 0, 0).max())
    share = max(1e-4, 8 * torch.finfo(found.dtype).eps)
    return torch.allclose(found, expected, rtol=0, atol=share * size, equal_nan=True)


def last_uses(nodes: Sequence[fx.Node], keep: Collection[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """List for each operation the values that nobody needs after it."""
    release: dict[fx.Node, list[fx.Node]] = {node: [] for node in nodes}
    kept, seen = set(keep), set()
    for node in reversed(nodes):
        for used in (*node.all_input_nodes, node):
            if used in release and used not in seen and used not in kept:
                release[node].append(used)
            seen.add(used)
    return release


def _attribute(root: nn.Module, path: str) -> Any:
    found: Any = root
    for name in path.split("."):
        found = getattr(found, name)
    return found


def _drop_unused(graph: fx.Graph) -> None:
    for node in reversed(graph.nodes):
        if not node.users and node.op not in ("placeholder", "output"):
            graph.erase_node(node)


def _out_of_place(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> None:
    """Let every operation make a new value, so that the old ones can be kept."""
    for module in modules.values():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]
    for node in graph.nodes:
        if "inplace" in node.kwargs:
            node.kwargs = {**node.kwargs, "inplace": False}
        if node.op == "call_function" and node.target in _IN_PLACE:
            node.target = _IN_PLACE[node.target]
        name = str(node.target)
        if node.op == "call_method" and name.endswith("_") and hasattr(Tensor, name[:-1]):
            node.target = name[:-1]


_VIEWS = {"view": "reshape", "view_as": "reshape_as"}


def _of_any_layout(graph: fx.Graph) -> None:
    """Let values be shaped anew however they lie in memory, which is not as in the network.

    There, `view` may rely on convolutions that keep channels first.
    """
    for node in graph.nodes:
        kind = any(isinstance(arg, torch.dtype) for arg in (*node.args, *node.kwargs.values()))
        if node.op == "call_method" and node.target in _VIEWS and not kind:
            node.target = _VIEWS[node.target]
