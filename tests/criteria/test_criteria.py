"""Every criterion against a twin in plain PyTorch or numpy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from criteria_networks import UNITS, Functional, Plain, captured, close, l2, randomise
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from niwaki.accumulation import Totals
from niwaki.criteria import create, describe, names, score
from niwaki.errors import DataError, ModelError, NothingToPruneError
from niwaki.propagation import Assign, Maps, ZPlus, epsilon, epsilon_plus, propagate
from niwaki.runs import described

WITHOUT_DATA = ["bn_scale", "fpgm", "lamp", "random", "weight", "weight.l2"]
LOOKING_BACK = [
    "gradient",
    "hessian",
    "integrated_gradients",
    "lrp",
    "pattern_attribution",
    "taylor",
    "taylor_gates",
    "taylor_squared",
    "taylor_weights",
]
COMBINED = "taylor + 0.5*apoz + 2*weight"
VARIANTS = [
    "lrp.absolute",
    "lrp.epsilon_alpha2_beta1",
    "lrp.epsilon_plus",
    "lrp.excitation_backprop",
    "lrp.epsilon_gamma_box",
    "lrp.predicted",
    "lrp.ratio_sums",
    "lrp.rebuilt",
    "lrp.signed",
    "lrp.z_plus_sums",
    "lrp.z_plus_output",
]
WITH_DATA = ["activation", "apoz", *LOOKING_BACK]
CRITERIA = [*WITHOUT_DATA, *WITH_DATA]
EVERYWHERE = [name for name in CRITERIA if name != "bn_scale"]  # also where there is no norm


@pytest.fixture
def plain(request):
    torch.manual_seed(0)
    criterion = getattr(request.node, "callspec", None) and request.node.callspec.params
    return randomise(Plain(transposed=(criterion or {}).get("criterion") != "pattern_attribution"))


@pytest.fixture
def samples():
    torch.manual_seed(1)
    return torch.randn(7, 3, 12, 12).double(), torch.tensor([0, 1, 2, 3, 0, 1, 1])


def over_units(values):
    return values.transpose(0, 1).flatten(1).mean(1)


def test_weight_is_the_sum_of_absolute_weights_of_each_filter(plain):
    def norm(layer):
        if not isinstance(layer, nn.ConvTranspose2d):
            return torch.stack([w.abs().sum() for w in layer.weight])
        per_group, ins = layer.out_channels // layer.groups, layer.in_channels // layer.groups
        return torch.stack(
            [
                layer.weight[g * ins : (g + 1) * ins, o].abs().sum()
                for g in range(layer.groups)
                for o in range(per_group)
            ]
        )

    scores = score(plain, (torch.zeros(1, 3, 12, 12).double(), torch.tensor([0])), "weight")
    close(scores, {name: l2(norm(plain.get_submodule(name))) for name in UNITS})


def test_weight_of_a_transposed_filter_is_what_silences_its_output(plain):
    # Independent of how weights are laid out: a filter's weights are those its output depends on.
    layer = nn.ConvTranspose2d(6, 4, 3, groups=2, bias=False)
    x = torch.ones(1, 6, 1, 1)
    layer.weight.data.abs_()
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(36, 2)).eval()
    scores = score(model, (x, torch.tensor([0])), "weight", normalise="none")
    expected = layer(x).sum((0, 2, 3)).double()
    torch.testing.assert_close(scores["0"], expected.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("criterion", ["gradient", "taylor"])
def test_gradient_and_taylor_are_read_behind_the_norm(plain, samples, criterion):
    inputs, labels = samples
    where = {layer: behind for layer, (behind, _) in UNITS.items()}
    outputs, logits = captured(plain, inputs, where.values())
    loss = F.cross_entropy(logits, labels, reduction="sum")
    derivatives = torch.autograd.grad(loss, [outputs[w] for w in where.values()])
    expected = {}
    for (layer, behind), derivative in zip(where.items(), derivatives, strict=True):
        product = derivative * outputs[behind] if criterion == "taylor" else derivative
        expected[layer] = l2(over_units(product).abs())
    close(score(plain, samples, criterion), expected)
    close(
        score(plain, samples, criterion, normalise="none").normalised("l2"),
        expected,
    )


def test_activation_is_read_behind_the_activation(plain, samples):
    outputs, _ = captured(plain, samples[0], [w for _, w in UNITS.values()])
    expected = {layer: l2(over_units(outputs[where].abs())) for layer, (_, where) in UNITS.items()}
    close(score(plain, samples, "activation"), expected)


@pytest.mark.parametrize("reduce", ["absolute", "signed", "absolute_of_sum"])
@pytest.mark.parametrize("start", ["true", "predicted"])
def test_lrp_sums_the_relevance_maps(plain, samples, reduce, start):
    inputs, labels = samples
    maps = Maps()
    classes = labels if start == "true" else plain(inputs).argmax(1)
    composite = epsilon(sums=ZPlus())
    propagate(
        plain, inputs, composite, lambda y: F.one_hot(classes, 4).to(y), [maps], max_loss=None
    )
    reduced = {
        "absolute": lambda r: r.abs().flatten(2).sum((0, 2)),
        "signed": lambda r: r.flatten(2).sum((0, 2)),
        "absolute_of_sum": lambda r: r.flatten(2).sum(2).abs().sum(0),
    }[reduce]
    expected = {
        layer: reduced(maps.relevances[layer].reshape(*maps.relevances[layer].shape, 1))
        for layer in UNITS
    }
    close(score(plain, samples, "lrp", reduce=reduce, target=start, max_loss=None), expected)


def z_plus_by_hand(weights, inputs, labels, rule):
    """Relevance at each hidden layer of a ReLU network without biases, in numpy."""
    activations = [inputs]
    for weight in weights[:-1]:
        activations.append(np.maximum(activations[-1] @ weight.T, 0))
    relevance = np.eye(len(weights[-1]))[labels]
    found = []
    for weight, x in zip(reversed(weights), reversed(activations), strict=True):
        contributions = x[:, None, :] * weight[None]  # sample, output, input
        if rule == "zplus":
            contributions = np.maximum(contributions, 0)
        total = contributions.sum(2, keepdims=True)
        total = total + 1e-6 * np.where(total >= 0, 1, -1)
        relevance = (contributions / total * relevance[:, :, None]).sum(1)
        found.append(relevance)
    return found[-2::-1]  # without the input's, first layer first


@pytest.mark.parametrize("rule", ["zplus", "epsilon"])
def test_lrp_on_a_small_network_by_hand(rule):
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Linear(5, 8, bias=False),
        nn.ReLU(),
        nn.Linear(8, 6, bias=False),
        nn.ReLU(),
        nn.Linear(6, 3, bias=False),
    )
    model = model.double().eval()
    inputs, labels = torch.randn(9, 5).double(), torch.arange(9) % 3
    if rule == "zplus":
        composite = epsilon_plus().with_rows(Assign(ZPlus(), kind="linear"))
    else:
        composite = epsilon()
    weights = [model[i].weight.detach().numpy() for i in (0, 2, 4)]
    expected = z_plus_by_hand(weights, inputs.numpy(), labels.numpy(), rule)
    scores = score(model, (inputs, labels), "lrp", composite=composite, max_loss=None)
    for layer, relevance in zip(("0", "2"), expected, strict=True):
        np.testing.assert_allclose(scores[layer].numpy(), np.abs(relevance).sum(0), rtol=1e-9)


def test_signed_relevance_is_conserved_in_every_layer():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, bias=False),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, bias=False),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 10, bias=False),
        nn.ReLU(),
        nn.Linear(10, 3, bias=False),
    )
    model = model.double().eval()
    inputs = torch.rand(11, 2, 8, 8).double()
    data = (inputs, model(inputs).argmax(1))
    for layer, values in score(model, data, "lrp", reduce="signed").items():
        assert float(values.sum()) == pytest.approx(11, rel=1e-3), layer


@pytest.mark.parametrize("criterion", [*WITH_DATA, *VARIANTS, COMBINED])
@pytest.mark.parametrize("network", ["plain", "functional"])
def test_batches_and_kinds_of_data_do_not_matter(plain, samples, criterion, network):
    torch.manual_seed(0)
    model = plain if network == "plain" else Functional().double().eval()
    expected = score(model, samples, criterion, batch_size=7)
    dataset = TensorDataset(*samples)
    close(score(model, samples, criterion, batch_size=2), dict(expected))
    close(score(model, dataset, criterion, batch_size=3), dict(expected))
    close(score(model, DataLoader(dataset, batch_size=5), criterion), dict(expected))
    assert expected.samples == 7


@pytest.mark.parametrize("criterion", [*WITH_DATA, COMBINED])
def test_merging_parts_gives_the_whole(plain, samples, criterion):
    made = create(criterion, normalise="none").prepared(plain, samples, 32)
    if criterion == "lrp":
        made.max_loss = None
    parts = [
        Totals().update(made.batch(plain, *(t[i::2] for t in samples)), n)
        for i, n in enumerate((4, 3))
    ]
    whole = Totals().update(made.batch(plain, *samples), 7)
    merged = parts[1].merge(Totals.from_state_dict(parts[0].state_dict()))
    assert merged.samples == 7
    close(merged.sums, {layer: whole.sums[layer] for layer in merged.sums})


@pytest.mark.parametrize("criterion", [*EVERYWHERE, *VARIANTS])
def test_functional_and_shared_layers_get_scores(criterion):
    torch.manual_seed(0)
    model = Functional().eval()
    data = torch.randn(4, 3, 8, 8), torch.arange(4)
    scores = score(model, data, criterion)
    assert {layer: len(values) for layer, values in scores.items()} == {"kernel": 5, "twice": 5}
    assert all(values.abs().sum() > 0 for values in scores.values())
    assert all(bool((values >= 0).all()) or criterion == "lrp.signed" for values in scores.values())


def test_a_layer_used_twice_gets_the_sum_of_its_uses():
    torch.manual_seed(0)
    model = Functional().double().eval()
    inputs, labels = torch.randn(4, 3, 8, 8).double(), torch.arange(4)
    seen = []
    handle = model.twice.register_forward_hook(lambda m, a, out: seen.append(out))
    loss = F.cross_entropy(model(inputs), labels, reduction="sum")
    handle.remove()
    derivatives = torch.autograd.grad(loss, seen)
    product = sum(over_units(d * y) for d, y in zip(derivatives, seen, strict=True))
    scores = score(model, (inputs, labels), "taylor")
    torch.testing.assert_close(scores["twice"], l2(product.abs()).detach())


@pytest.mark.parametrize("criterion", EVERYWHERE)
def test_a_layer_whose_output_nobody_uses_is_worth_nothing_to_what_looks_back(criterion):
    class Wasteful(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 2, 3)
            self.last = nn.Linear(3, 2)

        def forward(self, x):
            x = self.used(x).relu()
            self.unused(x)
            return self.last(x.mean((2, 3)))

    torch.manual_seed(0)
    model = Wasteful().eval()
    scores = score(model, (torch.randn(2, 1, 8, 8), torch.tensor([0, 1])), criterion)
    assert set(scores) == {"used", "unused"}
    if criterion in LOOKING_BACK:
        assert scores["unused"].tolist() == [0, 0]


def deciding_network(decides):
    """Three classes from the mean of three patterns; all other filters are weak noise."""
    torch.manual_seed(decides)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    model.append(nn.Linear(8, 2, bias=False)).eval()
    nn.init.normal_(model[0].weight, std=0.05)
    nn.init.normal_(model[4].weight, std=0.01)
    pattern = torch.tensor([[1.0, -1, 0], [1, -1, 0], [1, -1, 0]])
    model[0].weight.data[decides, 0] = pattern
    model[4].weight.data[:, decides] = torch.tensor([2.0, -2.0])
    images = torch.randn(20, 1, 10, 10) * 0.1
    images[:, :, :, ::3] += 1.0  # edges that the filter answers to
    return model, (images, torch.zeros(20, dtype=torch.long))


@pytest.mark.parametrize("criterion", [c for c in LOOKING_BACK if c != "gradient"])
@pytest.mark.parametrize("decides", [0, 3, 7])
def test_the_filter_that_decides_is_ranked_highest(criterion, decides):
    model, data = deciding_network(decides)
    assert int(score(model, data, criterion)["0"].argmax()) == decides


def test_random_follows_its_seed(plain, samples):
    first, again, other = (score(plain, samples, "random", seed=s) for s in (4, 4, 5))
    close(first, dict(again))
    assert not torch.equal(first.flat(), other.flat())
    assert bool(((first.flat() >= 0) & (first.flat() <= 1)).all())
    assert score(plain, samples, "random", seed=0).criterion == "random"


def test_the_catalogue_names_and_describes_all():
    # "car" comes from a floor above, and has tests of its own.
    assert [name for name in names() if name != "car"] == sorted([*CRITERIA, *VARIANTS])
    assert [create(name).name for name in names()] == names()
    assert all(describe(name).endswith((".", ")", ").")) for name in names())
    assert "seed" in str(create("random", seed=3).__dict__)


@pytest.mark.parametrize(
    ("wrong", "message"), [("lpr", "did you mean lrp"), ("tailor", "taylor"), ("xyz", "All: ")]
)
def test_an_unknown_name_shows_what_there_is(wrong, message):
    with pytest.raises(ValueError, match=message):
        create(wrong)


def test_unknown_or_superfluous_options_are_refused(plain, samples):
    with pytest.raises(TypeError, match="sed"):
        score(plain, samples, "random", sed=3)
    with pytest.raises(ValueError, match="made already"):
        score(plain, samples, create("random"), seed=3)
    with pytest.raises(ValueError, match="reduce = 'mean'"):
        create("lrp", reduce="mean")
    with pytest.raises(ValueError, match="target = 'all'"):
        create("lrp", target="all")
    with pytest.raises(ValueError, match="normalise 'l3'"):
        score(plain, samples, "weight", normalise="l3")


@pytest.mark.parametrize("criterion", CRITERIA)
class TestWhatCannotBeScored:
    @pytest.mark.parametrize("label", [-1, 4, 99])
    def test_labels_out_of_range(self, plain, samples, criterion, label):
        labels = samples[1].clone()
        labels[5] = label
        if criterion in WITH_DATA:
            with pytest.raises(DataError, match=f"label {label} .* 0 to 3"):
                score(plain, (samples[0], labels), criterion, batch_size=2)

    def test_no_data(self, plain, criterion):
        empty = torch.zeros(0, 3, 12, 12).double(), torch.zeros(0, dtype=torch.long)
        with pytest.raises(DataError, match="no data"):
            score(plain, empty, criterion)

    def test_weights_that_are_not_finite(self, plain, samples, criterion):
        plain[3].weight.data[0, 0, 0, 0] = float("nan")
        with pytest.raises(ModelError, match=r"3\.weight"):
            score(plain, samples, criterion)

    @pytest.mark.parametrize("part", ["", "1"])
    def test_training_mode(self, plain, samples, criterion, part):
        plain.get_submodule(part).train()
        with pytest.raises(ModelError, match="training mode"):
            score(plain, samples, criterion)

    def test_nothing_hidden(self, criterion):
        model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
        with pytest.raises(NothingToPruneError, match="no hidden"):
            score(model, (torch.randn(3, 1, 2, 2), torch.tensor([0, 1, 0])), criterion)

    def test_an_output_that_is_a_map(self, criterion):
        model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3)).eval()
        if criterion in WITH_DATA:
            with pytest.raises(ModelError, match=r"\(N, classes\)"):
                score(model, (torch.randn(2, 1, 6, 6), torch.tensor([0, 1])), criterion)


@pytest.mark.parametrize("name", names())
def test_a_criterion_that_was_used_is_as_good_as_new(name):
    def network(factor):
        torch.manual_seed(0)
        layers = nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU()
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 3))
        # Equal weights, another network.
        model[2].register_forward_hook(lambda *given: given[-1] * factor)
        return model.double().eval()

    data = torch.randn(9, 2, 8, 8, dtype=torch.float64), torch.arange(9) % 3
    used, new = create(name), create(name)
    before = described(used)
    score(network(1.0), data, used)
    assert described(used) == before
    other = network(torch.linspace(-1, 1, 6).view(6, 1, 1))
    close(score(other, data, used), dict(score(other, data, new)))
