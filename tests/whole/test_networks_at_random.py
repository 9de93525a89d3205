"""On networks drawn at random nothing is silently wrong: gradient, relevance, pruning, CAR.

A few in every run, hundreds in the slow suite. What is not supported may be refused, by an error
of niwaki's own; what is answered must be right.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from drawn_networks import Drawn, Unit, images
from torch import Tensor

import niwaki
from niwaki import car
from niwaki.attribution import create
from niwaki.errors import NiwakiError, PropagationError
from niwaki.propagation import Assign, Epsilon, ZPlus, epsilon, epsilon_plus
from niwaki.pruning import Plan

FEW = range(6)
MANY = [
    pytest.param(range(start, start + 10), marks=pytest.mark.long, id=f"{start}-{start + 9}")
    for start in range(6, 306, 10)
]
SEEDS = [pytest.param(FEW, id="0-5"), *MANY]


def drawn(seed: int) -> tuple[Drawn, Tensor, Tensor]:
    """A network, inputs, and labels of which it gets three quarters right."""
    net, x = Drawn(seed), images(seed)
    with torch.no_grad():
        labels = net(x).argmax(1)
    labels[::4] = (labels[::4] + 1) % 3
    return net, x, labels


@pytest.mark.parametrize("seeds", SEEDS)
def test_the_gradient_is_that_of_autograd(seeds: range) -> None:
    for seed in seeds:
        net, x, _ = drawn(seed)
        leaf = x.clone().requires_grad_()
        (truth,) = torch.autograd.grad(net(leaf).max(1).values.sum(), leaf)
        found = niwaki.explain(net, x, method="gradient")
        torch.testing.assert_close(found, truth, rtol=1e-9, atol=1e-12, msg=f"seed {seed}")


# The same with next to no stabilizer, in which relevance is lost where contributions are tiny.
EXACT = epsilon().with_rows(
    Assign(Epsilon(1e-13), kind=("convolution", "linear", "batch_norm", "sum", "average"))
)


@pytest.mark.parametrize("seeds", SEEDS)
def test_relevance_is_conserved_or_refused(seeds: range) -> None:
    """A network with outputs near zero may be refused by each composite but the first."""
    answered = 0
    for seed in seeds:
        net, x, _ = drawn(seed)
        net = net.unbiased()
        with torch.no_grad():
            truth = net(x).max(1).values
        for composite in (EXACT, epsilon(), epsilon(sums=ZPlus()), epsilon_plus(sums=ZPlus())):
            try:
                heatmaps = create("lrp", net, composite=composite).attribute(x)
            except PropagationError:
                assert composite is not EXACT, f"seed {seed}"
                continue  # it says how much gets lost, and where
            answered += 1
            total = heatmaps.flatten(1).sum(1)
            assert total.isfinite().all()
            missing = (total - truth).abs() - 2e-3 * truth.abs()
            assert float(missing.max()) < 1e-9, f"seed {seed}, {composite.name}"
    assert answered >= 2 * len(seeds)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("seeds", SEEDS)
def test_pruning_removes_what_it_says_and_nothing_else(seeds: range) -> None:
    answered = 0
    for seed in seeds:
        net, x, labels = drawn(seed)
        for criterion in ("random", "weight"):
            try:
                pruned = niwaki.prune(
                    net,
                    (x, labels),
                    criterion,
                    keep=0.6,
                    of="units",
                    repair=None,
                    schedule=niwaki.pruning.Schedule(steps=3),
                )
            except NiwakiError:
                continue
            answered += 1
            gone, left = told(net, pruned.plan)
            for name, units in left.items():
                module = pruned.model.get_submodule(name)
                assert module.weight.shape[0] == len(units), f"seed {seed}, {criterion}, {name}"
                assert len(units) > 0
            with torch.no_grad():
                torch.testing.assert_close(
                    pruned.model(x), net.without(x, gone), msg=f"seed {seed}, {criterion}"
                )
    assert answered >= len(seeds)


def told(net: Drawn, plan: Plan) -> tuple[set[Unit], dict[str, list[int]]]:
    """Return all units that a plan takes away, by their first numbers, and those that are left."""
    left = {name: list(range(count)) for name, count in net.units().items()}
    gone: set[Unit] = set()
    for step in plan.steps:
        named = {(r.layer, left[r.layer][c]) for r in step for c in r.channels}
        for name, units in net.tied(named).items():
            gone |= {(name, unit) for unit in units}
            left[name] = [unit for unit in left[name] if unit not in units]
    return gone, left


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("seeds", SEEDS)
def test_the_accuracy_reduction_is_that_of_cutting(seeds: range) -> None:
    answered = 0
    for seed in seeds:
        net, x, labels = drawn(seed)
        try:
            index = car.index(net, (x, labels))
        except NiwakiError:
            continue
        answered += 1
        for (name, unit), after in without_each(net, x, index):
            with torch.no_grad():
                before = net(x).argmax(1) == labels
            now = after.argmax(1) == labels
            lost = int((before & ~now).sum()), int((~before & now).sum())
            found = int(index[name].broken[unit].sum()), int(index[name].mended[unit].sum())
            assert found == lost, f"seed {seed}, unit {unit} of {name}, {index[name].paths[unit]}"
    assert answered >= len(seeds) / 2


@torch.no_grad()
def without_each(
    net: Drawn, x: Tensor, index: car.CarIndex
) -> Iterator[tuple[tuple[str, int], Tensor]]:
    """Yield each unit of an index, and what the network says without it."""
    for name, layer in index.items():
        for unit, channels in enumerate(layer.units):
            if layer.paths[unit] == "masked":
                yield (name, unit), net.silenced(x, name, channels)
            else:
                yield (name, unit), net.without(x, [(name, channel) for channel in channels])
