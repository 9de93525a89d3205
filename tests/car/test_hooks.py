"""Hooks of the user's that change values, and weights that hooks make, against plain twins."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import niwaki
from niwaki.car import Stop, greedy, index
from niwaki.errors import FallbackWarning, ModelError


class Net(nn.Module):
    """Two convolutions; what is done before and behind the second is given."""

    def __init__(self, before=1.0, behind=1.0):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 7, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(7), nn.Linear(7, 4)
        self.before, self.behind = before, behind

    def forward(self, x):
        x = self.second(F.relu(self.first(x)) * self.before) * self.behind
        return self.head(F.relu(self.norm(x)).mean((2, 3)))


def made(**options):
    torch.manual_seed(0)
    model = Net(**options).eval()
    with torch.no_grad():
        model.norm.running_mean.normal_(0, 0.1)
    return model


def data():
    torch.manual_seed(1)
    images = torch.randn(40, 3, 8, 8)
    labels = made()(images).argmax(1)
    labels[::3] = (labels[::3] + 1) % 4
    return images, labels


def in_place(_, __, output):
    output.mul_(1.5)


HOOKED = {
    "before": (
        {"before": 1.5},
        lambda m: m.second.register_forward_pre_hook(lambda _, given: (1.5 * given[0],)),
    ),
    "behind": (
        {"behind": 1.5},
        lambda m: m.second.register_forward_hook(lambda _, __, output: 1.5 * output),
    ),
    "in place": ({"behind": 1.5}, lambda m: m.second.register_forward_hook(in_place)),
    "looking on": ({}, lambda m: m.second.register_forward_hook(lambda *_: None)),
}


def margins(found):
    return {name: (layer.lost, layer.margin_change) for name, layer in found.items()}


def assert_alike(found, expected):
    assert list(found) == list(expected)
    for name, (lost, margin) in margins(found).items():
        assert torch.equal(lost, expected[name].lost)
        torch.testing.assert_close(margin, expected[name].margin_change, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", HOOKED)
def test_hooks_count_as_what_they_do(kind):
    options, hook = HOOKED[kind]
    hooked = made()
    hook(hooked)
    assert_alike(index(hooked, data()), index(made(**options), data()))
    found, expected = (greedy(m, data(), Stop(remove=3)) for m in (hooked, made(**options)))
    assert found.plan == expected.plan


@pytest.mark.parametrize("kind", HOOKED)
def test_a_repair_does_not_pass_over_them(kind):
    options, hook = HOOKED[kind]
    hooked, (images, labels) = made(), data()
    hook(hooked)
    asked = {"criterion": "weight", "keep": 0.6}
    plain = niwaki.prune(made(**options), (images, labels), **asked)
    if kind == "looking on":
        found = niwaki.prune(hooked, (images, labels), **asked)
    else:
        with pytest.warns(FallbackWarning, match=r"which hooks may change.*'recalibrate' is used"):
            found = niwaki.prune(hooked, (images, labels), **asked)
        plain = niwaki.prune(made(**options), (images, labels), **asked, repair="recalibrate")
    torch.testing.assert_close(found.model(images), plain.model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning")
@pytest.mark.parametrize(
    "norm",
    [
        torch.nn.utils.weight_norm,
        torch.nn.utils.spectral_norm,
        torch.nn.utils.parametrizations.weight_norm,
        torch.nn.utils.parametrizations.spectral_norm,
    ],
)
def test_weights_that_are_computed(norm):
    computed, plain = made(), made()
    norm(computed.second)
    computed.eval()
    with torch.no_grad():
        computed(data()[0])  # which leaves a weight on the module
        plain.second.weight.copy_(computed.second.weight)
    assert_alike(index(computed, data()), index(plain, data()))


def lazy():
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4)).eval()


def without_values():
    with torch.device("meta"):
        return Net().eval()


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize(
    ("network", "said"), [(lazy, "no shape yet"), (without_values, "meta device")]
)
def test_weights_without_values(network, said):
    for call in (
        lambda: index(network(), data()),
        lambda: niwaki.prune(network(), data()),
        lambda: niwaki.score(network(), data()),
        lambda: niwaki.explain(network(), data()[0]),
        lambda: niwaki.explain(network(), data()[0], method="occlusion"),
        lambda: niwaki.evaluation.accuracy(network(), data()),
    ):
        with pytest.raises(ModelError, match=said):
            call()
