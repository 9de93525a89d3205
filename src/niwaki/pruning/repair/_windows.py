"""Which layers feed one other layer alone, so that they can be fitted together with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import fx

__all__ = ["Window", "windows"]


@dataclass(frozen=True)
class Window:
    """A layer, the layers whose outputs nothing else reads, and what lies between them.

    Attributes
    ----------
    nodes : tuple of fx.Node
        The operations from the feeding layers to the layer that reads them, which is the last.
    layers : tuple of fx.Node
        Those of them that are fitted, the reading layer last.
    sources : tuple of fx.Node
        What these operations read from outside.
    """

    nodes: tuple[fx.Node, ...]
    layers: tuple[fx.Node, ...]
    sources: tuple[fx.Node, ...]


def windows(nodes: Sequence[fx.Node], fits: Callable[[fx.Node], bool]) -> dict[fx.Node, Window]:
    """Find the window of every layer that can be fitted and is fed by others alone.

    Parameters
    ----------
    nodes : sequence of fx.Node
        All operations, in the order in which they run.
    fits : callable
        Whether an operation is a layer that can be fitted.

    Returns
    -------
    dict of fx.Node to Window
        By the reading layer's operation.
    """
    found = {}
    for place, reader in enumerate(nodes):
        if fits(reader):
            window = _window(nodes[:place], reader, fits)
            if len(window.layers) > 1:
                found[reader] = window
    return found


def _window(before: Sequence[fx.Node], reader: fx.Node, fits: Callable[[fx.Node], bool]) -> Window:
    between: set[fx.Node] = {reader}
    feeding: set[fx.Node] = set()
    for node in reversed(before):  # users come before what they use
        if node.op in ("placeholder", "get_attr") or not between.issuperset(node.users):
            continue
        (feeding if fits(node) else between).add(node)
    reached: set[fx.Node] = set(feeding)
    for node in before:
        if node in between and reached.intersection(node.all_input_nodes):
            reached.add(node)
    inside = (*(node for node in before if node in reached), reader)
    layers = (*(node for node in inside if node in feeding), reader)
    read = dict.fromkeys(source for node in inside for source in node.all_input_nodes)
    return Window(inside, layers, tuple(source for source in read if source not in inside))
