"""The networks of the zoo, against their published weights and the text of the papers."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from niwaki.data import batches, open_data, references
from niwaki.models import build, check, zoo


@pytest.mark.parametrize(
    ("network", "weights", "folder", "expected"),
    [
        ("resnet20", "resnet20_cifar10", "cifar10", 0.804),
        ("resnet20", "resnet20_cifar10_jpeg", "cifar10", 0.877),
        ("resnet56", "resnet56_cifar10", "cifar10", 0.836),
        ("vgglike", "vgglike_cifar10", "cifar10", 0.800),
        ("lenet", "lenet_mnist", "mnist", 0.989),
    ],
)
def test_published_weights_reach_their_accuracy(shared, network, weights, folder, expected):
    model = build(
        f"niwaki.models.zoo:{network}",
        weights=shared / "data" / "weights" / f"{weights}.safetensors",
    )
    check(model)
    builder = getattr(zoo, network)
    data = open_data(shared / "data" / folder, builder.preprocessing)
    sample = references(data, 40, seed=0)
    with torch.no_grad():
        right = sum((model(x).argmax(1) == y).sum().item() for x, y in batches(sample, 100))
    # 400 images: two standard errors are at most 4 points.
    assert abs(right / 400 - expected) < 0.04
    if folder == "cifar10":
        assert data.classes == builder.class_names


@settings(max_examples=30, deadline=None)
@given(
    channels=st.integers(1, 6),
    extra=st.integers(0, 7),
    stride=st.integers(1, 3),
    size=st.integers(1, 7),
)
def test_shortcut_equals_padding(channels, extra, stride, size):
    x = torch.randn(2, channels, size, size, dtype=torch.float64, requires_grad=True)
    out = zoo.ShortcutA(channels, channels + extra, stride)(x)
    before, after = extra // 2, extra - extra // 2
    twin = F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, before, after))
    torch.testing.assert_close(out, twin)
    weight = torch.randn_like(out)
    gradients = [torch.autograd.grad(y, x, weight, retain_graph=True)[0] for y in (out, twin)]
    torch.testing.assert_close(*gradients)


def test_shortcut_can_be_edited():
    shortcut = zoo.ShortcutA(4, 8, 2)
    assert shortcut.source.tolist() == [-1, -1, 0, 1, 2, 3, -1, -1]
    assert not shortcut.state_dict()
    x = torch.rand(1, 4, 6, 6)
    full = shortcut(x)
    # Without input channel 1, whose output becomes zero, and without output channels 0 and 4.
    shortcut.source = torch.tensor([-1, 0, -1, 2, -1, -1])
    shortcut.in_channels = 3
    expected = full[:, [1, 2, 3, 5, 6, 7]]
    expected[:, 2] = 0
    torch.testing.assert_close(shortcut(x[:, [0, 2, 3]]), expected)
    assert repr(shortcut) == "ShortcutA(3, 6, stride=2)"


@pytest.mark.parametrize(
    ("network", "parameters"),
    # The residual networks: table 6 of He et al. 2016, 0.27 and 0.85 million.
    [("resnet20", 269_722), ("resnet56", 853_018), ("lenet", 431_080)],
)
def test_parameters(network, parameters):
    model = getattr(zoo, network)()
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("network", ["resnet20", "resnet56", "vgglike", "lenet", "vgg_digits"])
def test_number_of_classes(network):
    builder = getattr(zoo, network)
    model = build(f"niwaki.models.zoo:{network}", classes=3)
    size, channels = builder.preprocessing.size, builder.preprocessing.channels
    assert model(torch.rand(2, channels, size, size)).shape == (2, 3)
    assert len(builder.class_names) == 10


def test_vgg_digits_learns_the_digits():
    torch.manual_seed(0)
    model = zoo.vgg_digits()
    inputs, labels = next(batches(open_data("digits", split="train"), 1200))
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(2):
        for chosen in torch.randperm(1200).split(50):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs[chosen]), labels[chosen]).backward()
            optimizer.step()
    inputs, labels = next(batches(open_data("digits"), 597))
    assert (model.eval()(inputs).argmax(1) == labels).float().mean() > 0.94
    assert zoo.vgg_digits(in_channels=3)(torch.rand(2, 3, 8, 8)).shape == (2, 10)
