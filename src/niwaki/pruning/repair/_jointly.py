"""Layers fitted together with the one layer that reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, prod
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from niwaki.processes import add_up, agreed, is_mine
from niwaki.pruning.repair._kronecker import OFFSET, WEIGHT, Kronecker, Theta
from niwaki.pruning.repair._linearised import Linearised, NotLinearisedError
from niwaki.pruning.repair._lockstep import BLOCK, Lockstep
from niwaki.pruning.repair._readings import Goal, Reading
from niwaki.pruning.repair._rows import (
    Linear,
    inputs_at,
    matrix_of,
    outputs_at,
    places_of,
)
from niwaki.pruning.repair._targets import norm_behind
from niwaki.pruning.repair._windows import Window

__all__ = ["Joint"]

_ROUNDS, _STEPS = 2, 4
_SMALLEST = 0.1  # share of a step that is still tried
_KEPT = 2**27  # bytes of what a window computes; beyond that, only some samples count
_TINY = 1e-9  # share of the targets' variance that is left as it is


#: A goal, what is given for it around some weights, and how far that is from it.
Around: TypeAlias = tuple[Goal, Linearised, Tensor]


@dataclass(frozen=True)
class Joint:
    """A window of layers, all of which are to bring the last one's outputs to their targets.

    With the gates of the activations in between held where they are, and to first order, what the
    last layer gives is linear in all weights of the window. The least squares over them, pulled
    toward the weights there are, are solved by conjugate gradients, which never make the Gram
    matrix, and need only a few steps where what each layer reads is allowed for (`Kronecker`). A
    second round starts from the gates that the first one leaves (Gauss and Newton). A round that
    does not lower the error changes nothing.

    Large images have more positions than are needed. There, every second sample counts, or every
    third and so on, as many as can be held in memory with all that the window computes. Whether
    the error is lower is then asked of as many others.

    Parameters
    ----------
    walk : Lockstep
        At the last layer: what the window reads is known.
    window : Window
        The layers.
    reading : Reading
        Of the last layer.
    pull : float
        How many samples the weights there are count for.
    samples : int
        Of all processes.
    """

    walk: Lockstep
    window: Window
    reading: Reading
    pull: float
    samples: int

    def run(self) -> tuple[list[str], float]:
        """Fit the layers in place.

        Returns
        -------
        list of str
            The modules that have changed.
        float
            The squared error that is left, as a share of that before.

        Raises
        ------
        NotLinearisedError
            If what the window computes cannot be linearised, or is too large to be.
        """
        start, some = self._theta(), self._thinned()
        theta, before, after = some._fitted(start)
        if theta is not start and some is not self:
            others = replace(some, reading=replace(some.reading, first=some.reading.step // 2))
            before, after = others._errors(others._goals(), start, theta)
        if after >= before:
            return [], 1.0
        return self._write(theta), after / before

    def _thinned(self) -> Joint:
        """Return the same with as many samples as can be held in memory."""
        network = self.walk.small
        numbers = sum(prod(network.shapes.get(node, ())) for node in self.window.nodes)
        size = self.samples * numbers * self.reading.before[0].element_size()
        step = min(BLOCK, ceil(size / _KEPT))
        if step <= 1:
            return self
        if not all(
            node in network.shapes or node in network.constants for node in self.window.sources
        ):
            raise NotLinearisedError("it is too large, and depends on the number of samples")
        blocks, rest = divmod(self.samples, BLOCK)
        left = blocks * ceil(BLOCK / step) + ceil(rest / step)
        return replace(self, reading=replace(self.reading, step=step), samples=left)

    def _fitted(self, start: Theta) -> tuple[Theta, float, float]:
        """Return the weights after the rounds, and the squared error before and after."""
        power = torch.zeros((), dtype=torch.float64)
        with agreed():
            goals = list(self._goals())
            for goal in goals:
                power += goal.target.square().sum(dtype=torch.float64).cpu()
        add_up(power)
        theta = start
        (before,) = self._errors(goals, theta)
        error = before
        for _ in range(_ROUNDS if error > _TINY * float(power) else 0):
            step = self._solved(goals, theta, start)
            taken, found = self._shortened(goals, theta, step, error)
            if taken is None:
                break
            theta, error = taken, found
        return theta, before, error

    @property
    def _layers(self) -> dict[str, Linear]:
        return {node.name: self.walk.small.module(node) for node in self.window.layers}

    def _theta(self) -> Theta:
        theta: Theta = {}
        for node in self.window.layers:
            layer: Any = self.walk.small.module(node)
            theta[node.name + WEIGHT] = layer.weight.detach().clone()
            if layer.bias is not None or norm_behind(self.walk, node) is not None:
                width = len(layer.bias) if layer.bias is not None else _width(layer)
                theta[node.name + OFFSET] = layer.weight.new_zeros(width)
        return theta

    def _write(self, theta: Theta) -> list[str]:
        changed = []
        for node in self.window.layers:
            layer: Any = self.walk.small.module(node)
            layer.weight.copy_(theta[node.name + WEIGHT])
            changed.append(str(node.target))
            offset = theta.get(node.name + OFFSET)
            if offset is None:
                continue
            if layer.bias is not None:
                layer.bias.add_(offset)
            else:
                name = norm_behind(self.walk, node)
                assert name is not None
                norm: Any = self.walk.small.modules[name]
                norm.running_mean.sub_(offset)
                changed.append(name)
        return changed

    def between(self, block: int) -> dict[fx.Node, Any]:
        """Compute what the window's operations give in a block, with the weights they have."""
        env = self._sources(block)
        for node in self.window.nodes[:-1]:
            env[node] = self.walk.small.call(node, env)
        return env

    def _sources(self, block: int) -> dict[fx.Node, Any]:
        found = {}
        for node in self.window.sources:
            value = self.walk.values[node][1][block]
            one_each = node in self.walk.small.shapes
            found[node] = self.reading.some(value) if one_each else value
        return found

    def _outputs(self, goal: Goal) -> Callable[[Theta], Tensor]:
        """Return what the last layer gives at the places of a goal, as a function of the weights.

        In units of what the norm behind it hands on.
        """
        scale = self.reading.target.scale

        def outputs(theta: Theta) -> Tensor:
            values = self._values(theta, goal.block)
            given = outputs_at(self.reading.layer, values[self.window.nodes[-1]], goal.places)
            return given if scale is None else given * scale

        return outputs

    def _values(self, theta: Theta, block: int) -> dict[fx.Node, Any]:
        """Compute what all of the window's operations give with other weights."""
        values = self._sources(block)
        for node in self.window.nodes:
            if node.name + WEIGHT in theta:
                values[node] = self._call(node, values, theta)
            else:
                values[node] = self.walk.small.call(node, values)
        return values

    def _call(self, node: fx.Node, values: Mapping[fx.Node, Any], theta: Theta) -> Tensor:
        layer: Any = self.walk.small.module(node)
        args = fx.node.map_arg(node.args, values.__getitem__)
        kwargs = fx.node.map_arg(node.kwargs, values.__getitem__)
        weight, offset = theta[node.name + WEIGHT], theta.get(node.name + OFFSET)
        given: Tensor = functional_call(layer, {"weight": weight}, args, kwargs)
        if offset is None:
            return given
        if isinstance(layer, nn.Linear):
            return given + offset
        return given + offset.view(-1, *[1] * (given.dim() - 2))

    def _goals(self) -> Iterator[Goal]:
        """Say what is to be given, in units of what the norm behind hands on."""
        scale = self.reading.target.scale
        for goal in self.reading.goals():
            if scale is None:
                yield goal
            else:
                ends = goal.least * scale, goal.largest * scale
                least, largest = torch.minimum(*ends), torch.maximum(*ends)
                yield replace(goal, target=goal.target * scale, least=least, largest=largest)

    def _errors(self, goals: Iterable[Goal], *thetas: Theta) -> list[float]:
        """Sum up the squared distances, for each of several weights."""
        sums = torch.zeros(len(thetas), dtype=torch.float64)
        with agreed():
            for goal in goals:
                outputs = self._outputs(goal)
                for place, theta in enumerate(thetas):
                    missed = _missed(outputs(theta), goal)
                    sums[place] += missed.square().sum(dtype=torch.float64).cpu()
        add_up(sums)
        found: list[float] = sums.tolist()
        return found

    def _shortened(
        self, goals: Sequence[Goal], theta: Theta, step: Theta, error: float
    ) -> tuple[Theta | None, float]:
        """Take the largest part of a step that lowers the error; None where none does."""
        share = 1.0
        while share > _SMALLEST:
            tried = {name: theta[name] + share * step[name] for name in theta}
            (found,) = self._errors(goals, tried)
            if found < error:
                return tried, found
            share /= 2
        return None, error

    def _solved(self, goals: Sequence[Goal], theta: Theta, start: Theta) -> Theta:
        """Solve the least squares around the weights, by conjugate gradients."""
        around = self._around(goals, theta)
        down, diagonals, pulls = self._downhill(around, theta)
        nearer = Kronecker.of(self._layers, self._grams(theta), diagonals, pulls)
        rest = {n: down[n] - pulls[n] * (theta[n] - start[n]).double() for n in theta}
        found = {name: torch.zeros_like(value) for name, value in rest.items()}
        way = nearer(rest)
        length = _dot(rest, way)
        for _ in range(_STEPS):
            if not length > 0:
                break
            curved = self._curvature(around, way, theta)
            curved = {name: curved[name] + pulls[name] * way[name] for name in way}
            along = length / _dot(way, curved)
            found = {name: found[name] + along * way[name] for name in way}
            rest = {name: rest[name] - along * curved[name] for name in way}
            turned = nearer(rest)
            before, length = length, _dot(rest, turned)
            way = {name: turned[name] + length / before * way[name] for name in way}
        return {name: value.to(theta[name]) for name, value in found.items()}

    def _downhill(
        self, around: Sequence[Around], theta: Theta
    ) -> tuple[Theta, dict[str, Tensor], dict[str, float]]:
        """Return where the error falls, the diagonal of the Gram matrix, and the pull.

        The diagonal is estimated by random signs, and summed over what an output reads. The pull
        on each tensor is measured by its mean.
        """

        def sums() -> Iterator[Theta]:
            for goal, one, missed in around:
                # The same signs, whichever process has the block.
                number = self.walk.numbers[goal.block]
                generator = torch.Generator().manual_seed(number)
                signs = torch.randint(0, 2, missed.shape, generator=generator) * 2.0 - 1
                probe = one.back(signs.to(missed) * (missed != 0))
                squares = {
                    name: matrix_of(layer, probe[name + WEIGHT]).square().sum(2)
                    for name, layer in self._layers.items()
                }
                yield {**one.back(missed), **squares}

        outputs = {
            name: matrix_of(layer, theta[name + WEIGHT]).sum(2)
            for name, layer in self._layers.items()
        }
        total = _added(sums(), {**theta, **outputs})
        pulls = dict.fromkeys(theta, 0.0)
        for name in self._layers:
            mean = float(total[name].sum()) / theta[name + WEIGHT].numel()
            pulls[name + WEIGHT] = self.pull / self.samples * mean
        return {n: total[n] for n in theta}, {n: total[n] for n in self._layers}, pulls

    def _grams(self, theta: Theta) -> dict[str, Tensor]:
        """Return the mean Gram matrix of what each layer reads, and of ones, which come last."""

        def sums() -> Iterator[Theta]:
            for block, number in enumerate(self.walk.numbers):
                if is_mine(number):
                    values = self._values(theta, block)
                    yield {
                        node.name: self._gram(node, values, number) for node in self.window.layers
                    }

        like = {}
        for name, layer in self._layers.items():
            groups, _, features = matrix_of(layer).shape
            like[name] = layer.weight.new_zeros(groups, features + 1, features + 1)
        total = _added(sums(), like)
        return {name: gram / gram[:, -1:, -1:].clamp(min=1.0) for name, gram in total.items()}

    def _gram(self, node: fx.Node, values: Mapping[fx.Node, Any], number: int) -> Tensor:
        layer: Any = self.walk.small.module(node)
        (source,), shape = node.all_input_nodes, values[node].shape
        places = places_of(layer, shape, self.samples)
        read = values[source]
        x = inputs_at(layer, read, shape, places.of(BLOCK * number, len(read)))
        x = torch.cat([x, x.new_ones(*x.shape[:2], 1)], 2)
        return x.transpose(1, 2) @ x

    def _curvature(self, around: Sequence[Around], way: Theta, theta: Theta) -> Theta:
        """Multiply by the Gram matrix of all weights."""
        return _added(
            (one.back(one.moved(way) * (missed != 0)) for _, one, missed in around), theta
        )

    def _around(self, goals: Iterable[Goal], theta: Theta) -> list[Around]:
        """Linearise what is given for each goal."""
        around = []
        for goal in goals:
            one = Linearised(self._outputs(goal), theta)
            around.append((goal, one, _missed(one.given, goal)))
        return around


def _missed(given: Tensor, goal: Goal) -> Tensor:
    """Return how far outputs are from where they come to the same."""
    return torch.clamp(given, goal.least, goal.largest) - given


def _width(layer: Any) -> int:
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)


def _dot(one: Theta, other: Theta) -> float:
    return sum(float((one[name] * other[name]).sum()) for name in one)


def _added(parts: Iterator[Theta], like: Theta) -> Theta:
    """Add up what blocks give, over those of all processes, in double precision."""
    names = list(like)
    flat = torch.zeros(sum(like[name].numel() for name in names), dtype=torch.float64)
    with agreed():
        for part in parts:
            flat += torch.cat([part[name].detach().flatten().double().cpu() for name in names])
    add_up(flat)
    split = torch.split(flat, [like[name].numel() for name in names])
    return {
        name: value.view_as(like[name]).to(like[name].device)
        for name, value in zip(names, split, strict=True)
    }
