"""Networks without single units, each evaluated in the cheapest path that is exact."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn

from niwaki.car._channels import NotFollowedError
from niwaki.car._full_pass import Cut, Masked, Removed
from niwaki.car._images import ForwardPass
from niwaki.car._splice import Pairs, Splice
from niwaki.car._units import outputs, single_channels, uncovered_channels
from niwaki.errors import ModelError, NothingToPruneError
from niwaki.models import deep_copy, respond
from niwaki.models.network import Network, UntraceableError
from niwaki.pruning import Group, Removal, operate

_TOLERANCE = 1e-3  # of the largest output, as pruning's own check has it
_PROBED = 8  # images on which each group's evaluation is checked
_COMPARED = 3  # units of each group that are compared
# Bytes of a batch's largest value: on a CPU, more falls out of the caches and is paged in anew.
_BATCH = {"cpu": 2**21}
_BATCH_ELSEWHERE = 2**28
_FEWEST = 8  # rows of a batch, however large they are, if memory allows
_ALIVE = 4  # values as large as the largest that a whole pass may keep alive at once

_Path: TypeAlias = Splice | Removed | Cut | Masked


class Evaluator:
    """Computes what a network returns without single units.

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
    known_paths : sequence of str, optional
        How each group was evaluated before, where that has been checked already.
    masks : mapping of str to int
        All layers that are judged, with their widths, in the order of the signal. Channels that no
        group which can lose a unit has are masked one by one.

    Attributes
    ----------
    groups : list of Group
        Those that can be evaluated: the given ones without those that cannot lose a unit, and the
        masked layers.
    kept_bytes : int
        Memory that what is kept of a forward pass takes per image.

    Raises
    ------
    NothingToPruneError
        If no group is left.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Tensor,
        groups: Sequence[Group],
        memory: int,
        known_paths: Sequence[str] | None = None,
        masks: Mapping[str, int] | None = None,
    ) -> None:
        self._memory = memory
        self._model = deep_copy(model).requires_grad_(False)
        self._example = example[:2]
        self._network: Network | None = None
        if known_paths is None or Splice.path in known_paths:
            with suppress(UntraceableError):
                self._network = Network(self._model, example[:1], fold=True)
        if known_paths is None:
            paths = self._choose_paths(groups, example[:_PROBED])
        else:
            paths = [
                self._splice_of(group) if known == Splice.path else self._removed(group)
                for group, known in zip(groups, known_paths, strict=True)
            ]
        found = [(g, path) for g, path in zip(groups, paths, strict=True) if path is not None]
        if masks is not None:
            found += self._masked(masks, [group for group, _ in found], example[:_PROBED])
            order = {layer: place for place, layer in enumerate(masks)}
            found.sort(key=lambda pair: min(order[m] for m in outputs(pair[0]) if m in order))
        self.groups = [group for group, _ in found]
        self._paths: list[_Path] = [path for _, path in found]
        if not found:
            raise NothingToPruneError(
                f"{type(model).__name__} has no unit whose classification accuracy reduction could "
                "be computed"
            )
        self._needs = {n for path in self._paths if isinstance(path, Splice) for n in path.needs}
        self._largest = _largest_value(self._model, example[:1])
        kept = 0
        if self._network is not None:
            kept = sum(prod(self._network.shapes.get(n, ())) for n in self._needs)
        self.kept_bytes = example.element_size() * (kept + example[0].numel())

    @property
    def paths(self) -> list[str]:
        """How each group is evaluated; see `LayerCar.paths`."""
        return [path.path for path in self._paths]

    @property
    def can_remove(self) -> bool:
        """Whether units can be taken out for good without listing the operations anew."""
        return all(isinstance(path, Splice) and path.can_remove for path in self._paths)

    def batch_size(self, wanted: int) -> int:
        """Return how many images a forward pass may have: at most those wanted."""
        image_bytes = self.kept_bytes + _ALIVE * self._largest
        return max(1, min(wanted, self._memory // 2 // image_bytes))

    @torch.no_grad()
    def forward(self, inputs: Tensor) -> ForwardPass:
        """Run the whole network once and keep what the evaluations need."""
        sizes = [len(group) for group in self.groups]
        reach: list[dict[fx.Node, Tensor]] = [{} for _ in self.groups]
        if self._network is None or not self._needs:
            return ForwardPass(inputs, respond(self._model, inputs), {}, reach, sizes)
        read = _read_by(self._paths)

        def note(node: fx.Node, value: Any) -> None:
            for group, reader in read.get(node, ()):
                reach[group][node] = self._splice(group).active(reader, value)

        keep = self._needs | {self._network.output}
        values = self._network.run(inputs, keep, note)
        logits = values[self._network.output]
        if self._network.output not in self._needs:
            del values[self._network.output]
        return ForwardPass(inputs, logits, values, reach, sizes)

    @torch.no_grad()
    def remove(self, whole: ForwardPass, group: int, unit: int) -> None:
        """Take a unit out for good, if that is possible; bring the pass of all images up to date.

        What follows the unit is computed anew on the images that it can change; all else stays.
        """
        path = self._splice(group)
        assert self._network is not None
        read, output = _read_by(self._paths), self._network.output
        changed = whole.active(group)[unit].nonzero().flatten()
        for part in Pairs(torch.full_like(changed, unit), changed).split(self._rows(path)):
            images = part.images

            def note(node: fx.Node, value: Any, images: Tensor = images) -> None:
                if node in whole.values:
                    whole.values[node][images] = value
                if node is output:
                    whole.logits[images] = value
                for other, reader in read.get(node, ()):
                    whole.reach[other][node][:, images] = self._splice(other).active(reader, value)

            path.without(whole.values, part, note)
        path.remove(unit)

    def _splice(self, group: int) -> Splice:
        path = self._paths[group]
        assert isinstance(path, Splice)
        return path

    @torch.no_grad()
    def without(
        self, whole: ForwardPass, group: int, pairs: Pairs
    ) -> Iterator[tuple[Pairs, Tensor]]:
        """Compute the outputs without the unit of each pair, part by part.

        Parameters
        ----------
        whole : ForwardPass
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
        path = self._paths[group]
        if isinstance(path, Splice):
            for part in pairs.split(self._rows(path)):
                yield part, path.without(whole.values, part)
            return
        # What a network without listed operations says of an image may depend on its neighbours:
        # never two units in one batch.
        for part in pairs.by_unit(max(1, self._memory // 2 // (_ALIVE * self._largest))):
            inputs = whole.inputs.index_select(0, part.images)
            yield part, path.without(inputs, int(part.units[0]))

    def _choose_paths(self, groups: Sequence[Group], images: Tensor) -> list[_Path | None]:
        """Choose for each group the cheapest path that gives the physically pruned network."""
        splices = [self._splice_of(group) for group in groups]
        if self._all_agree(groups, splices, images):
            return list(splices)
        return [
            self._first_that_agrees(group, splice, images)
            for group, splice in zip(groups, splices, strict=True)
        ]

    def _splice_of(self, group: Group) -> Splice | None:
        if self._network is not None:
            with suppress(NotFollowedError, IndexError):
                return Splice(self._network, group)
        return None

    def _removed(self, group: Group) -> Removed:
        return Removed(self._model, self._example, group, self._memory // 4)

    def _cut(self, layer: str, images: Tensor) -> Cut | Masked | None:
        if self._network is not None:
            with suppress(NotFollowedError):
                return Cut(self._network, layer, images)
        return None

    def _masked(
        self, layers: Mapping[str, int], groups: Sequence[Group], images: Tensor
    ) -> list[tuple[Group, _Path]]:
        """Cut or mask the channels that no group has."""
        found: list[tuple[Group, _Path]] = []
        for layer, channels in uncovered_channels(groups, layers).items():
            if not channels or not _is_module(self._model, layer):
                continue  # what is computed by a function of a parameter is not judged
            path = self._cut(layer, images) if len(channels) == layers[layer] else None
            if path is None:
                path = Masked(self._model, layer, channels)
                if not path.works(self._example):
                    continue
            found.append((single_channels(layer, channels), path))
        return found

    @torch.no_grad()
    def _all_agree(
        self, groups: Sequence[Group], paths: Sequence[Splice | None], images: Tensor
    ) -> bool:
        """Compare one check for all: units of each group gone, silenced and physically."""
        splices = [path for path in paths if path is not None]
        if self._network is None or not splices or len(splices) < len(paths):
            return False
        silent: dict[fx.Node, list[Tensor]] = {}
        doomed: dict[str, set[int]] = {}
        for group, path, units in zip(groups, splices, self._busiest(splices, images), strict=True):
            some = units[: max(1, min(_COMPARED, len(group) - 1))]
            doomed.setdefault(group.root, set()).update(c for u in some for c in group.units[u])
            for node in path.readers:
                silent.setdefault(node, []).extend(path.channels(node, unit) for unit in some)
        removals = [Removal(root, tuple(sorted(gone))) for root, gone in doomed.items()]
        smaller = deep_copy(self._model)
        try:
            operate(smaller, self._example, removals)
        except (ModelError, LookupError):
            return False  # one by one, it shows which
        zeros = {node: torch.cat(parts) for node, parts in silent.items()}
        return _agree(self._network.silenced(images, zeros), smaller(images.clone()))

    @torch.no_grad()
    def _first_that_agrees(self, group: Group, path: Splice | None, images: Tensor) -> _Path | None:
        """Choose the first path that gives the physically pruned network, if there is one."""
        removed = self._removed(group)
        try:
            if path is not None and self._agrees(path, removed, images):
                return path
            for unit in range(len(group)):
                removed.pruned(unit)
        except (ModelError, LookupError):
            return None
        return removed

    def _agrees(self, path: Splice, removed: Removed, images: Tensor) -> bool:
        """Compare some units with physical removal."""
        assert self._network is not None
        values = self._network.run(images, path.needs)
        everywhere = torch.arange(len(images), device=images.device)
        for unit in self._busiest([path], images)[0][:_COMPARED]:
            found = path.without(values, Pairs(torch.full_like(everywhere, unit), everywhere))
            if not _agree(found, removed.without(images, unit)):
                return False
        return True

    def _busiest(self, paths: Sequence[Splice], images: Tensor) -> list[list[int]]:
        """List the units of some groups, in each those first that most images activate."""
        assert self._network is not None
        active: list[list[Tensor]] = [[] for _ in paths]
        read = _read_by(paths)

        def note(node: fx.Node, value: Any) -> None:
            for i, reader in read.get(node, ()):
                active[i].append(paths[i].active(reader, value))

        self._network.run(images, (), note)
        counts = [torch.stack(found).any(0).sum(1) for found in active]
        return [count.argsort(descending=True, stable=True).tolist() for count in counts]

    def _rows(self, path: Splice) -> int:
        """Return how many pairs go through the network as one batch."""
        batch = _BATCH.get(self._example.device.type, _BATCH_ELSEWHERE)
        most = max(_FEWEST, batch // path.largest_bytes)
        return max(1, min(self._memory // 2 // path.row_bytes, most))


def _read_by(paths: Sequence[_Path]) -> dict[fx.Node, list[tuple[int, fx.Node]]]:
    """List for each value the groups whose channels are in it, and what reads them there."""
    found: dict[fx.Node, dict[int, fx.Node]] = {}
    for i, path in enumerate(paths):
        for reader in path.readers if isinstance(path, Splice) else ():
            source = reader.args[0]
            assert isinstance(source, fx.Node)
            found.setdefault(source, {})[i] = reader
    return {source: list(groups.items()) for source, groups in found.items()}


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
            model(example.clone())
    finally:
        for handle in handles:
            handle.remove()
    return max(sizes)


def _is_module(model: nn.Module, layer: str) -> bool:
    try:
        return isinstance(getattr(model.get_submodule(layer), "weight", None), Tensor)
    except AttributeError:  # the name of a parameter, not of a module
        return False
