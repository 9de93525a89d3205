"""Accuracy against scikit-learn, and what cannot be measured."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from niwaki.errors import DataError, ModelError
from niwaki.evaluation import Cost, accuracy, cost, latency


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(2, 6), st.integers(1, 50), st.integers(0, 99))
def test_accuracy_is_that_of_scikit_learn(samples, classes, batch_size, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(samples, classes, generator=generator)
    labels = torch.randint(classes, (samples,), generator=generator)
    model = nn.Identity().eval()
    expected = accuracy_score(labels, logits.argmax(1))
    assert accuracy(model, (logits, labels), batch_size=batch_size) == pytest.approx(expected)
    loader = DataLoader(TensorDataset(logits, labels), batch_size=3)
    assert accuracy(model, loader) == pytest.approx(expected)


class Pair(nn.Module):
    def forward(self, x):
        return x, x


def training_inside():
    model = nn.Sequential(nn.Identity(), nn.Dropout())
    model.eval()[1].train()
    return model


def not_a_number():
    model = nn.Linear(3, 3).eval()
    model.bias.data[0] = float("nan")
    return model


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (nn.Identity, "training mode"),
        (training_inside, "'1' is in training mode"),
        (not_a_number, "bias has NaN"),
        (lambda: Pair().eval(), "returns a tuple of 2"),
        (lambda: nn.Unflatten(1, (3, 1)).eval(), r"returns shape \(2, 3, 1\); accuracy needs"),
        (lambda: nn.Flatten(0).eval(), r"returns shape \(6,\) for 2 samples"),
    ],
    ids=["training", "training inside", "NaN", "pair", "map", "vector"],
)
def test_networks_whose_accuracy_makes_no_sense(build, message):
    with pytest.raises(ModelError, match=message):
        accuracy(build(), (torch.rand(2, 3), torch.tensor([0, 1])))


@pytest.mark.parametrize(
    ("labels", "message"),
    [([0, 3], "label 3 .* 0 to 2"), ([0, -1], "no labels"), ([], "no data")],
    ids=["too large", "none", "empty"],
)
def test_labels_that_make_no_sense(labels, message):
    data = torch.rand(len(labels), 3), torch.tensor(labels, dtype=torch.long)
    with pytest.raises(DataError, match=message):
        accuracy(nn.Identity().eval(), data)


def test_cost_by_hand():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),  # 4 * 18 weights at 36 places
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2, groups=2, bias=False),  # 6 * 18 weights at 4 places
        nn.ConvTranspose2d(6, 3, 2, stride=2),  # 6 * 12 weights at 4 inputs
        nn.Flatten(),
        nn.Linear(48, 5),
    ).eval()
    found = cost(model, torch.rand(7, 2, 6, 6))
    macs = 72 * 36 + 108 * 4 + 72 * 4 + 240
    params = 72 + 4 + 8 + 108 + 72 + 3 + 240 + 5
    assert found == Cost(4 + 6 + 3, params, macs)
    assert str(found) == f"13 units, {params} parameters, {macs:,} MACs"


def test_latency_is_a_positive_median():
    calls = []
    model = nn.Identity().eval()
    model.register_forward_hook(lambda *_: calls.append(1))
    assert latency(model, torch.rand(2, 3), repeats=5, warm_up=2) > 0
    assert len(calls) == 7
