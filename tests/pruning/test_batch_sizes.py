"""Reference samples in batches of any size give one plan."""

import pytest
import torch
from bundles import bundled
from pruning_networks import Residual, chain, data_for, randomise

from niwaki import criteria
from niwaki.pruning import prune

SAMPLES = 20
SIZES = [(3, SAMPLES), pytest.param((1, 7, SAMPLES), marks=pytest.mark.long)]
NETWORKS = {"residual": Residual, "chain": lambda: chain(9)}


def plan(name, criterion, batch_size, **repairs):
    torch.manual_seed(0)
    # In double precision, where no two units are within rounding of each other.
    model = randomise(NETWORKS[name]()).double()
    data = data_for(8, samples=SAMPLES, dtype=torch.float64)
    options = {"keep": 0.5, "of": "units", "steps": 1, "batch_size": batch_size}
    return prune(model, data, criterion, **bundled(**options, **repairs)).plan


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("criterion", criteria.names())
@pytest.mark.parametrize("name", ["chain"])
def test_every_criterion(name, criterion, sizes):
    plans = [plan(name, criterion, size, repair=None) for size in sizes]
    assert all(other == plans[0] for other in plans)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("criterion", ["taylor", "gradient", "lrp"])
@pytest.mark.parametrize(
    "repairs",
    [{"repair": name} for name in ("rebuild", "rebuild_jointly", "recalibrate", "compensate")],
    ids=str,
)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_repair(name, repairs, criterion, sizes):
    plans = [plan(name, criterion, size, **repairs) for size in sizes]
    assert all(other == plans[0] for other in plans)
