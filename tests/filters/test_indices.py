"""Selectivity, diversity, intervals and chance, against closed forms and simulation."""

import math

import pytest
import torch
from scipy import stats

from niwaki import filters
from niwaki.car import Baseline, CarIndex, LayerCar
from niwaki.filters import Strongest
from niwaki.pruning import Plan, Removal


def test_class_selectivity_by_hand():
    means = torch.tensor([[1.0, 1.0, 1.0], [3.0, 0.0, 0.0], [4.0, 1.0, 3.0], [0.0, 0.0, 0.0]])
    found = filters.class_selectivity(means)
    assert found[:3].tolist() == [0, 1, pytest.approx(2 / 6)]
    assert found[3].isnan()


@pytest.mark.parametrize("bars", [0, 30, 90, 135])
def test_orientation_of_gratings(bars):
    y, x = torch.meshgrid(torch.arange(9.0) - 4, torch.arange(9.0) - 4, indexing="ij")
    across = math.radians(bars + 90)
    phase = 2 * math.pi / 4 * (x * math.cos(across) - y * math.sin(across))  # rows count downwards
    envelope = torch.exp(-(x**2 + y**2) / 8)
    gabor = (phase.sin() * envelope).expand(1, 3, -1, -1)
    selectivity, angle = filters.orientation(gabor)
    assert selectivity.item() > 0.8
    assert (angle.item() - bars + 90) % 180 - 90 == pytest.approx(0, abs=3)
    blob = torch.exp(-(x**2 + y**2) / 8).expand(1, 3, -1, -1)
    assert filters.orientation(blob)[0].item() < 0.02


def test_orientation_of_single_pixels_does_not_exist():
    assert filters.orientation(torch.ones(2, 3, 1, 1))[0].isnan().all()
    # All of a large kernel counts: weak vertical bars above strong horizontal ones.
    wave = torch.cos(torch.arange(40) * torch.pi / 4)
    large = torch.cat([wave.expand(32, 40), 5 * wave[:32, None].expand(32, 40)])[None, None]
    _, angle = filters.orientation(large)
    assert min(angle.item(), 180 - angle.item()) == pytest.approx(0, abs=1)


def test_diversity_of_copies_and_of_independent_filters():
    copies = filters.diversity(torch.ones(5, 5, dtype=torch.float64))
    assert (copies.alive, copies.clusters) == (5, 1)
    assert copies.effective == pytest.approx(1)
    apart = filters.diversity(torch.eye(5, dtype=torch.float64))
    assert (apart.alive, apart.clusters) == (5, 5)
    assert apart.effective == pytest.approx(5)
    assert apart.participation == pytest.approx(5)
    halves = torch.block_diag(torch.ones(2, 2), torch.ones(2, 2), torch.zeros(1, 1)).double()
    two = filters.diversity(halves)
    assert (two.filters, two.alive, two.clusters) == (5, 4, 2)
    assert two.effective == pytest.approx(2)
    assert filters.twins(halves) == [[1], [0], [3], [2], []]


def test_diversity_of_a_network_equals_that_of_its_profile(model, images):
    known = filters.profile(model, images)
    found = filters.layer_diversity(model, images, batch_size=3)
    for name, layer in known.items():
        assert found[name].effective == pytest.approx(layer.diversity.effective, rel=1e-6)
        assert found[name].clusters == layer.diversity.clusters


def test_the_strongest_do_not_depend_on_the_order_of_merging():
    generator = torch.Generator().manual_seed(0)
    maps = torch.randint(-2, 3, (9, 4, 6), generator=generator).float()  # many ties
    everywhere = torch.ones(maps.shape[2], dtype=torch.bool)
    whole = Strongest.empty(4, 3).merge(Strongest.of(maps, 0, everywhere))
    parts = [Strongest.of(maps[i : i + 3], i, everywhere) for i in (0, 3, 6)]
    empty = Strongest.empty(4, 3)
    forwards = empty.merge(parts[0]).merge(parts[1]).merge(parts[2])
    backwards = empty.merge(parts[2]).merge(parts[0]).merge(parts[1])
    for found in (forwards, backwards):
        assert torch.equal(found.values, whole.values)
        assert torch.equal(found.images, whole.images)
        assert torch.equal(found.positions, whole.positions)


def index_of(broken, mended, samples) -> CarIndex:
    whole = Baseline(tuple(samples), tuple(samples), 0.0, 0.0, 0)
    broken, mended = torch.tensor(broken), torch.tensor(mended)
    nothing = torch.zeros(len(broken))
    units = tuple((unit,) for unit in range(len(broken)))
    layer = LayerCar(units, ("0", "3"), "spliced", whole, broken, mended, *[nothing] * 3)
    return CarIndex({"0": layer}, whole)


def test_intervals_cover_the_truth_in_95_of_100_cases():
    n, lost, gained, draws = 40, 0.10, 0.04, 4000
    torch.manual_seed(0)
    kinds = torch.rand(draws, n)
    broken = (kinds < lost).sum(1, keepdim=True)
    mended = (kinds > 1 - gained).sum(1, keepdim=True)
    found = filters.served(index_of(broken.tolist(), mended.tolist(), [n]), "0", draws)
    truth = lost - gained
    covered = ((found.low <= truth) & (truth <= found.high)).double().mean()
    assert 0.93 < covered < 0.985
    assert torch.equal(found.change[:, 0], (broken - mended)[:, 0].double() / n)


def test_served_reads_coupled_layers_and_classes_without_images():
    index = index_of([[8, 0], [0, 0]], [[0, 0], [1, 0]], [10, 0])
    found = filters.served(index, "3", 2)
    assert found.together == ("0",)
    assert found.change[:, 0].tolist() == [0.8, -0.1]
    assert found.low[:, 1].isnan().all()
    assert found.low[0, 0] > 0
    assert found.low[1, 0] < 0 < found.high[1, 0]
    assert filters.served(index, "3", 7) is None
    assert filters.served(index, "elsewhere", 2) is None


@pytest.mark.parametrize(("among", "marked", "first"), [(16, 5, 8), (30, 30, 3), (9, 0, 4)])
def test_chance_equals_the_hypergeometric_of_scipy(among, marked, first):
    order = [("a", unit) for unit in range(among)]
    found = filters.enrichment(order, [("a", unit) for unit in range(marked)], among, first)
    inside = min(marked, first)
    assert found.found == inside
    assert found.p == pytest.approx(stats.hypergeom.sf(inside - 1, among, marked, first))
    assert found.expected == pytest.approx(first * marked / among)


def test_several_networks_together_equal_a_simulation():
    order = [("a", unit) for unit in range(12)]
    parts = [
        filters.enrichment(order, [("a", unit) for unit in kind], 12, 6)
        for kind in ({0, 1, 2, 9}, {0, 3, 7, 8}, {1, 2})
    ]
    generator = torch.Generator().manual_seed(0)
    draws = sum(
        (torch.rand(20000, 12, generator=generator).argsort(1)[:, :6] < part.marked).sum(1)
        for part in parts
    )
    simulated = (draws >= sum(part.found for part in parts)).double().mean()
    assert filters.combined(parts) == pytest.approx(float(simulated), abs=0.015)


def test_the_order_of_removal_is_told_in_the_numbers_of_the_whole_network():
    plan = Plan(
        (
            (Removal("a", (1,)), Removal("b", (0,))),
            (Removal("a", (1, 2)),),
            (Removal("a", (0,)),),
        )
    )
    order = filters.removal_order(plan, {"a": 5})
    assert order == [("a", 1), ("a", 2), ("a", 3), ("a", 0)]
