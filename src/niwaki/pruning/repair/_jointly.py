"""Layers fitted together with the one layer that reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from niwaki.processes import add_up, agreed, is_mine
from niwaki.pruning.repair._kronecker import OFFSET, WEIGHT, Kronecker, Theta
from niwaki.pruning.repair._linearised import Linearised
from niwaki.pruning.repair._lockstep import BLOCK, Lockstep
from niwaki.pruning.repair._readings import Goal, Reading
from niwaki.pruning.repair._rows import (
    FEWEST_ROWS,
    ROWS,
    Linear,
    Places,
    inputs_at,
    matrix_of,
    outputs_at,
)
from niwaki.pruning.repair._targets import norm_behind
from niwaki.pruning.repair._windows import Window

__all__ = ["Joint"]

_ROUNDS, _STEPS = 2, 4
_SMALLEST = 0.1  # share of a step that is still tried
_KEPT = 2**28  # bytes of what a window computes, up to which its derivatives are kept
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
        """
        start = theta = self._theta()
        before, power = self._error(theta)
        error = before
        for _ in range(_ROUNDS if error > _TINY * power else 0):
            step = self._solved(theta, start)
            taken, found = self._shortened(theta, step, error)
            if taken is None:
                break
            theta, error = taken, found
        if error >= before:
            return [], 1.0
        return self._write(theta), error / before

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
        return {node: self.walk.values[node][1][block] for node in self.window.sources}

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

    def _missed(self, given: Tensor, goal: Goal) -> Tensor:
        """Return how far outputs are from where they come to the same, in the same units."""
        scale = self.reading.target.scale
        if scale is None:
            return torch.clamp(given, goal.least, goal.largest) - given
        ends = goal.least * scale, goal.largest * scale
        return torch.clamp(given, torch.minimum(*ends), torch.maximum(*ends)) - given

    def _error(self, theta: Theta) -> tuple[float, float]:
        """Sum up the squared distances, and the squares of what was to be given."""
        sums = torch.zeros(2, dtype=torch.float64)
        scale = self.reading.target.scale
        with agreed():
            for goal in self.reading.goals():
                missed = self._missed(self._outputs(goal)(theta), goal)
                target = goal.target if scale is None else goal.target * scale
                sums += torch.stack(
                    [missed.double().square().sum(), target.double().square().sum()]
                ).cpu()
        add_up(sums)
        error, power = sums.tolist()
        return error, power

    def _shortened(self, theta: Theta, step: Theta, error: float) -> tuple[Theta | None, float]:
        """Take the largest part of a step that lowers the error; None where none does."""
        share = 1.0
        while share > _SMALLEST:
            tried = {name: theta[name] + share * step[name] for name in theta}
            found, _ = self._error(tried)
            if found < error:
                return tried, found
            share /= 2
        return None, error

    def _solved(self, theta: Theta, start: Theta) -> Theta:
        """Solve the least squares around the weights, by conjugate gradients."""
        around = self._around(theta)
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
        self, around: Iterable[Around], theta: Theta
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
        count = prod(shape[1:-1] if isinstance(layer, nn.Linear) else shape[2:])
        rows = max(FEWEST_ROWS, ROWS * matrix_of(layer).shape[-1])
        places = Places(count, -(-rows // self.samples))
        read = values[source]
        x = inputs_at(layer, read, shape, places.of(BLOCK * number, len(read)))
        x = torch.cat([x, x.new_ones(*x.shape[:2], 1)], 2)
        return x.transpose(1, 2) @ x

    def _curvature(self, around: Iterable[Around], way: Theta, theta: Theta) -> Theta:
        """Multiply by the Gram matrix of all weights."""
        return _added(
            (one.back(one.moved(way) * (missed != 0)) for _, one, missed in around), theta
        )

    def _around(self, theta: Theta) -> Iterable[Around]:
        """Linearise what is given for each goal; kept in memory where they are few enough."""

        def made() -> Iterator[Around]:
            for goal in self.reading.goals():
                one = Linearised(self._outputs(goal), theta)
                yield goal, one, self._missed(one.given, goal)

        images = sum(len(self.reading.before[block]) for block in range(len(self.walk.numbers)))
        numbers = sum(prod(self.walk.small.shapes.get(node, ())) for node in self.window.nodes)
        size = images * numbers * self.reading.before[0].element_size()
        return list(made()) if size <= _KEPT else _Anew(made)


@dataclass(frozen=True)
class _Anew:
    """What is made anew each time that it is gone through."""

    made: Callable[[], Iterator[Around]]

    def __iter__(self) -> Iterator[Around]:
        """Make it."""
        return self.made()


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
