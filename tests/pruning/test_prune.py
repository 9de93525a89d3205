"""The loop: numbers, options, refusals, plans and trajectories."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from bundles import bundled
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pruning_networks import (
    SMALL,
    Residual,
    assert_same,
    chain,
    data_for,
    randomise,
    snapshot,
)
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from niwaki.criteria import Criterion, create, names
from niwaki.errors import KeptWarning, ModelError, NiwakiError, NothingToPruneError
from niwaki.evaluation import accuracy, cost
from niwaki.pruning import Limits, Plan, Removal, Run, Schedule, Step, Trajectory, prune


class Equal(Criterion):
    """All units are worth the same."""

    name = "equal"
    needs_data = False

    def scores(self, totals, layers, model):
        return {layer.name: torch.ones(layer.units, dtype=torch.float64) for layer in layers}


def perceptron(*widths):
    layers = [nn.Flatten()]
    for before, after in zip((3, *widths), (*widths, 3), strict=True):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


widths = st.lists(st.integers(1, 40), min_size=1, max_size=4).filter(lambda w: sum(w) > 1)


@pytest.mark.slow
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(widths, st.floats(0.1, 0.95))
def test_numbers_are_exact_when_all_scores_are_equal(widths, keep):
    model, data = perceptron(*widths), data_for(1)
    total = sum(widths)
    left = math.floor(keep * total + 1e-3 / 2)
    if left < len(widths):
        with pytest.raises(NiwakiError, match=r"cannot be reached|nothing to prune"):
            prune(model, data, Equal(), keep=keep, of="units", schedule=Schedule(steps=1))
        return
    pruned = prune(model, data, Equal(), keep=keep, of="units", schedule=Schedule(steps=1))
    assert pruned.trajectory[-1].units == left
    remaining = [m.out_features for m in pruned.model if isinstance(m, nn.Linear)][:-1]
    assert min(remaining) >= 1
    # Ties go from the first layer on, and all but one unit of a layer may go.
    gone = total - left
    for width, rest in zip(widths, remaining, strict=True):
        here = min(width - 1, gone)
        assert rest == width - here
        gone -= here


CRITERIA = [name for name in names() if not name.startswith("lrp.")]
EVERYWHERE = [name for name in CRITERIA if name != "bn_scale"]  # also where there is no norm


@pytest.mark.parametrize("of", ["units", "params", "macs"])
@pytest.mark.parametrize("criterion", EVERYWHERE)
def test_every_criterion_prunes_by_every_cost(criterion, of):
    model, data = randomise(Residual()), data_for(8)
    pruned = prune(model, data, criterion, keep=0.6, of=of, schedule=Schedule(steps=2))
    assert getattr(cost(pruned.model, data[0]), of) <= 0.6 * getattr(cost(model, data[0]), of)
    assert pruned.model(data[0]).shape == (6, 3)
    assert not any(m.training for m in pruned.model.modules())


def test_network_slimming_leaves_layers_without_a_norm_alone():
    model, data = randomise(chain()), data_for(8)
    model[4] = nn.Identity().eval()
    pruned = prune(model, data, "bn_scale", keep=0.8, of="units", schedule=Schedule(steps=1))
    assert pruned.model[0].out_channels < 6
    assert pruned.model[3].out_channels == 8


class Breaks(Dataset):
    """Fails at the second batch."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return 6

    def __getitem__(self, index):
        if index >= 4:
            raise OSError("the disk is gone")
        return self.data[0][index], int(self.data[1][index])


@pytest.mark.parametrize("criterion", EVERYWHERE)
@pytest.mark.parametrize("name", ["chain", "residual", "partly functional"])
@pytest.mark.parametrize("breaks", [False, True], ids=["goes well", "breaks"])
def test_the_network_is_as_it_was(criterion, name, breaks):
    model, data = randomise(SMALL[name]()), data_for(8)
    model(data[0]).sum().backward()
    first = next(model.parameters())
    first.requires_grad_(False)
    model.register_forward_hook(lambda *_: None)
    before = snapshot(model)
    if breaks and create(criterion).needs_data:
        with pytest.raises(OSError, match="the disk is gone"):
            prune(
                model,
                Breaks(data),
                criterion,
                keep=0.7,
                schedule=Schedule(steps=1),
                run=Run(batch_size=2),
            )
    else:
        pruned = prune(model, data, criterion, keep=0.7, of="units", schedule=Schedule(steps=1))
        assert not {id(p) for p in pruned.model.parameters()} & {id(p) for p in model.parameters()}
    assert_same(before, snapshot(model))


def test_a_forward_pass_that_fails_leaves_the_network_as_it_was(monkeypatch):
    model, data = randomise(chain()), data_for(8)
    before = snapshot(model)
    calls, fails = [], [float("inf")]

    def forward(self, x):
        calls.append(x)
        if len(calls) == fails[0]:
            raise RuntimeError("out of memory")
        return F.relu(x)

    def pruned():
        calls.clear()
        prune(model, data, "taylor", keep=0.5, repair=None, schedule=Schedule(steps=1))

    monkeypatch.setattr(nn.ReLU, "forward", forward)
    pruned()
    count = len(calls)
    assert count >= 4
    for fails[0] in range(1, count + 1):
        # A layer that cannot be tried out stays, with a warning that says why.
        with pytest.raises((RuntimeError, ModelError, KeptWarning), match="out of memory"):
            pruned()
        assert_same(before, snapshot(model))


def test_frozen_parameters_stay_frozen():
    model, data = randomise(chain()), data_for(8)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in ("0.weight", "4.bias"))
    pruned = prune(model, data, "taylor", keep=0.5, schedule=Schedule(steps=2))
    frozen = {name for name, p in pruned.model.named_parameters() if not p.requires_grad}
    assert frozen == {"0.weight", "4.bias"}


def test_nothing_depends_on_the_callers_gradient_mode():
    model, data = randomise(chain()), data_for(8)
    expected = prune(model, data, "lrp", keep=0.5, schedule=Schedule(steps=2))
    with torch.no_grad():
        found = prune(model, data, "lrp", keep=0.5, schedule=Schedule(steps=2))
    assert found.plan == expected.plan
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert prune(model, data, "lrp", keep=0.5, schedule=Schedule(steps=2)).plan == expected.plan


def test_kinds_of_data_give_the_same_plan():
    model, data = randomise(Residual()), data_for(8)
    expected = prune(model, data, "taylor", keep=0.6, schedule=Schedule(steps=1)).plan
    dataset = TensorDataset(*data)
    for other in (dataset, DataLoader(dataset, batch_size=4)):
        assert (
            prune(
                model, other, "taylor", keep=0.6, schedule=Schedule(steps=1), run=Run(batch_size=2)
            ).plan
            == expected
        )


def test_trajectory_plan_and_callback_agree():
    model, data = randomise(Residual()), data_for(8)
    seen = []
    pruned = prune(
        model,
        data,
        "weight",
        keep=0.5,
        of="units",
        test=data,
        schedule=Schedule(per_step=0.2),
        run=Run(callback=seen.append),
    )
    rows = pruned.trajectory
    assert list(rows) == seen
    assert [row.step for row in rows] == [0, 1, 2, 3]
    assert len(pruned.plan.steps) == 3
    shares = rows.kept("units")
    assert all(share <= aim for share, aim in zip(shares, (1, 0.8, 0.6, 0.5), strict=True))
    assert rows[0].accuracy == accuracy(model, data)
    assert rows[-1].accuracy == accuracy(pruned.model, data)
    assert (rows[-1].params, rows[-1].macs) == (
        cost(pruned.model, data[0]).params,
        cost(pruned.model, data[0]).macs,
    )
    again = Trajectory.from_json(json.loads(json.dumps(rows.to_json())))
    assert again == rows
    table = str(rows).splitlines()
    assert len(table) == 5
    assert "100.0%" in table[1]


def test_a_trajectory_without_accuracy_prints():
    rows = Trajectory((Step(0, 10, 100, 1000, None, None, 0.1), Step(1, 5, 50, 500, 0.5, None, 1)))
    assert rows.kept("macs") == [1, 0.5]
    assert str(rows).splitlines()[2].split() == ["1", "5", "50", "500", "50.0%", "50.00%"]


def test_a_plan_prints_and_comes_back_from_json():
    plan = Plan(((Removal("a.conv", (0, 2)), Removal("b", (1,))), (Removal("b", (0, 5)),)))
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert plan.removed() == {"a.conv": 2, "b": 3}
    assert str(plan).splitlines()[0] == "Plan of 2 steps"
    assert [line.split() for line in str(plan).splitlines()[1:]] == [["a.conv", "-2"], ["b", "-3"]]
    assert repr(plan) == "Plan(2 steps, 5 channels)"


@pytest.mark.parametrize(
    ("schedule", "steps"),
    [
        ({"steps": 1}, 1),
        ({"steps": 4}, 4),
        ({"per_step": 0.3}, 2),
        ({}, 5),  # rebuilt, without training
        ({"repair": None}, 10),
        ({"repair": "compensate"}, 10),
        ({"tune": lambda network, step: None}, 10),
        ({"floor": 0.001, "validation": data_for(1)}, 10),
    ],
    ids=lambda given: "-".join(given) or "default" if isinstance(given, dict) else str(given),
)
def test_schedules(schedule, steps):
    pruned = prune(
        perceptron(40), data_for(1), "weight", **bundled(keep=0.5, of="units", **schedule)
    )
    assert [row.units for row in pruned.trajectory][-1] == 20
    assert len(pruned.trajectory) == steps + 1


@pytest.mark.parametrize("ignore", [["0"], ["0", "3"], ["3"]], ids=str)
def test_ignored_layers_keep_their_units(ignore):
    model, data = randomise(chain(width=8)), data_for(8)
    if len(ignore) == 2:
        with pytest.raises(NothingToPruneError):
            prune(
                model,
                data,
                "weight",
                keep=0.8,
                of="units",
                schedule=Schedule(steps=1),
                limits=Limits(ignore=ignore),
            )
        return
    pruned = prune(
        model,
        data,
        "weight",
        keep=0.8,
        of="units",
        schedule=Schedule(steps=1),
        limits=Limits(ignore=ignore),
    )
    for name in ("0", "3"):
        assert (pruned.model.get_submodule(name).out_channels == 8) == (name in ignore)


def test_ignoring_a_module_keeps_the_layers_in_it_and_what_is_tied_to_them():
    model = nn.ModuleDict({"body": Residual()})["body"]
    wrapped = nn.Sequential(nn.Identity(), model).eval()
    data = data_for(8)
    with pytest.raises(NothingToPruneError):
        prune(
            wrapped,
            data,
            "weight",
            keep=0.9,
            schedule=Schedule(steps=1),
            limits=Limits(ignore=["1"]),
        )
    pruned = prune(
        wrapped,
        data,
        "weight",
        keep=0.9,
        of="units",
        schedule=Schedule(steps=1),
        limits=Limits(ignore="1.outer"),
    )
    assert pruned.plan.removed().keys() == {"1.inner"}


def test_min_units_are_left():
    pruned = prune(
        perceptron(30, 9, 2),
        data_for(1),
        "random",
        keep=0.4,
        of="units",
        limits=Limits(min_units=5),
    )
    remaining = [m.out_features for m in pruned.model if isinstance(m, nn.Linear)][:-1]
    assert remaining[2] == 2  # was below already
    assert min(remaining[:2]) >= 5
