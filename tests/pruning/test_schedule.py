"""Schedules, limits, floors, and scores that are computed once."""

import math
from functools import partial

import pytest
import torch
from bundles import bundled
from hypothesis import given, settings
from hypothesis import strategies as st
from pruning_networks import SMALL, Residual, chain, data_for, randomise
from torch import nn

from niwaki import pruning
from niwaki.criteria import Criterion, create, score
from niwaki.errors import NiwakiError, NothingToPruneError
from niwaki.evaluation import accuracy
from niwaki.pruning import Removal, Step, Trajectory, couple
from niwaki.pruning._loop import _survivors

# What is left is compared with what was there: nothing is rebuilt.
prune = partial(pruning.prune, repair=None)


def perceptron(*widths):
    layers = [nn.Flatten()]
    for before, after in zip((3, *widths), (*widths, 3), strict=True):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def widths(model):
    return [m.out_features for m in model if isinstance(m, nn.Linear)][:-1]


@settings(max_examples=100, deadline=None)
@given(st.floats(0.01, 0.99), st.integers(1, 30))
def test_steps_are_of_the_same_size(keep, steps):
    equal, geometric = (
        pruning.Schedule(steps, spacing=how).targets(keep) for how in ("equal", "geometric")
    )
    assert equal[-1] == geometric[-1] == keep
    assert len(equal) == len(geometric) == steps
    before, ratios = [1.0, *equal], [1.0, *geometric]
    drops = [a - b for a, b in zip(before, equal, strict=False)]
    shares = [b / a for a, b in zip(ratios, geometric, strict=False)]
    assert max(drops) - min(drops) < 1e-9
    assert max(shares) - min(shares) < 1e-9


@settings(max_examples=100, deadline=None)
@given(st.floats(0.05, 0.95), st.floats(0.01, 0.9))
def test_a_share_per_step_is_never_exceeded(keep, share):
    left = pruning.Schedule(per_step=share, spacing="geometric").targets(keep)
    assert left[-1] == keep
    for before, after in zip([1.0, *left], left, strict=False):
        assert 1 - share - 1e-9 <= after / before < 1
    assert len(left) == 1 or left[-2] > keep


def test_an_unknown_schedule():
    with pytest.raises(ValueError, match="neither 'equal' nor 'geometric'"):
        pruning.Schedule(2, spacing="cubic")


def test_a_geometric_run():
    pruned = prune(
        perceptron(64),
        data_for(1),
        "weight",
        keep=0.125,
        of="units",
        schedule=pruning.Schedule(steps=3, spacing="geometric"),
    )
    assert [row.units for row in pruned.trajectory] == [64, 32, 16, 8]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(2, 40), min_size=1, max_size=3), st.integers(2, 8), st.integers(0, 9))
def test_widths_are_multiples_where_anything_went(before, multiple, seed):
    model = perceptron(*before)
    try:
        pruned = prune(
            model,
            data_for(1),
            create("random", seed=seed),
            keep=0.6,
            of="units",
            schedule=pruning.Schedule(steps=2),
            limits=pruning.Limits(round_to=multiple),
        )
    except NiwakiError:
        lowest = [min(w, multiple) for w in before]
        assert sum(lowest) > 0.6 * sum(before)
        return
    for old, new in zip(before, widths(pruned.model), strict=True):
        assert new == old or new % multiple == 0
    assert sum(widths(pruned.model)) <= 0.6 * sum(before)


class ByDepth(Criterion):
    """The first layers are worth least."""

    name = "by_depth"
    needs_data = False

    def scores(self, totals, layers, model):
        return {
            layer.name: torch.full((layer.units,), float(i), dtype=torch.float64)
            for i, layer in enumerate(layers)
        }


@pytest.mark.parametrize(
    ("ceilings", "left"),
    [
        (None, [1, 14, 20]),
        (0.5, [10, 10, 15]),
        ({"1": 0.25}, [15, 1, 19]),
        ({"*": 0.25, "1": 1.0}, [1, 15, 19]),
        ({"1": 0.0, "[3]": 0.5}, [20, 10, 5]),
    ],
    ids=str,
)
@pytest.mark.parametrize("steps", [1, 3])
def test_ceilings_count_from_the_original_width(ceilings, left, steps):
    model = perceptron(20, 20, 20)
    pruned = prune(
        model,
        data_for(1),
        ByDepth(),
        keep=35 / 60,
        of="units",
        schedule=pruning.Schedule(steps=steps),
        limits=pruning.Limits(ceilings=ceilings),
    )
    assert widths(pruned.model) == left


def test_ceilings_of_coupled_layers():
    model, data = randomise(Residual()), data_for(8)
    pruned = prune(
        model,
        data,
        "random",
        keep=0.6,
        of="units",
        schedule=pruning.Schedule(steps=2),
        limits=pruning.Limits(ceilings={"outer": 0.34}),
    )
    assert pruned.model.stem.out_channels == pruned.model.outer.out_channels >= 4


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ceilings": 1.5}, ValueError, "a number from 0 to 1"),
        ({"ceilings": {"conv7": 0.5}}, ValueError, "ceilings: there is no"),
        ({"ceilings": 0.3}, NiwakiError, "the ceilings respected"),
        ({"ceilings": 0.0}, NothingToPruneError, "nothing to prune"),
        ({"round_to": 0}, ValueError, "round_to = 0"),
        ({"round_to": 8}, NiwakiError, "multiples of 8"),
        ({"floor": 0.5}, ValueError, "needs validation data"),
        ({"floor": 85.0}, ValueError, "above 0 and up to 1"),
        ({"spacing": "cubic"}, ValueError, "cubic"),
        ({"per_cost": -1.0}, ValueError, "per_cost = -1.0"),
        ({"tune": 3}, ValueError, "neither a FineTune nor a function"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_for(options, error, message):
    with pytest.raises(error, match=message):
        prune(
            perceptron(20, 20),
            data_for(1),
            "random",
            **bundled(**{"keep": 0.25, "of": "units", **options}),
        )


def test_patterns_name_layers():
    model, data = randomise(chain(width=8)), data_for(8)
    pruned = prune(
        model,
        data,
        "weight",
        keep=0.8,
        of="units",
        schedule=pruning.Schedule(steps=1),
        limits=pruning.Limits(ignore=["[3-9]"]),
    )
    assert (pruned.model[0].out_channels, pruned.model[3].out_channels) == (4, 8)


# Floors.


class Steps:
    """Accuracies by the number of units that are left, in place of a data set's."""

    def __init__(self, by_units):
        self.by_units = by_units

    def __call__(self, model, data, **_):
        return self.by_units[sum(widths(model))]


@pytest.mark.parametrize(
    ("accuracies", "kept", "rows"),
    [
        ([0.9, 0.9, 0.8, 0.9, 0.9], 16, 5),  # equal to the floor is good enough
        ([0.9, 0.79, 0.9, 0.9, 0.9], 32, 2),
        ([0.9, 0.85, 0.85, 0.1, 0.9], 24, 4),
    ],
    ids=str,
)
def test_the_last_good_network_is_returned(accuracies, kept, rows, monkeypatch):
    units = [32, 28, 24, 20, 16]
    monkeypatch.setattr(
        "niwaki.pruning.steps.accuracy", Steps(dict(zip(units, accuracies, strict=True)))
    )
    pruned = prune(
        perceptron(32),
        data_for(1),
        "weight",
        keep=0.5,
        of="units",
        validation=data_for(1),
        schedule=pruning.Schedule(steps=4, floor=0.8),
    )
    assert sum(widths(pruned.model)) == kept
    assert pruned.trajectory.final.units == kept
    assert len(pruned.trajectory) == rows
    assert len(pruned.plan.steps) == units.index(kept)
    assert [row.rejected for row in pruned.trajectory] == [a < 0.8 for a in accuracies[:rows]]
    assert [row.validation for row in pruned.trajectory] == accuracies[:rows]
    assert ("rejected" in str(pruned.trajectory)) == (rows < 5 or kept != 16)


def test_a_floor_on_real_accuracies():
    model, data = randomise(chain()), data_for(8)
    labels = model(data[0]).argmax(1)  # right from the start
    held = (data[0], labels)
    pruned = prune(
        model,
        held,
        "random",
        keep=0.2,
        of="macs",
        validation=held,
        schedule=pruning.Schedule(floor=0.9),
    )
    assert pruned.trajectory[-1].rejected
    assert pruned.trajectory[-1].validation < 0.9 <= pruned.trajectory.final.validation
    assert accuracy(pruned.model, held) == pruned.trajectory.final.validation
    wrong = (data[0], (labels + 1) % 3)
    with pytest.raises(NiwakiError, match=r"before anything is removed, below the floor of 90.00%"):
        prune(
            model, held, "random", keep=0.2, validation=wrong, schedule=pruning.Schedule(floor=0.9)
        )


def test_an_unreachable_share_is_no_mistake_with_a_floor():
    model, data = randomise(chain()), data_for(8)
    with torch.no_grad():
        model[-1].bias -= model(data[0]).mean(0)  # or one class could have all images for good
    held = (data[0], model(data[0]).argmax(1))
    options = {"keep": 0.01, "of": "params", "steps": 3, "validation": held}
    with pytest.raises(NiwakiError, match="cannot be reached"):
        prune(model, held, "weight", **bundled(**options))
    assert prune(model, held, "weight", **bundled(floor=0.99, **options)).trajectory[-1].rejected


# Scores that are computed once.


@pytest.mark.parametrize("name", [n for n in SMALL if n != "group per layer"])
def test_survivors_keep_their_scores(name):
    model, data = randomise(SMALL[name]()), data_for(8)
    scores = score(model, data, "random", seed=3)
    groups = couple(model, data[0][:2], list(scores))
    removals = [Removal(g.root, g.units[1]) for g in groups if len(g) > 1]
    left = _survivors(scores, groups, removals)
    gone = {g.root: g for g in groups if len(g) > 1}
    for layer, values in scores.items():
        lost = {
            channel
            for group in gone.values()
            for member in group.members
            if member.output and member.layer == layer
            for channel in member.channels[1]
        }
        expected = [v for i, v in enumerate(values.tolist()) if i not in lost]
        assert left[layer].tolist() == expected
    assert gone
    assert any(len(left[layer]) < len(scores[layer]) for layer in scores)


class Once(Criterion):
    """Says how often it was asked; what a unit is worth stands in its bias."""

    name = "once"
    needs_data = False

    def __init__(self):
        super().__init__()
        self.asked = 0

    def scores(self, totals, layers, model):
        self.asked += 1
        return {
            layer.name: model.get_submodule(layer.name).bias.detach().double() for layer in layers
        }


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("name", ["chain", "residual", "grouped"])
def test_scores_that_do_not_change_give_one_plan(name, recompute):
    torch.manual_seed(0)
    model, data = randomise(SMALL[name]()), data_for(8)
    counted, options = Once(), {"keep": 0.6, "of": "units", "steps": 3}
    many = prune(model, data, counted, **bundled(recompute=recompute, **options))
    assert counted.asked == (3 if recompute else 1)
    expected = prune(model, data, Once(), **bundled(**options))
    assert many.plan == expected.plan
    for mine, other in zip(many.model.parameters(), expected.model.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_trajectories_with_all_columns():
    rows = Trajectory(
        (
            Step(0, 10, 100, 1000, 0.9, None, 0.1, 0.9),
            Step(1, 5, 50, 500, 0.5, 0.8, 1, 0.7),
            Step(2, 4, 40, 400, 0.1, 0.2, 1, 0.3, rejected=True),
        )
    )
    assert Trajectory.from_json(rows.to_json()) == rows
    assert rows.final.step == 1
    head, *table = str(rows).splitlines()
    assert head.split()[-2:] == ["accuracy", "tuned"]
    assert table[1].split()[-2:] == ["50.00%", "80.00%"]
    assert table[2].split()[-3:] == ["10.00%", "20.00%", "rejected"]
    assert math.isclose(rows.kept("macs")[2], 0.4)
