"""Rules by data: defaults first, the best is the best, and a search can be gone on with."""

import json

import optuna
import pytest
import torch
from bundles import bundled
from pruning_networks import Residual, assert_same, chain, data_for, randomise, snapshot
from torch import nn

import niwaki
from niwaki.criteria import create
from niwaki.errors import NiwakiError
from niwaki.propagation import AlphaBeta, Epsilon, Gamma, ZPlus, load_composite, trace
from niwaki.pruning import Choice, Trial, area, choose_rules
from niwaki.pruning.comparison import _choose_rules
from niwaki.pruning.comparison._choice import depth_groups

pytestmark = pytest.mark.slow

FEW = data_for(8)
HELD = data_for(8, samples=24)
SMALL = {"validation": HELD, "trials": 6, "steps": 3, "keep": 0.4}


def deep():
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()]
    for width in (4, 5, 6, 4, 5, 6):
        before = layers[-2].out_channels
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *pool, nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.fixture(scope="module")
def model():
    return randomise(deep())


@pytest.fixture(scope="module")
def found(model):
    return choose_rules(model, FEW, **bundled(**SMALL, function="choose_rules"))


def told(choice):
    return [(trial.settings, trial.area) for trial in choice.trials]


def test_layers_are_grouped_by_depth_without_the_first(model):
    groups = depth_groups(trace(model, FEW[0]))
    assert groups == {
        "low": ("2", "4"), "middle": ("6", "8"), "high": ("10", "12"), "linear": ("16", "18"),
    }  # fmt: skip
    few = depth_groups(trace(randomise(chain()), FEW[0]))
    assert few == {"middle": ("3",), "linear": ("8",)}


@pytest.mark.filterwarnings("ignore::niwaki.errors.AbsorbedWarning")
@pytest.mark.parametrize("network", [deep, chain, Residual])
def test_the_first_trials_are_the_defaults(network):
    model = randomise(network())
    choice = choose_rules(model, FEW, **bundled(**{**SMALL, "trials": 2}, function="choose_rules"))
    for trial, name in zip(choice.trials, ("lrp", "lrp.z_plus_sums"), strict=True):
        usual = niwaki.prune(
            model, FEW, name, test=HELD, keep=0.4, schedule=niwaki.pruning.Schedule(steps=3)
        )
        assert trial.area == area(usual.trajectory, "macs", (0.4, 1))
        assert trial.settings["per_cost"] == 0.6
        ours = niwaki.score(model, FEW, choice.criterion_of(trial))
        for layer, scores in niwaki.score(model, FEW, name).items():
            torch.testing.assert_close(ours[layer], scores, rtol=0, atol=0)


def test_the_best_is_no_worse_than_any_and_what_it_claims(model, found):
    assert found.best.area == max(trial.area for trial in found.trials)
    assert found.best.area >= max(trial.area for trial in found.trials[:2])
    last = found.trials[-1]
    again = niwaki.prune(
        model,
        FEW,
        found.criterion_of(last),
        test=HELD,
        keep=0.4,
        schedule=niwaki.pruning.Schedule(steps=3, per_cost=last.settings["per_cost"]),
    )
    assert area(again.trajectory, "macs", (0.4, 1)) == last.area
    a, b, c = (Trial(n, {"reduce": "signed", "per_cost": 0.0}, x, 0) for n, x in
               enumerate((None, 0.5, 0.5)))  # fmt: skip
    assert Choice({}, (a, b, c)).best is b


@pytest.mark.slow
def test_the_same_seed_gives_the_same_trials(model, found):
    assert told(choose_rules(model, FEW, **bundled(**SMALL, function="choose_rules"))) == told(
        found
    )
    other = choose_rules(model, FEW, **bundled(**SMALL, seed=1, function="choose_rules"))
    assert told(other)[:2] == told(found)[:2]
    assert [t.settings for t in other.trials[2:]] != [t.settings for t in found.trials[2:]]


def test_rules_go_where_the_settings_say(model):
    groups = depth_groups(trace(model, FEW[0]))
    settings = {
        "low.rule": "Gamma", "low.gamma": 0.3, "middle.rule": "AlphaBeta", "high.rule": "ZPlus",
        "linear.rule": "Epsilon", "linear.epsilon": 0.01, "reduce": "signed", "per_cost": 0.2,
    }  # fmt: skip
    choice = Choice(groups, (Trial(0, settings, 0.5, 1.0),))
    rules = {layer.name: choice.composite.rule(layer.operation) for layer in trace(model, FEW[0])}
    assert rules["2"] == rules["4"] == Gamma(0.3)
    assert rules["6"] == rules["8"] == AlphaBeta(2, 1)
    assert rules["10"] == rules["12"] == ZPlus()
    assert rules["16"] == rules["18"] == Epsilon(0.01)
    assert choice.criterion.reduce == "signed"
    assert choice.per_cost == 0.2
    assert "low Gamma(0.3), middle AlphaBeta, high ZPlus, linear Epsilon(0.01), signed" in str(
        choice
    )


def test_the_exponent_is_chosen_from_a_range(model):
    span = choose_rules(
        model, FEW, **bundled(**SMALL, per_cost=(0.0, 0.5), function="choose_rules")
    )
    exponents = [trial.settings["per_cost"] for trial in span.trials]
    assert exponents[:2] == [0.5, 0.5]  # the default, as far as the range allows
    assert all(0 <= value <= 0.5 for value in exponents)
    assert len(set(exponents)) > 2
    fixed = choose_rules(
        model, FEW, **bundled(**{**SMALL, "trials": 3}, per_cost=0.3, function="choose_rules")
    )
    assert {trial.settings["per_cost"] for trial in fixed.trials} == {0.3}


def test_saved_and_loaded(model, found, tmp_path):
    found.save(tmp_path)
    again = Choice.load(tmp_path)
    assert again == found
    assert load_composite(tmp_path / "composite.json") == found.composite
    by_file = create(
        "lrp", composite=str(tmp_path / "composite.json"), reduce=found.criterion.reduce
    )
    assert repr(by_file) == repr(found.criterion)
    assert (tmp_path / "trials.txt").read_text() == f"{found}\n"
    with pytest.raises(NiwakiError, match="holds no choice"):
        Choice.load(tmp_path / "nowhere")


class Enough(Exception):
    pass


def test_an_interrupted_search_goes_on(model, found, tmp_path, monkeypatch):
    def stop(trial):
        if trial.number == 3:
            raise Enough

    with pytest.raises(Enough):
        choose_rules(
            model, FEW, **bundled(**SMALL, folder=tmp_path, callback=stop, function="choose_rules")
        )
    assert told(Choice.load(tmp_path)) == told(found)[:4]
    runs = []
    prune = _choose_rules.prune
    monkeypatch.setattr(
        _choose_rules,
        "prune",
        lambda *a, **k: runs.append(1) or prune(*a, **k),
    )
    seen = []
    whole = choose_rules(
        model,
        FEW,
        **bundled(**SMALL, folder=tmp_path, callback=seen.append, function="choose_rules"),
    )
    assert len(runs) == 2
    assert told(whole) == told(found)
    assert tuple(seen) == whole.trials
    assert Choice.load(tmp_path) == whole
    with pytest.raises(NiwakiError, match=r"another setting:\n  keep: there 0\.4, now 0\.5"):
        choose_rules(
            model,
            FEW,
            **bundled(**{**SMALL, "keep": 0.5}, folder=tmp_path, function="choose_rules"),
        )
    with pytest.raises(NiwakiError, match="validation: there '24 samples"):
        choose_rules(
            model,
            FEW,
            **bundled(**{**SMALL, "validation": FEW}, folder=tmp_path, function="choose_rules"),
        )


def test_a_trial_that_fails_is_not_chosen(model, monkeypatch):
    prune = _choose_rules.prune
    number = []

    def sometimes(*arguments, **options):
        number.append(1)
        if len(number) == 3:
            raise NiwakiError("too bad")
        return prune(*arguments, **options)

    monkeypatch.setattr(_choose_rules, "prune", sometimes)
    choice = choose_rules(model, FEW, **bundled(**{**SMALL, "trials": 4}, function="choose_rules"))
    assert choice.trials[2].area is None
    assert choice.trials[2].error == "too bad"
    assert choice.trials[3].area is not None
    assert "failed" in str(choice)
    number[:] = [1, 1]
    with pytest.raises(NiwakiError, match="a default cannot be run"):
        choose_rules(model, FEW, **bundled(**SMALL, function="choose_rules"))


def test_nothing_else_changes(model):
    before, level = snapshot(model), optuna.logging.get_verbosity()
    state = torch.get_rng_state()
    choose_rules(model, FEW, **bundled(**{**SMALL, "trials": 3}, function="choose_rules"))
    assert_same(before, snapshot(model))
    assert optuna.logging.get_verbosity() == level
    assert torch.equal(state, torch.get_rng_state())


def test_optuna_says_nothing(model, capfd):
    choose_rules(model, FEW, **bundled(**{**SMALL, "trials": 1}, function="choose_rules"))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": 0}, "trials = 0"),
        ({"of": "watts"}, "of = 'watts'"),
        ({"per_cost": (0.5, 0.1)}, "per_cost"),
        ({"per_cost": -1.0}, "per_cost = -1"),
        ({"keep": 1.5}, "keep"),
    ],
)
def test_what_cannot_be_asked_for(model, options, message):
    with pytest.raises(ValueError, match=message):
        choose_rules(model, FEW, **bundled(**{**SMALL, **options}, function="choose_rules"))


def test_without_optuna_it_says_what_to_install(model, monkeypatch):
    monkeypatch.setattr(_choose_rules, "find_spec", lambda name: None)
    with pytest.raises(NiwakiError, match=r"pip install niwaki\[tune\]"):
        choose_rules(model, FEW, **bundled(**SMALL, function="choose_rules"))


def test_plain_data(found):
    again = Choice.from_json(json.loads(json.dumps(found.to_json())))
    assert again == found
