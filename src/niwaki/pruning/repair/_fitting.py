"""The layers of a pruned network, fitted one after another in the order of the forward pass."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from torch import Tensor, fx, nn

from niwaki.accumulation import Totals
from niwaki.errors import DataError, FallbackWarning
from niwaki.processes import agreed, decided
from niwaki.pruning._plan import Plan
from niwaki.pruning.repair._behind_activations import within
from niwaki.pruning.repair._few_rows import turned
from niwaki.pruning.repair._jointly import Joint
from niwaki.pruning.repair._least_squares import Regression, fit, moments
from niwaki.pruning.repair._linearised import NotLinearisedError
from niwaki.pruning.repair._lockstep import Lockstep, Values
from niwaki.pruning.repair._readings import Reading, Rows
from niwaki.pruning.repair._rows import Places, is_linear, matrix_of, places_of, set_matrix
from niwaki.pruning.repair._targets import Target, kept_outputs, norm_behind
from niwaki.pruning.repair._windows import Window, windows

__all__ = ["ALIKE", "Fitting", "width_of"]

#: Layers that can lose outputs.
ALIKE = (nn.modules.conv._ConvNd, nn.Linear)
#: Sums over one half of the samples, and over the other.
Halves: TypeAlias = tuple[Totals, Totals]
_MOST_WEIGHTS = 2**24  # of a layer that is fitted together with others
_NOTHING: Halves = (Totals(), Totals())


class Fitting:
    """Fits the layers of the smaller network as the walk comes by."""

    def __init__(
        self,
        walk: Lockstep,
        plan: Plan,
        masks: Mapping[str, Tensor],
        pull: float,
        *,
        jointly: bool = False,
    ) -> None:
        self._walk, self._plan, self._masks, self._pull = walk, plan, masks, pull
        self.errors: dict[str, tuple[float, float]] = {}
        self.left_out: list[str] = []
        self.changed: list[str] = []
        # Of layers that are called several times: the sums over all calls but the first.
        self._later: dict[str, Halves] = {}
        self._tied = _tied(walk.small.modules)
        self._images = 0
        self._windows: dict[fx.Node, Window] = {}
        if jointly:
            self._windows = windows(walk.small.nodes, self._fits_alone)
            for reader, window in self._windows.items():
                walk.hold(window.sources, reader)

    def run(self, inputs: Tensor) -> None:
        """Fit them all."""
        self._images = len(inputs)
        if any(len(calls) > 1 and self._fits(name) for name, calls in self._walk.calls.items()):
            self._walk.run(inputs, self._look_ahead)
        self._walk.run(inputs, self._visit, always={*self._masks, *self._later})

    def _fits(self, name: str) -> bool:
        return is_linear(self._walk.small.modules[name]) and name not in self._tied

    def _fits_alone(self, node: fx.Node) -> bool:
        """Whether a layer can be fitted together with its neighbours.

        It is called once, and vectors of all its weights, which are several, fit into memory.
        """
        name = str(node.target)
        if node.op != "call_module" or name in self._masks or not self._fits(name):
            return False
        weights: Any = self._walk.small.modules[name].weight
        return len(self._walk.calls[name]) == 1 and weights.numel() <= _MOST_WEIGHTS

    def _look_ahead(self, node: fx.Node, before: Values) -> None:
        """Take in what a layer reads and should give at its later calls."""
        name = str(node.target)
        if self._fits(name) and node is not self._walk.calls[name][0]:
            known = self._later.get(name, _NOTHING)
            more = self._halves(name, self._reading(node, before))
            self._later[name] = _merged(known, more)

    def _visit(self, node: fx.Node, before: Values) -> None:
        """Fit a layer at its first call, unless it reads what it has always read."""
        name, source = str(node.target), node.args[0]
        wanted = name in self._masks or name in self._later
        wanted |= isinstance(source, fx.Node) and self._walk.differs(source)
        if not wanted or node is not self._walk.calls[name][0]:
            return
        if self._fits(name) and isinstance(source, fx.Node):
            reading = self._reading(node, before)
            self._fit(node, reading)
            if node in self._windows:
                self._fit_jointly(self._windows[node], reading)
        elif isinstance(self._walk.small.modules[name], ALIKE):
            self.left_out.append(name)

    def _reading(self, node: fx.Node, before: Values) -> Reading:
        """Describe what a layer reads now, and what it should give."""
        name, source = str(node.target), node.args[0]
        assert isinstance(source, fx.Node)
        layer: Any = self._walk.small.modules[name]
        linear = isinstance(layer, nn.Linear)
        shape = before[0].shape
        places = places_of(layer, shape, self._images)
        kept = kept_outputs(self._plan, name, shape[-1 if linear else 1], width_of(layer))
        target = Target(self._walk, node, kept.to(layer.weight.device))
        inputs = self._walk.values[source][1]
        return Reading(layer, inputs, before, target, places, self._walk.numbers)

    def _fit(self, node: fx.Node, reading: Reading) -> None:
        name = str(node.target)
        layer: Any = self._walk.small.modules[name]
        start, behind = matrix_of(layer), norm_behind(self._walk, node)
        norm: Any = self._walk.small.modules[behind] if behind else None
        offset = None
        if layer.bias is not None:
            offset = layer.bias.detach().view(len(start), -1)
        elif norm is not None:
            offset = start.new_zeros(start.shape[:2])
        free = matrix_of(layer, self._masks[name]) if name in self._masks else None
        alone = free is None and name not in self._later
        few = turned(reading, self._images) if alone else None
        rows, begin = (reading.kept(), start) if few is None else (few.rows, few.weights(start))
        halves = _merged(self._halves(name, rows), self._later.get(name, _NOTHING))
        strength = self._pull / (halves[0].samples + halves[1].samples)
        strength *= 1 if few is None else few.share  # the diagonal's mean is over fewer numbers
        sums = halves[0].merge(halves[1]).sums
        regression = Regression(sums, begin, offset is not None, strength, free)
        found = fit(regression, halves, offset)
        if name not in self._later and reading.target.ends is not None:
            found = within(rows, regression, found, offset)
        found = decided(found.cpu)
        set_matrix(layer, found.matrix if few is None else few.back(found.matrix, start))
        self.changed.append(name)
        if layer.bias is not None and found.offset is not None:
            layer.bias.copy_(found.offset.flatten())
        elif behind is not None and found.offset is not None:
            norm.running_mean.sub_(found.offset.flatten().to(norm.running_mean))
            self.changed.append(behind)
        self.errors[name] = (found.before, found.after)

    def _fit_jointly(self, window: Window, reading: Reading) -> None:
        """Fit a layer again, together with those that feed it alone."""
        every = replace(reading, places=Places(reading.places.count, reading.places.count))
        joint = Joint(self._walk, window, every, self._pull, self._images)
        try:
            changed, left = joint.run()
        except NotLinearisedError as error:
            warnings.warn(
                f"rebuild: {window.nodes[-1].target!r} is fitted by itself, and not together with "
                f"the layers that feed it, as what lies between cannot be linearised ({error})",
                FallbackWarning,
                stacklevel=2,
            )
            return
        if not changed:
            return
        self.changed += changed
        source, name = window.nodes[-1].args[0], str(window.nodes[-1].target)
        assert isinstance(source, fx.Node)
        blocks = range(len(self._walk.numbers))
        self._walk.replace(source, (joint.between(block)[source] for block in blocks))
        before, after = self.errors[name]
        self.errors[name] = before, after * left

    def _halves(self, name: str, reading: Iterable[Rows]) -> Halves:
        """Sum up what a layer reads now, and what it should give, for two halves of the samples.

        Of several processes, each does so for its own blocks, and gets the sums of all.
        """
        halves = _NOTHING
        with agreed():
            for rows in reading:
                half, cut = rows.halved()
                x, t = rows.inputs, rows.target
                one = moments(halves[0], x[:, :cut], t[:, :cut], half)
                halves = one, moments(halves[1], x[:, cut:], t[:, cut:], rows.images - half)
        place = self._walk.small.modules[name].weight.device
        halves = halves[0].reduced(place), halves[1].reduced(place)
        if not all(bool(v.isfinite().all()) for one in halves for v in one.sums.values()):
            raise DataError(
                f"rebuild: what {name!r} reads or should give is NaN or infinite on the reference "
                "samples; check these and the network"
            )
        return halves


def _merged(one: Halves, other: Halves) -> Halves:
    return one[0].merge(other[0]), one[1].merge(other[1])


def _tied(modules: Mapping[str, nn.Module]) -> set[str]:
    """Name the modules that share a parameter with another one, which cannot be fitted alone."""
    owners: dict[int, list[str]] = {}
    for name, module in modules.items():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    return {name for names in owners.values() if len(names) > 1 for name in names}


def width_of(layer: Any) -> int:
    """Count the outputs of a layer."""
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)
