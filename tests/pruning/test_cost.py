"""Predicted and measured cost: against a count by hand, torch's counter, and surgery itself."""

from collections import Counter

import pytest
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pruning_networks import SMALL, data_for, drawn, randomise
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from niwaki.criteria import score
from niwaki.evaluation import cost
from niwaki.models import zoo
from niwaki.propagation import trace
from niwaki.pruning import Schedule, couple, operate, prune
from niwaki.pruning.units._budget import Budget
from niwaki.pruning.units._selection import select

COSTS = ["units", "params", "macs"]


def macs_by_hand(model, inputs):
    """Count, in every convolution and linear layer, outputs times the inputs of each."""
    counts = []

    def count(module, _, output):
        places = output[0].numel()
        counts.append(places * module.weight[0].numel())

    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        model(inputs)
    for hook in hooks:
        hook.remove()
    return sum(counts)


def macs_of_torch(model, inputs):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(inputs)
    counts = Counter({str(op): n for op, n in counter.get_flop_counts()["Global"].items()})
    assert counts.keys() <= {"aten.convolution", "aten.addmm", "aten.mm"}
    return counts.total() // 2


def units_by_modules(model):
    outputs = [
        m.out_channels if isinstance(m, nn.Conv2d) else m.out_features
        for m in model.modules()
        if isinstance(m, (nn.Conv2d, nn.Linear))
    ]
    return sum(outputs) - outputs[-1]


@pytest.mark.parametrize(
    ("build", "size"),
    [
        (torchvision.models.resnet18, 64),
        (torchvision.models.mobilenet_v2, 64),
        (zoo.resnet56, 32),
    ],
    ids=["resnet18", "mobilenet_v2", "resnet56"],
)
def test_cost_is_what_other_counters_say_before_and_after(build, size):
    torch.manual_seed(0)
    model = build().eval()
    data = data_for(size, samples=2)
    pruned = prune(
        model, data, "weight", keep=0.6, of="macs", repair=None, schedule=Schedule(steps=1)
    )
    for network, row in ((model, pruned.trajectory[0]), (pruned.model, pruned.trajectory[1])):
        found = cost(network, data[0])
        assert found.macs == macs_by_hand(network, data[0][:1])
        assert found.macs == macs_of_torch(network, data[0][:1])
        assert found.params == sum(p.numel() for p in network.parameters())
        assert found.units == units_by_modules(network)
        assert (row.units, row.params, row.macs) == (found.units, found.params, found.macs)


def assert_prediction_holds(model, size, of, share, criterion="random"):
    """Plan, predict, operate, count: and one removal less would not have done."""
    data = data_for(size, samples=2)
    scores = score(model, data, criterion)
    groups = couple(model, data[0], list(scores))
    budget = Budget(model, trace(model, data[0][:1]), groups, of)
    before = getattr(cost(model, data[0]), of)
    assert budget.total() == before
    target = share * before
    history = [before]
    plain_remove = budget.remove

    def remove(group, unit):
        saved = plain_remove(group, unit)
        history.append(budget.total())
        assert saved == history[-2] - history[-1] > 0
        return saved

    budget.remove = remove
    removals = select(groups, scores, budget, target, least=[1] * len(groups))
    if removals:
        operate(model, data[0], removals)
    found = getattr(cost(model, data[0]), of)
    assert found == budget.total() == history[-1]
    if found <= target:  # else nothing more may go
        assert len(history) == 1 or history[-2] > target
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            assert min(module.weight.shape) >= 1


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(drawn, st.sampled_from(COSTS), st.floats(0.05, 0.95))
def test_prediction_is_exact_for_drawn_networks(model, of, share):
    assert_prediction_holds(randomise(model), 5, of, share)


@pytest.mark.parametrize("of", COSTS)
@pytest.mark.parametrize("name", SMALL)
def test_prediction_is_exact(name, of):
    for share in (0.75, 0.3):
        torch.manual_seed(0)
        assert_prediction_holds(randomise(SMALL[name]()), 8, of, share)


@pytest.mark.parametrize("of", COSTS)
@pytest.mark.parametrize("build", [zoo.resnet20, zoo.vgg_digits], ids=["resnet20", "vgg_digits"])
def test_prediction_is_exact_for_the_zoo(build, of):
    torch.manual_seed(0)
    model = build(in_channels=3) if build is zoo.vgg_digits else build()
    assert_prediction_holds(model.eval(), 8, of, 0.6)


@pytest.mark.parametrize("of", COSTS)
@pytest.mark.parametrize("keep", [0.29, 0.5, 0.9])
def test_the_result_is_the_first_at_or_below_keep(of, keep):
    torch.manual_seed(0)
    model = randomise(nn.Sequential(nn.Flatten(), nn.Linear(3, 100), nn.ReLU(), nn.Linear(100, 3)))
    pruned = prune(model, data_for(1), "random", keep=keep, of=of, schedule=Schedule(steps=3))
    first, last = (getattr(pruned.trajectory[i], of) for i in (0, -1))
    unit = {"units": 1, "params": 7, "macs": 6}[of]
    assert last <= round(keep * first, 6) < last + unit
