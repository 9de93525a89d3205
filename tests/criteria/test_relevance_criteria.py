"""Variants of relevance: composites by name, PatternAttribution, names with options."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from criteria_networks import Functional, Plain, close, randomise
from torch import nn

import niwaki
from niwaki.attribution import fit_patterns
from niwaki.criteria import create, names, score, score_weights
from niwaki.errors import (
    AbsorbedWarning,
    FallbackWarning,
    ModelError,
    NoEvidenceWarning,
    PropagationError,
)
from niwaki.propagation import (
    PRESETS,
    AlphaBeta,
    Assign,
    Epsilon,
    Gamma,
    Maps,
    Ratio,
    ZPlus,
    epsilon,
    epsilon_plus,
    pattern_attribution,
    propagate,
    save_composite,
)


@pytest.fixture
def samples():
    torch.manual_seed(1)
    return torch.randn(5, 3, 12, 12).double(), torch.tensor([0, 1, 2, 3, 0])


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 5, 3, padding=1)
        self.head = nn.Linear(5, 4)

    def forward(self, x):
        x = self.stem(x).relu()
        return self.head((x + self.inner(x)).relu().mean((2, 3)))


@pytest.fixture
def residual():
    torch.manual_seed(0)
    return Residual().double().eval()


def rules(composite, **about):
    """The rules of the rows that a kind of operation meets first."""
    return next(row.rule for row in composite.rows if about["kind"] in row.kinds)


@pytest.mark.parametrize("text", ["epsilon_plus", "EpsilonPlus", "epsilonplus"])
def test_a_composite_by_name_is_the_preset(residual, samples, text):
    expected = score(residual, samples, "lrp", composite=epsilon_plus())
    close(score(residual, samples, "lrp", composite=text), expected)
    default = score(residual, samples, "lrp", composite=epsilon(sums=ZPlus()))
    close(score(residual, samples, "lrp"), default)
    with_z_plus = score(residual, samples, "lrp", composite=epsilon_plus(sums=ZPlus()))
    assert not torch.allclose(with_z_plus["inner"], expected["inner"])


def test_a_name_means_the_same_rules_as_a_criterion_and_as_a_method(residual):
    shared = sorted({n for n in names() if n.startswith("lrp.")} & set(niwaki.attribution.names()))
    assert "lrp.epsilon_plus" in shared
    for name in shared:
        method = niwaki.attribution.create(name, residual)
        assert create(name).composite.rows == method.composite.rows, name


@pytest.mark.parametrize("preset", [*PRESETS, "epsilon", "gradient"])
def test_every_preset_is_a_composite_by_name(preset, residual, samples):
    scores = score(residual, samples, "lrp", composite=preset, max_loss=None)
    assert all(bool((values > 0).any()) for values in scores.values())


def test_only_the_default_has_z_plus_at_sums():
    assert rules(create("lrp").composite, kind="sum") == ZPlus()
    assert isinstance(rules(create("lrp", composite="epsilon").composite, kind="sum"), Epsilon)
    gradient = create("lrp", composite="gradient").composite
    assert not any(isinstance(row.rule, ZPlus) for row in gradient.rows)


def test_an_unknown_composite_shows_what_there_is():
    with pytest.raises(ValueError, match=r"did you mean EpsilonPlus.*All: .*GuidedBackprop"):
        create("lrp", composite="epsilon_pluss")


@pytest.mark.parametrize(
    ("variant", "options"),
    [
        ("lrp.signed", {"composite": epsilon_plus(sums=ZPlus()), "reduce": "signed"}),
        ("lrp.absolute", {"reduce": "absolute"}),
        ("lrp.predicted", {"target": "predicted"}),
        ("lrp.epsilon_plus", {"composite": "epsilon_plus", "reduce": "absolute"}),
        ("lrp.z_plus_sums", {"composite": epsilon_plus(sums=ZPlus()), "reduce": "absolute"}),
        ("lrp.ratio_sums", {"composite": epsilon(sums=Ratio())}),
        ("lrp.epsilon_alpha2_beta1", {"composite": "epsilon_alpha2_beta1"}),
        ("lrp.epsilon_gamma_box", {"composite": "epsilon_gamma_box"}),
        ("lrp.excitation_backprop", {"composite": "excitation_backprop"}),
    ],
)
def test_a_variant_is_the_criterion_with_its_options(residual, samples, variant, options):
    found = score(residual, samples, variant, max_loss=None)
    assert found.criterion == variant
    close(found, score(residual, samples, "lrp", max_loss=None, **options))
    default = score(residual, samples, "lrp", max_loss=None)
    assert any(not torch.allclose(found[layer], default[layer]) for layer in found)
    assert score(residual, samples, variant, target="true", max_loss=None).samples == 5


def test_the_variants_are_named_after_their_rules():
    rule = {
        name: rules(create(name).composite, kind="convolution")
        for name in names()
        if name.startswith("lrp.") and name != "lrp.rebuilt"
    }
    assert rule["lrp.epsilon_alpha2_beta1"] == AlphaBeta(2.0, 1.0)
    assert isinstance(rule["lrp.absolute"], Epsilon)
    assert rule["lrp.epsilon_plus"] == ZPlus()
    assert rule["lrp.excitation_backprop"] == ZPlus()
    gamma = create("lrp.epsilon_gamma_box").composite
    assert Gamma(0.25) in [row.rule for row in gamma.rows]


class Branches(nn.Module):
    """Two branches of one channel each are added, and no activation follows."""

    def __init__(self, one, two):
        super().__init__()
        self.one, self.two = (nn.Conv2d(1, 1, 1, bias=False) for _ in range(2))
        self.head = nn.Linear(1, 2, bias=False)
        with torch.no_grad():
            self.one.weight.fill_(one)
            self.two.weight.fill_(two)
            self.head.weight.copy_(torch.tensor([[-1.0], [1.0]]))

    def forward(self, x):
        return self.head((self.one(x) + self.two(x)).flatten(1))


@pytest.mark.parametrize(("one", "two"), [(-1.0, -3.0), (2.0, -3.0)])
def test_ratios_at_sums_are_those_of_the_sizes(one, two):
    data = torch.tensor([1.0, 2.0]).view(2, 1, 1, 1).double(), torch.tensor([0, 1])
    model = Branches(one, two).double().eval()
    found = score(model, data, "lrp.ratio_sums")
    for name, weight in (("one", one), ("two", two)):  # of each sample's 1, its share
        expected = 2 * abs(weight) / (abs(one) + abs(two))
        assert float(found[name]) == pytest.approx(expected, rel=1e-5)


def test_where_nothing_is_above_zero_at_sums_ratios_take_the_place_of_z_plus():
    data = torch.ones(1, 1, 1, 1).double(), torch.tensor([0])
    model = Branches(-1.0, -3.0).double().eval()
    with pytest.warns(FallbackWarning, match=r"'lrp\.ratio_sums' is tried"):
        found = score(model, data)
    assert found.criterion == "lrp.ratio_sums"
    close(found, score(model, data, "lrp.ratio_sums"))


@pytest.mark.parametrize("bias", [0.0, 1e5])
def test_relevance_that_biases_keep_is_told(bias):
    """Nothing is lost, so that no check of conservation sees it."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)
    ).double()
    with torch.no_grad():
        model[2].bias.fill_(bias)
        model[5].bias.zero_()
        model[5].weight.abs_()
    data = torch.rand(6, 1, 6, 6).double(), torch.arange(6) % 2
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        found = score(model.eval(), data, "lrp.epsilon_plus")
    told = [str(w.message) for w in seen if w.category is AbsorbedWarning]
    share = float(found["0"].sum() / found["2"].sum())
    if bias:
        assert share < 1e-3
        assert len(told) == 1
        assert told[0].startswith(f"lrp.epsilon_plus: layer '0' gets {share:.0e} of the relevance")
    else:
        assert share > 0.1
        assert not told
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score(model, data, "lrp.epsilon_plus", normalise="sum")


def test_the_first_layers_rule_does_not_matter():
    """Why there are no variants of it: scores are read at outputs."""
    torch.manual_seed(0)
    model = Functional().double().eval()
    data = torch.randn(3, 3, 8, 8).double(), torch.arange(3)
    flat = score(model, data, "lrp", composite="epsilon_plus_flat")
    close(flat, score(model, data, "lrp", composite="epsilon_plus"))


# PatternAttribution


@pytest.mark.parametrize("estimator", ["relu", "linear"])
@pytest.mark.parametrize("reduce", ["absolute", "signed"])
def test_pattern_relevance_sums_the_maps(samples, estimator, reduce):
    torch.manual_seed(0)
    model = randomise(Plain(transposed=False))
    inputs, labels = samples
    patterns = fit_patterns(model, samples, estimator=estimator)
    maps = Maps()
    composite = pattern_attribution(patterns)
    propagate(model, inputs, composite, lambda y: F.one_hot(labels, 4).to(y), [maps], max_loss=None)
    found = score(model, samples, "pattern_attribution", estimator=estimator, reduce=reduce)
    for layer, values in found.items():
        relevance = maps.relevances[layer].reshape(5, len(values), -1)
        relevance = relevance.abs() if reduce == "absolute" else relevance
        torch.testing.assert_close(values, relevance.sum((0, 2)), rtol=1e-9, atol=1e-12)


def test_on_a_linear_network_all_relevance_arrives():
    """As w^T a = 1 for each unit, nothing is lost or made on the way."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)).double().eval()
    data = torch.randn(40, 6).double(), torch.arange(40) % 3
    found = score(model, data, "pattern_attribution", estimator="linear", reduce="signed")
    for values in found.values():
        torch.testing.assert_close(values.sum(), torch.tensor(40.0).double())


def test_patterns_are_fitted_anew_for_each_network(samples):
    torch.manual_seed(0)
    one, two = randomise(Plain(transposed=False)), randomise(Plain(transposed=False))
    made = create("pattern_attribution")
    before = repr(made), dict(vars(made))
    first = score(one, samples, made)
    second = score(two, samples, made)
    close(second, score(two, samples, "pattern_attribution"))
    assert not torch.allclose(first["0"], second["0"])
    assert (repr(made), dict(vars(made))) == before


def test_a_transposed_layer_has_no_patterns(samples):
    with pytest.raises(PropagationError, match="not for transposed"):
        score(randomise(Plain()), samples, "pattern_attribution")


def test_assign_is_not_needed_to_choose_a_rule(residual, samples):
    """A composite that is made already is used as it is, sums included."""
    mine = epsilon_plus().with_rows(Assign(Epsilon(), kind="convolution"))
    assert create("lrp", composite=mine).composite is mine
    assert score(residual, samples, "lrp", composite=mine, max_loss=None).samples == 5


def test_criteria_that_differ_never_read_the_same(tmp_path):
    presets = [create("lrp", composite=name) for name in PRESETS]
    assert not any("#" in repr(made) for made in (create("lrp"), *presets))
    usual, changed = create("lrp.epsilon_plus"), create("lrp", composite=epsilon_plus(1e-2))
    assert usual.composite.name == changed.composite.name
    assert "(EpsilonPlus, " in repr(usual)
    rows = [Assign(Gamma(g), layer=layer) for g in (0.1, 0.2) for layer in ("a", "b")]
    patterns = [pattern_attribution({"a": torch.full((3,), x)}) for x in (1.0, 2.0)]
    others = [*(epsilon_plus().with_rows(row) for row in rows), *patterns]
    told = [repr(create("lrp", composite=c)) for c in others] + [repr(changed), repr(usual)]
    assert len(set(told)) == len(told)
    save_composite(others[0], tmp_path / "mine.json")
    assert repr(create("lrp", composite=str(tmp_path / "mine.json"))) == told[0]
    (tmp_path / "none.json").write_text("{}")
    with pytest.raises(ValueError, match="is no composite"):
        create("lrp", composite=str(tmp_path / "none.json"))


class EndsInRelu(nn.Module):
    """As SqueezeNet does: classes whose output may be switched off."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 5, 3), nn.Linear(5, 4)

    def forward(self, x):
        return self.head(self.stem(x).relu().mean((2, 3))).relu()


@pytest.fixture
def switched_off():
    """Class 3 is off for every image, the others on."""
    torch.manual_seed(0)
    model = EndsInRelu().double().eval()
    with torch.no_grad():
        model.head.bias.copy_(torch.tensor([2.0, 2.0, 2.0, -5.0]))
    return model


def test_a_sample_whose_class_is_switched_off_counts_for_nothing(switched_off, samples):
    x, labels = samples  # the fourth is of class 3
    with pytest.warns(NoEvidenceWarning, match="1 of 5 samples"):
        found = score(switched_off, (x, labels), "lrp")
    on = labels != 3
    torch.testing.assert_close(
        found["stem"], score(switched_off, (x[on], labels[on]), "lrp")["stem"]
    )
    with pytest.warns(NoEvidenceWarning):
        score(switched_off, (x, labels), "lrp + 0.5*weight")


def test_a_network_that_is_off_for_all_is_an_error(switched_off, samples):
    with pytest.raises(ModelError, match="dead"):
        score(switched_off, (samples[0], torch.full((5,), 3)), "lrp")


@pytest.mark.parametrize("reduce", ["absolute", "absolute_of_sum", "squares"])
def test_single_weights_get_nothing_from_such_a_sample_either(switched_off, samples, reduce):
    x, labels = samples
    with pytest.warns(NoEvidenceWarning, match="1 of 5 samples"):
        found = score_weights(switched_off, (x, labels), "lrp", reduce=reduce)
    on = labels != 3
    expected = score_weights(switched_off, (x[on], labels[on]), "lrp", reduce=reduce)
    for layer, values in expected.items():  # means over samples
        torch.testing.assert_close(found[layer] * 5, values * 4)


def test_an_output_that_is_off_cannot_be_explained(switched_off, samples):
    def start(output):
        return F.one_hot(samples[1], 4).to(output)

    with pytest.raises(PropagationError, match=r"exactly zero for 1 of 5 samples \(first: 3\)"):
        propagate(switched_off, samples[0], epsilon_plus(), start)
    assert propagate(switched_off, samples[0], epsilon_plus(), start, max_loss=None).output.any()


def test_z_plus_output_hands_down_shares_of_what_speaks_for_the_class(switched_off):
    """By hand: the positive contributions to an output, as shares of their sum."""
    torch.manual_seed(2)
    x, labels = torch.randn(6, 3, 12, 12).double(), torch.tensor([0, 1, 2, 0, 1, 2])
    found = score(switched_off, (x, labels), "lrp.z_plus_output")["stem"]
    pooled = switched_off.stem(x).relu().mean((2, 3))
    contributions = (pooled * switched_off.head.weight[labels]).clamp(min=0)
    bias = switched_off.head.bias[labels].clamp(min=0)  # takes its part
    shares = contributions / (contributions.sum(1) + bias)[:, None]
    torch.testing.assert_close(found, shares.sum(0).detach(), rtol=1e-5, atol=1e-6)
