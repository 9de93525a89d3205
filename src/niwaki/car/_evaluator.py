"""Networks without single units, each evaluated in the cheapest way that is exact."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import suppress
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn

from niwaki.car._channels import NotFollowedError
from niwaki.car._look import Look
from niwaki.car._network import Network, UntraceableError
from niwaki.car._pairs import Pairs
from niwaki.car._splice import Splice
from niwaki.car._whole import Removed, Silenced, silenceable
from niwaki.errors import ModelError
from niwaki.pruning import Group, Removal, operate

__all__ = ["Evaluator"]

_TOLERANCE = 1e-3  # of the largest output, as pruning's own check has it
_PROBED = 8  # images on which each group's evaluation is checked
# Bytes of a batch's largest value: on a CPU, more falls out of the caches and is paged in anew.
_BATCH = {"cpu": 2**21}
_BATCH_ELSEWHERE = 2**28
_FEWEST = 8  # rows of a batch, however large they are, if memory allows
_ALIVE = 4  # values as large as the largest that a whole pass may keep alive at once


_Way: TypeAlias = Splice | Silenced | Removed


class Evaluator:
    """Computes what a network says without single units.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode. Copied, not changed.
    example : Tensor
        Some inputs.
    groups : sequence of Group
        The units, from `niwaki.pruning.couple` of the same network.
    memory : int
        Bytes to stay below.
    paths : sequence of str, optional
        How each group was evaluated before, where that has been checked already.

    Attributes
    ----------
    paths : list of str
        For each group: ``"spliced"``, only what follows the unit is computed anew; ``"silenced"``,
        whole passes; ``"removed"``, whole passes of a physically pruned copy.
    image_bytes, kept_bytes : int
        Memory that a look takes per image while it is made, and afterwards.

    Raises
    ------
    ModelError
        If units of a group cannot be removed at all.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Tensor,
        groups: Sequence[Group],
        memory: int,
        paths: Sequence[str] | None = None,
    ) -> None:
        self.groups = groups
        self._memory = memory
        self._model = copy.deepcopy(model).requires_grad_(False)
        self._example = example[:2]
        self._network: Network | None = None
        if paths is None or "spliced" in paths:
            self._network = self._listed(example[:1])
        possible = [self._possible(group) for group in groups]
        self._ways: list[_Way]
        if paths is None:
            self._ways = [next(ways) for ways in possible]
            self._needs = self._needed()
            if not self._all_right(example[:_PROBED]):
                self._ways = [self._first_right(group, example[:_PROBED]) for group in groups]
        else:
            self._ways = [
                next(way for way in ways if way.path == path)
                for ways, path in zip(possible, paths, strict=True)
            ]
        self._needs = self._needed()
        self._largest = _largest_value(self._model, example[:1])
        kept = (
            sum(prod(self._network.shapes.get(n, ())) for n in self._needs) if self._network else 0
        )
        size = example.element_size()
        self.kept_bytes = size * (kept + example[0].numel())
        self.image_bytes = self.kept_bytes + _ALIVE * self._largest

    @property
    def paths(self) -> list[str]:
        """How each group is evaluated."""
        return [way.path for way in self._ways]

    @property
    def lasts(self) -> bool:
        """Whether units can be taken out for good without listing the operations anew."""
        return all(isinstance(way, Splice) and way.lasts for way in self._ways)

    @torch.no_grad()
    def look(self, inputs: Tensor) -> Look:
        """Run the whole network once and keep what the evaluations need."""
        sizes = [len(group) for group in self.groups]
        reach: list[dict[fx.Node, Tensor]] = [{} for _ in self.groups]
        if self._network is None or not self._needs:
            return Look(inputs, self._model(inputs), {}, reach, sizes)
        read = self._read()

        def note(node: fx.Node, value: Any) -> None:
            for group, reader in read.get(node, ()):
                reach[group][node] = self._splice(group).active(reader, value)

        keep = self._needs | {self._network.output}
        values = self._network.run(inputs, keep, note)
        logits = values[self._network.output]
        if self._network.output not in self._needs:
            del values[self._network.output]
        return Look(inputs, logits, values, reach, sizes)

    @torch.no_grad()
    def remove(self, look: Look, group: int, unit: int) -> None:
        """Take a unit out for good, where that `lasts`; bring a look at all images up to date.

        What follows the unit is computed anew on the images that it can change; all else stays.
        """
        way = self._splice(group)
        assert self._network is not None
        read, output = self._read(), self._network.output
        changed = look.active(group)[unit].nonzero().flatten()
        for part in Pairs(torch.full_like(changed, unit), changed).split(self._rows(way)):
            images = part.images

            def note(node: fx.Node, value: Any, images: Tensor = images) -> None:
                if node in look.values:
                    look.values[node][images] = value
                if node is output:
                    look.logits[images] = value
                for other, reader in read.get(node, ()):
                    look.reach[other][node][:, images] = self._splice(other).active(reader, value)

            way.without(look.values, part, note)
        way.remove(unit)

    def _splice(self, group: int) -> Splice:
        way = self._ways[group]
        assert isinstance(way, Splice)
        return way

    def _read(self) -> dict[fx.Node, list[tuple[int, fx.Node]]]:
        """List for each value the groups whose channels are in it, and what reads them there."""
        found: dict[fx.Node, dict[int, fx.Node]] = {}
        for i, way in enumerate(self._ways):
            for reader in way.readers if isinstance(way, Splice) else ():
                source = reader.args[0]
                assert isinstance(source, fx.Node)
                found.setdefault(source, {})[i] = reader
        return {source: list(groups.items()) for source, groups in found.items()}

    @torch.no_grad()
    def without(self, look: Look, group: int, pairs: Pairs) -> Iterator[tuple[Pairs, Tensor]]:
        """Compute the outputs without the unit of each pair, part by part.

        Parameters
        ----------
        look : Look
            The images that the pairs count.
        group : int
            Which group the units are of.
        pairs : Pairs
            Any number of them.

        Yields
        ------
        Pairs, Tensor
            Some of the pairs, and their outputs of shape (P, classes).
        """
        way = self._ways[group]
        for part in pairs.split(self._rows(way)):
            if isinstance(way, Splice):
                yield part, way.without(look.values, part)
            else:
                yield part, way.without(look.inputs, part)

    def _listed(self, example: Tensor) -> Network | None:
        try:
            return Network(self._model, example)
        except UntraceableError:
            return None

    def _possible(self, group: Group) -> Iterator[_Way]:
        """Make the ways to evaluate a group, the cheapest first."""
        if self._network is not None:
            with suppress(NotFollowedError):
                yield Splice(self._network, group)
        if silenceable(self._model):
            yield Silenced(self._model, group)
        yield Removed(self._model, self._example, group)

    def _needed(self) -> set[fx.Node]:
        return {n for way in self._ways if isinstance(way, Splice) for n in way.needs}

    def _all_right(self, images: Tensor) -> bool:
        """Compare one check for all: a unit of each group gone, silenced and physically."""
        if not all(isinstance(way, Splice) for way in self._ways):
            return False
        assert self._network is not None
        look = self.look(images)
        units = [int(look.active(i).sum(1).argmax()) for i in range(len(self.groups))]
        silent: dict[fx.Node, list[Tensor]] = {}
        for way, unit in zip(self._ways, units, strict=True):
            assert isinstance(way, Splice)
            for node in way.readers:
                silent.setdefault(node, []).append(way.channels(node, unit))
        removals = [Removal(g.root, g.units[u]) for g, u in zip(self.groups, units, strict=True)]
        smaller = copy.deepcopy(self._model)
        try:
            operate(smaller, self._example, removals)
        except ModelError:
            return False  # one by one, it shows which
        with torch.no_grad():
            found = self._network.silenced(
                images, {node: torch.cat(parts) for node, parts in silent.items()}
            )
            return _agree(found, smaller(images))

    def _first_right(self, group: Group, images: Tensor) -> _Way:
        """Choose the first way that gives the outputs of the physically pruned network."""
        ways = list(self._possible(group))
        removed = ways[-1]
        assert isinstance(removed, Removed)
        for way in ways[:-1]:
            with torch.no_grad():
                pairs, found = self._probe(way, images)
                if _agree(found, removed.remove(int(pairs.units[0]))(images)):
                    return way
        return removed

    def _probe(self, way: _Way, images: Tensor) -> tuple[Pairs, Tensor]:
        """Take out one unit: the one that most images activate, where that is known."""
        everywhere = torch.arange(len(images), device=images.device)
        if not isinstance(way, Splice):
            pairs = Pairs(torch.zeros_like(everywhere), everywhere)
            return pairs, way.without(images, pairs)
        assert self._network is not None
        active: list[Tensor] = []
        readers = {node.args[0]: node for node in way.readers}

        def note(node: fx.Node, value: Any) -> None:
            if node in readers:
                active.append(way.active(readers[node], value))

        values = self._network.run(images, way.needs, note)
        busiest = int(torch.stack(active).any(0).sum(1).argmax())
        pairs = Pairs(torch.full_like(everywhere, busiest), everywhere)
        return pairs, way.without(values, pairs)

    def images(self, wanted: int) -> int:
        """Return how many images a look may have: at most those wanted."""
        return max(1, min(wanted, self._memory // 2 // self.image_bytes))

    def _rows(self, way: _Way) -> int:
        """Return how many pairs go through the network as one batch."""
        row = _ALIVE * self._largest
        largest = self._largest
        if isinstance(way, Splice):
            row, largest = way.row_bytes, way.largest_bytes
        batch = _BATCH.get(self._example.device.type, _BATCH_ELSEWHERE)
        return max(1, min(self._memory // 2 // row, max(_FEWEST, batch // largest)))


def _agree(found: Tensor, expected: Tensor) -> bool:
    size = max(float(expected.abs().max()), 1e-6)
    return float((found - expected).abs().max()) <= _TOLERANCE * size


def _largest_value(model: nn.Module, example: Tensor) -> int:
    """Bytes of the largest output of a module, or of the input, for one image."""
    sizes = [example.numel() * example.element_size()]

    def note(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel() * output.element_size())

    handles = [module.register_forward_hook(note) for module in model.modules()]
    try:
        with torch.no_grad():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    return max(sizes)
