"""Physical removal, checked against the same network with the units silenced."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.errors import ModelError
from niwaki.models.zoo import ShortcutA
from niwaki.pruning._graph import dependency_graph, is_output, prune_outputs
from niwaki.pruning._plan import Plan, Removal

__all__ = ["operate", "replay"]

# Norms over channels give other numbers when channels are gone than when they are silent.
_NORMS_OVER_CHANNELS = (nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm)
_READERS = (nn.modules.conv._ConvNd, nn.Linear, ShortcutA)
TOLERANCE = 1e-3


def operate(model: nn.Module, example: Tensor, removals: Sequence[Removal]) -> None:
    """Remove units of a network that is ours, with their norms and the inputs behind them.

    Parameters
    ----------
    model : nn.Module
        Changed in place.
    example : Tensor
        Inputs to trace and to check with.
    removals : sequence of Removal
        What goes.

    Raises
    ------
    ModelError
        If the smaller network does not compute what the old one does without the units: its
        channels are moved about in a way that cannot be followed.
    """
    graph = dependency_graph(model, example)
    groups = [prune_outputs(graph, model.get_submodule(r.layer), r.channels) for r in removals]
    with torch.no_grad(), _bypassed(model), _silenced(graph, groups):
        expected = model(example)
    try:
        _prune(graph, model, removals)
        with torch.no_grad(), _bypassed(model):
            found = model(example)
    except Exception as error:
        if type(error) is LookupError:  # removals that make no sense: not the network's fault
            raise
        raise _lost(removals, f"{type(error).__name__}: {error}") from error
    if found.shape != expected.shape:
        raise _lost(removals, f"the output became {tuple(found.shape)}")
    difference = float((found - expected).abs().max())
    if not difference <= TOLERANCE * max(float(expected.abs().max()), 1e-6):  # nor NaN
        raise _lost(removals, f"an output differs by {difference:.3g}")


def replay(model: nn.Module, example: Tensor, plan: Plan) -> None:
    """Do on a fresh network, in place, what a plan says; weights are not looked at."""
    for step in plan.steps:
        _prune(dependency_graph(model, example), model, step)


def _prune(graph: Any, model: nn.Module, removals: Sequence[Removal]) -> None:
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    for removal in removals:
        module = model.get_submodule(removal.layer)
        _check(graph, module, removal)
        prune_outputs(graph, module, removal.channels).prune()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(flags[name])


def _check(graph: Any, module: nn.Module, removal: Removal) -> None:
    """Refuse what torch-pruning would do in silence."""
    if not isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
        raise LookupError(f"{removal.layer!r} is no convolution or linear layer")
    width, channels = graph.get_out_channels(module), set(removal.channels)
    if not channels <= set(range(width)) or len(channels) in (0, width):
        raise LookupError(
            f"{removal.layer!r} has {width} channels: {list(removal.channels)} cannot be removed"
        )


@contextmanager
def _bypassed(model: nn.Module) -> Iterator[None]:
    """Let norms over channels hand on their inputs."""
    norms = [module for module in model.modules() if isinstance(module, _NORMS_OVER_CHANNELS)]
    handles = [norm.register_forward_hook(lambda _, args, __: args[0]) for norm in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _silenced(graph: Any, groups: Sequence[Any]) -> Iterator[None]:
    """Zero the doomed channels where they enter the layers that stay."""
    silent: dict[nn.Module, list[int]] = {}
    for group in groups:
        for item in group:
            module = item.dep.target.module
            if isinstance(module, _READERS) and not is_output(graph, item):
                silent.setdefault(module, []).extend(item.idxs)

    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0].clone()
        x.movedim(-1 if isinstance(module, nn.Linear) else 1, 0)[silent[module]] = 0
        return (x, *args[1:])

    handles = [module.register_forward_pre_hook(hook) for module in silent]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _lost(removals: Sequence[Removal], what: str) -> ModelError:
    layers = ", ".join(repr(r.layer) for r in removals[:3])
    more = f" and {len(removals) - 3} more layers" if len(removals) > 3 else ""
    return ModelError(
        f"removing channels of {layers}{more} does not give the network without them ({what}): it "
        "moves channels about in a way that cannot be followed, such as padding or indexing the "
        "channel dimension in its forward. Keep such layers with ignore=[...], or put that step "
        "into a module of its own and register a pruner for it with torch-pruning"
    )
