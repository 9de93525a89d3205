"""Prices of MACs: predicted against a count by hand, and seconds where the time goes."""

import copy
import time

import pytest
import torch
from bundles import bundled
from torch import nn

from niwaki.evaluation import cost, seconds_per_mac
from niwaki.pruning import Schedule, prune


class Slow(nn.Conv2d):
    """A convolution that takes its time."""

    def forward(self, x):
        time.sleep(0.02)
        return super().forward(x)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.ReLU(),
        Slow(12, 12, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 4),
    ).eval()


@pytest.fixture
def data():
    torch.manual_seed(1)
    return torch.randn(8, 3, 8, 8), torch.arange(8) % 4


def macs(model):
    """Count by hand: all convolutions see 8 x 8 positions, the linear layer one."""
    return {
        name: m.weight.numel() * (1 if isinstance(m, nn.Linear) else 64)
        for name, m in model.named_modules()
        if isinstance(m, (nn.Conv2d, nn.Linear))
    }


def priced(model, prices):
    return sum(count * prices[name] for name, count in macs(model).items())


PRICES = {"0": 1.0, "2": 30.0, "4": 2.0, "8": 5.0}


@pytest.mark.parametrize("keep", [0.8, 0.5, 0.3])
def test_the_priced_cost_is_met(data, keep):
    model = network()
    pruned = prune(model, data, "weight", keep=keep, schedule=Schedule(prices=PRICES, steps=2))
    found = priced(pruned.model, PRICES) / priced(model, PRICES)
    assert found <= keep
    assert found > keep - 0.15  # no more is gone than a unit or two
    assert pruned.settings["prices"].keys() == PRICES.keys()


@pytest.mark.slow
def test_the_unit_of_prices_does_not_matter(data):
    plans = [
        prune(network(), data, "lrp", keep=0.5, schedule=Schedule(steps=2, prices=prices)).plan
        for prices in (PRICES, {name: 1e-9 * price for name, price in PRICES.items()})
    ]
    assert plans[0] == plans[1]


@pytest.mark.slow
def test_equal_prices_are_none(data):
    equal = dict.fromkeys(PRICES, 7.0)
    plans = [
        prune(network(), data, "lrp", keep=0.5, schedule=Schedule(steps=3, prices=prices)).plan
        for prices in (None, equal)
    ]
    assert plans[0] == plans[1]


@pytest.mark.parametrize(("price_of_the_first", "goes"), [(1.0, "2"), (30.0, "0")])
def test_what_saves_most_goes_first(data, price_of_the_first, goes):
    """Of units that are worth the same, by hand: 27 p + 108 in "0", 216 in "2", 108 in "4"."""
    model = network()
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    prices = {"0": price_of_the_first, "2": 1.0, "4": 1.0, "8": 1.0}
    plan = prune(
        model, data, "weight", keep=0.99, schedule=Schedule(steps=1, per_cost=1, prices=prices)
    ).plan
    assert [removal.layer for removal in plan.steps[0]] == [goes]


def test_seconds_are_where_the_time_goes(data):
    model = network()
    before = copy.deepcopy(model.state_dict())
    hooks = [len(m._forward_pre_hooks) for m in model.modules()]
    started = time.perf_counter()
    found = seconds_per_mac(model, data[0], repeats=5, warm_up=1)
    spent = (time.perf_counter() - started) / 6
    seconds = {name: price * macs(model)[name] * 8 for name, price in found.items()}
    assert max(seconds, key=seconds.__getitem__) == "2"
    assert seconds["2"] >= 0.02
    assert sum(seconds.values()) <= spent * 1.5
    assert [len(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"prices": {"nowhere": 1.0}}, "no layer 'nowhere'"),
        ({"prices": {"2": 0.0}}, "not positive"),
        ({"prices": {"2": float("nan")}}, "prices = "),
        ({"prices": {"2": 1.0}, "of": "params"}, "do not go with of = 'params'"),
    ],
)
def test_wrong_prices_are_refused(data, options, says):
    with pytest.raises(ValueError, match=says):
        prune(network(), data, "weight", **bundled(**options))


def test_a_layer_without_a_price_has_the_mean_one(data):
    """Two layers of equal size and the mean of their prices: as if all had been named."""
    model = network()
    some = {"2": 3.0, "4": 1.0}
    pruned = prune(model, data, "weight", keep=0.5, schedule=Schedule(steps=1, prices=some))
    scaled = {"2": 1.5, "4": 0.5, "0": 1.0, "8": 1.0}
    assert priced(model, scaled) == pytest.approx(cost(model, data[0]).macs)
    assert priced(pruned.model, scaled) <= 0.5 * priced(model, scaled)


class Unusual(nn.Module):
    """Layers called by keyword, or as a function of a parameter."""

    def __init__(self, by_function):
        super().__init__()
        self.by_function = by_function
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 4)

    def forward(self, x):
        if self.by_function:
            x = nn.functional.conv2d(x, self.conv.weight).relu().mean((2, 3))
            return nn.functional.linear(x, self.head.weight)
        return self.head(input=self.conv(input=x).relu().mean((2, 3)))


@pytest.mark.parametrize(("by_function", "known"), [(False, {"conv", "head"}), (True, set())])
def test_layers_that_are_called_in_other_ways(data, by_function, known):
    assert seconds_per_mac(Unusual(by_function).eval(), data[0], repeats=2).keys() == known
