"""Networks drawn at random, which know without niwaki what the removal of a unit takes with it.

A network is a list of steps; each makes one value of those before it. Every channel of every value
has an owner, a unit of a layer, and owners that are added, multiplied or convolved channel by
channel are tied to one another: they only go together. Removal by hand is then to set to zero, in
every value, the channels whose owners are gone.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Unit = tuple[str, int]

SIDE = 9
BLOCKS = ("chain", "residual", "dense", "halves", "gated", "split", "excite", "ghost", "pool")
CLASSES = 3


class Ties:
    """Which units go together."""

    def __init__(self) -> None:
        self._parent: dict[Unit, Unit] = {}

    def root(self, unit: Unit) -> Unit:
        while self._parent.get(unit, unit) != unit:
            unit = self._parent[unit]
        return unit

    def tie(self, one: Unit, other: Unit) -> None:
        self._parent[self.root(one)] = self.root(other)

    def closure(self, units: Iterable[Unit]) -> set[Unit]:
        return {self.root(unit) for unit in units}


@dataclass
class Value:
    """What a step gives: how large it is, and who owns its channels (None: a layer's sum)."""

    owners: list[Unit]
    side: int


@dataclass
class Step:
    """One operation: its name, the values it reads, and its settings."""

    kind: str
    reads: list[int]
    about: dict[str, object] = field(default_factory=dict)


class Drawn(nn.Module):
    """A network that a seed stands for."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.steps: list[Step] = []
        self.values: list[Value] = []
        self.ties = Ties()
        self.layers = nn.ModuleDict()
        _Draw(self, random.Random(seed)).everything()
        _fill(self, seed)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x, None)

    def run(self, x: Tensor, gone: set[Unit] | None) -> Tensor:
        """Run; with `gone`, units that are tied to one of these give nothing, wherever they are."""
        values = [x]
        for number, step in enumerate(self.steps, 1):
            value = self._do(step, [values[i] for i in step.reads])
            if gone:
                owners = self.values[number].owners
                dead = [i for i, owner in enumerate(owners) if self.ties.root(owner) in gone]
                if dead:
                    value = value.index_fill(1, torch.tensor(dead), 0.0)
            values.append(value)
        return values[-1]

    def without(self, x: Tensor, units: Iterable[Unit]) -> Tensor:
        """Run without some units, and without all that go with them."""
        return self.run(x, self.ties.closure(units))

    def silenced(self, x: Tensor, layer: str, units: Iterable[int]) -> Tensor:
        """Run with some units of one layer at zero, behind its norm and its activation.

        A ReLU leaves a zero as it is; the sigmoid of a gate does not.
        """
        out = next(i for i, step in enumerate(self.steps, 1) if self._name(step) == layer)
        places = {out}
        for i, step in enumerate(self.steps, 1):
            if step.kind == "norm" and step.reads[0] in places:
                places.add(i)
            elif step.kind == "times" and step.reads[1] in places:
                places.add(i)  # times a gate of zero
        values = [x]
        for number, step in enumerate(self.steps, 1):
            value = self._do(step, [values[i] for i in step.reads])
            if number in places:
                value = value.index_fill(1, torch.tensor(list(units)), 0.0)
            values.append(value)
        return values[-1]

    @staticmethod
    def _name(step: Step) -> str:
        return f"layers.{step.about['layer']}" if "layer" in step.about else ""

    def unbiased(self) -> Drawn:
        """Return a copy whose layers and norms add nothing, so that all output is from inputs."""
        twin = copy.deepcopy(self)
        with torch.no_grad():
            for module in twin.modules():
                if getattr(module, "bias", None) is not None:
                    module.bias.zero_()
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean.zero_()
        return twin

    def tied(self, units: Iterable[Unit]) -> dict[str, set[int]]:
        """List the units of all layers that go with some units."""
        gone = self.ties.closure(units)
        found: dict[str, set[int]] = {}
        for name, count in self.units().items():
            for unit in range(count):
                if self.ties.root((name, unit)) in gone:
                    found.setdefault(name, set()).add(unit)
        return found

    def units(self) -> dict[str, int]:
        """Number of units by layer."""
        return {
            f"layers.{name}": module.weight.shape[0]
            for name, module in self.layers.items()
            if isinstance(module, nn.Conv2d | nn.Linear)
        }

    def _do(self, step: Step, x: list[Tensor]) -> Tensor:
        about = step.about
        if "layer" in about:
            return self.layers[str(about["layer"])](x[0])
        if step.kind == "relu":
            if about["how"] == "function":
                return F.relu(x[0])
            return x[0].clamp(min=0) if about["how"] == "clamp" else x[0].relu()
        if step.kind == "add":
            return x[0] + x[1] if about["how"] == "plus" else torch.add(x[0], x[1])
        if step.kind == "cat":
            return torch.cat(x, 1)
        if step.kind == "part":
            return x[0].chunk(2, 1)[int(str(about["part"]))]
        if step.kind == "times":
            gate = x[1].sigmoid() if about["how"] == "sigmoid" else F.hardsigmoid(x[1])
            return x[0] * gate if about["first"] else gate * x[0]
        if step.kind == "mean":
            return x[0].mean((2, 3), keepdim=True)
        if step.kind == "max":
            return F.max_pool2d(x[0], 2)
        if step.kind == "average":
            return F.avg_pool2d(x[0], 3, 1, 1)
        if step.kind == "pad":
            return F.pad(x[0], (1, 1, 1, 1))
        if step.kind == "flatten":
            return x[0].flatten(1)
        raise AssertionError(step.kind)


class _Draw:
    """Draws the steps of a network."""

    def __init__(self, net: Drawn, chance: random.Random) -> None:
        self.net, self.chance = net, chance
        net.values.append(Value([("input", c) for c in range(2)], SIDE))

    def everything(self) -> None:
        now = self.conv(0, self.chance.choice([4, 6]))
        for _ in range(self.chance.randint(2, 5)):
            block = self.chance.choice(BLOCKS)
            now = getattr(self, block)(now)
        self.head(now)

    # Blocks

    def chain(self, now: int) -> int:
        return self.activated(self.conv(now, self.chance.choice([3, 4, 6])))

    def residual(self, now: int) -> int:
        inner = self.activated(self.conv(now, self.chance.choice([3, 5]), keep=True))
        out = self.conv(inner, self.width(now), keep=True)
        return self.maybe_relu(self.add(now, out))

    def dense(self, now: int) -> int:
        return self.step("cat", [now, self.activated(self.conv(now, 3, keep=True))])

    def halves(self, now: int) -> int:
        """Both halves go on, one through a convolution, as in C2f blocks."""
        both = self.activated(self.conv(now, self.chance.choice([4, 6])))
        one, two = self.part(both, 0), self.part(both, 1)
        three = self.activated(self.conv(two, 3, keep=True))
        parts = [one, two, three] if self.chance.random() < 0.5 else [one, three]
        return self.step("cat", parts)

    def gated(self, now: int) -> int:
        """Half of the channels are gates of the other half."""
        both = self.conv(now, self.chance.choice([4, 6]))
        return self.times(self.part(both, 0), self.part(both, 1))

    def split(self, now: int) -> int:
        """Two halves are added up again."""
        both = self.activated(self.conv(now, self.chance.choice([4, 8])))
        return self.add(self.part(both, 0), self.part(both, 1))

    def excite(self, now: int) -> int:
        squeezed = self.step("mean", [now])
        inner = self.step("relu", [self.conv(squeezed, 2, kernel=1)], how="function")
        return self.times(now, self.conv(inner, self.width(now), kernel=1))

    def ghost(self, now: int) -> int:
        """Channels beside a cheap function of each of them, then channel by channel."""
        first = self.activated(self.conv(now, 4))
        cheap = self.activated(self.depthwise(first))
        both = self.step("cat", [first, cheap])
        return self.depthwise(both) if self.chance.random() < 0.5 else both

    def pool(self, now: int) -> int:
        kinds = ["average", "pad"] + (["max"] if self.side(now) >= 4 else [])
        return self.step(self.chance.choice(kinds), [now])

    def head(self, now: int) -> None:
        if self.chance.random() < 0.25 and self.side(now) <= SIDE:
            while self.side(now) > 3:
                now = self.step("max", [now])
            now = self.step("flatten", [now])
        else:
            now = self.step("flatten", [self.step("mean", [now])])
        if self.chance.random() < 0.5:
            now = self.step("relu", [self.linear(now, 5)], how="method")
        self.linear(now, CLASSES)

    # Parts of blocks

    def activated(self, now: int) -> int:
        if self.chance.random() < 0.4:
            now = self.layer("norm", now, nn.BatchNorm2d(self.width(now)), self.owners(now))
        return self.maybe_relu(now, 0.85)

    def maybe_relu(self, now: int, share: float = 0.7) -> int:
        if self.chance.random() >= share:
            return now
        how = self.chance.choice(["module", "inplace", "function", "method", "clamp"])
        # In place only on what comes from a layer, which does not need it for its derivative.
        if how == "module" or (how == "inplace" and "layer" in self.net.steps[now - 1].about):
            module = nn.ReLU(inplace=how == "inplace")
            return self.layer("relu", now, module, self.owners(now))
        return self.step("relu", [now], how=how)

    def conv(self, now: int, units: int, *, keep: bool = False, kernel: int | None = None) -> int:
        """A convolution; `keep` leaves the size as it is."""
        side = self.side(now)
        kernel = kernel or self.chance.choice([1, 3] if side >= 3 else [1])
        stride = 1 if keep or side < 5 else self.chance.choice([1, 1, 2])
        padding = kernel // 2
        groups = 1
        if kernel == 3 and self.width(now) % 2 == units % 2 == 0 and self.chance.random() < 0.1:
            groups = 2
        module = nn.Conv2d(
            self.width(now),
            units,
            kernel,
            stride,
            padding,
            groups=groups,
            bias=self.chance.random() < 0.7,
        )
        return self.layer("conv", now, module, None, (side + 2 * padding - kernel) // stride + 1)

    def depthwise(self, now: int) -> int:
        width = self.width(now)
        module = nn.Conv2d(width, width, 3, padding=1, groups=width)
        out = self.layer("conv", now, module, None)
        for one, other in zip(self.owners(now), self.owners(out), strict=True):
            self.net.ties.tie(one, other)
        return out

    def linear(self, now: int, units: int) -> int:
        width = len(self.owners(now))
        return self.layer("linear", now, nn.Linear(width, units), None)

    def add(self, one: int, other: int) -> int:
        for a, b in zip(self.owners(one), self.owners(other), strict=True):
            self.net.ties.tie(a, b)
        return self.step("add", [one, other], how=self.chance.choice(["plus", "function"]))

    def times(self, signal: int, gate: int) -> int:
        for a, b in zip(self.owners(signal), self.owners(gate), strict=True):
            self.net.ties.tie(a, b)
        how = self.chance.choice(["sigmoid", "hard"])
        return self.step("times", [signal, gate], how=how, first=self.chance.random() < 0.5)

    def part(self, now: int, part: int) -> int:
        return self.step("part", [now], part=part)

    # Bookkeeping

    def width(self, now: int) -> int:
        return len(self.net.values[now].owners)

    def side(self, now: int) -> int:
        return self.net.values[now].side

    def owners(self, now: int) -> list[Unit]:
        return self.net.values[now].owners

    def layer(
        self,
        kind: str,
        now: int,
        module: nn.Module,
        owners: list[Unit] | None,
        side: int | None = None,
    ) -> int:
        name = f"{kind}{len(self.net.layers)}"
        self.net.layers[name] = module
        if owners is None:
            count = module.weight.shape[0]  # type: ignore[union-attr]
            owners = [(f"layers.{name}", unit) for unit in range(count)]  # type: ignore[arg-type]
        return self.note(Step(kind, [now], {"layer": name}), owners, side or self.side(now))

    def step(self, kind: str, reads: list[int], **about: object) -> int:
        side, owners = self.side(reads[0]), list(self.owners(reads[0]))
        if kind == "cat":
            owners = [owner for i in reads for owner in self.owners(i)]
        elif kind == "part":
            half = len(owners) // 2
            owners = owners[half:] if about["part"] else owners[:half]
        elif kind == "flatten":
            owners = [owner for owner in owners for _ in range(side * side)]
        side = {"mean": 1, "flatten": 1, "max": side // 2, "pad": side + 2}.get(kind, side)
        return self.note(Step(kind, reads, about), owners, side)

    def note(self, step: Step, owners: list[Unit], side: int) -> int:
        self.net.steps.append(step)
        self.net.values.append(Value(owners, side))
        return len(self.net.steps)


def _fill(net: nn.Module, seed: int) -> None:
    """Draw the weights so that signals neither vanish nor explode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.uniform_(0.5, 2, generator=generator)  # type: ignore[union-attr]
                module.running_mean.normal_(0, 0.3, generator=generator)  # type: ignore[union-attr]
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.3, generator=generator)
            elif isinstance(module, nn.Conv2d | nn.Linear):
                fan = module.weight[0].numel()
                module.weight.normal_(0, (2 / fan) ** 0.5, generator=generator)
                if module.bias is not None:
                    module.bias.normal_(0, 0.1, generator=generator)


def images(seed: int, count: int = 12) -> Tensor:
    """Inputs of a drawn network."""
    generator = torch.Generator().manual_seed(seed + 1)
    return torch.randn(count, 2, SIDE, SIDE, generator=generator, dtype=torch.float64)
