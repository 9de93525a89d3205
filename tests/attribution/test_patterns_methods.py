"""PatternNet and PatternAttribution against dense matrices, multiplied one after the other."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from niwaki.attribution import Patterns, create, fit_patterns
from niwaki.propagation import Pattern, pattern_attribution


class Net(nn.Module):
    """Convolution, norm, ReLU, max pool, residual sum, average pool, two dense layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 3, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.conv2 = nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False)
        self.fc1 = nn.Linear(12, 6)
        self.fc2 = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.relu(self.norm(self.conv1(x))), 2)
        x = torch.relu(self.conv2(x) + x)
        x = F.avg_pool2d(x, 2).flatten(1)
        return self.fc2(torch.relu(self.fc1(x)))  # type: ignore[no-any-return]


def network() -> Net:
    torch.manual_seed(3)
    model = Net().double().eval()
    for values in (model.norm.weight.data, model.norm.bias.data, model.norm.running_mean):
        values.normal_()
    model.norm.running_var.uniform_(0.5, 2)
    return model


def images(count: int) -> Tensor:
    return torch.randn(count, 2, 16, 16, generator=torch.Generator().manual_seed(4)).double()


def convolution_matrix(kernel: Tensor, size: int, stride: int, groups: int) -> Tensor:
    """Matrix of a 3 x 3 convolution with padding 1, value by value."""
    units, channels = kernel.shape[:2]
    out = (size - 1) // stride + 1
    matrix = torch.zeros(units, out, out, channels * groups, size, size).double()
    for unit in range(units):
        start = unit // (units // groups) * channels
        for i in range(out):
            for j in range(out):
                for di in range(3):
                    for dj in range(3):
                        row, column = stride * i + di - 1, stride * j + dj - 1
                        if 0 <= row < size and 0 <= column < size:
                            taps = kernel[unit, :, di, dj]
                            matrix[unit, i, j, start : start + channels, row, column] = taps
    return matrix.flatten(0, 2).flatten(1)


def pooling_matrices(x: Tensor) -> tuple[Tensor, Tensor]:
    """Matrices of 2 x 2 pooling of `x` (C, H, W): by the winner, and by the average."""
    channels, size, _ = x.shape
    winner = torch.zeros(channels, size // 2, size // 2, channels, size, size).double()
    average = torch.zeros_like(winner)
    for c in range(channels):
        for i in range(size // 2):
            for j in range(size // 2):
                window = x[c, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
                best = int(window.argmax())
                winner[c, i, j, c, 2 * i + best // 2, 2 * j + best % 2] = 1
                average[c, i, j, c, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2] = 0.25
    return winner.flatten(0, 2).flatten(1), average.flatten(0, 2).flatten(1)


def twin(model: Net, patterns: Patterns, x: Tensor, attribution: bool) -> Tensor:
    """Explain the largest output of one image, layer by layer."""
    scale = model.norm.weight / (model.norm.running_var + model.norm.eps).sqrt()
    weights = {name: model.get_submodule(name).weight.detach() for name in patterns}
    weights["conv1"] = weights["conv1"] * scale.detach().view(-1, 1, 1, 1)
    back = {name: a * weights[name] if attribution else a for name, a in patterns.items()}

    h1 = model.norm(model.conv1(x[None]))[0]
    pooled = F.max_pool2d(h1.relu(), 2)
    h2 = model.conv2(pooled[None])[0] + pooled
    averaged = F.avg_pool2d(h2.relu(), 2)
    h3 = model.fc1(averaged.flatten())
    output = model.fc2(h3.relu())

    winner, _ = pooling_matrices(h1.relu())
    _, average = pooling_matrices(h2.relu())
    signal = torch.zeros_like(output)
    signal[output.argmax()] = output.max()
    signal = (signal @ back["fc2"]) * (h3 > 0)
    signal = (signal @ back["fc1"] @ average) * (h2.flatten() > 0)
    signal = signal + signal @ convolution_matrix(back["conv2"], 4, 1, 3)
    signal = (signal @ winner) * (h1.flatten() > 0)
    return (signal @ convolution_matrix(back["conv1"], 16, 2, 1)).view(x.shape)


@pytest.mark.parametrize("name", ["pattern.net", "pattern.attribution"])
def test_methods_are_products_of_matrices(name: str) -> None:
    model, x = network(), images(40)
    patterns = fit_patterns(model, (x, torch.zeros(40, dtype=torch.int64)))
    heatmaps = create(name, model, patterns=patterns).attribute(x[:4])
    expected = torch.stack([twin(model, patterns, one, "attribution" in name) for one in x[:4]])
    assert heatmaps.abs().sum() > 0
    torch.testing.assert_close(heatmaps, expected.detach(), rtol=1e-9, atol=1e-12)


def test_a_linear_layer_without_a_bias_is_taken_apart_into_its_signal() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 3, bias=False)).double().eval()
    x = torch.randn(50, 6).double()
    labels = torch.zeros(50, dtype=torch.int64)
    patterns = fit_patterns(model, (x, labels), estimator="linear")
    output = model(x).detach()
    signal = create("pattern.net", model, patterns=patterns).attribute(x, 1)
    torch.testing.assert_close(signal, output[:, 1:2] * patterns["0"][1])
    torch.testing.assert_close(signal @ model[0].weight[1], output[:, 1])
    relevance = create("pattern.attribution", model, patterns=patterns).attribute(x, 1)
    torch.testing.assert_close(relevance.sum(1), output[:, 1])


@pytest.mark.parametrize("name", ["pattern.net", "pattern.attribution"])
def test_start_is_the_output_or_one(name: str) -> None:
    model, x = network(), images(20)
    patterns = fit_patterns(model, (x, torch.zeros(20, dtype=torch.int64)))
    by_output = create(name, model, patterns=patterns).attribute(x, 2)
    by_one = create(name, model, patterns=patterns, start="one").attribute(x, 2)
    factor = model(x)[:, 2].detach().view(-1, 1, 1, 1)
    torch.testing.assert_close(by_output, by_one * factor)
    assert "PatternNet" in repr(create("pattern.net", model, patterns=patterns))


def test_the_rule_prints_without_its_tensors() -> None:
    table = str(pattern_attribution({"layer": torch.zeros(3, 2)}))
    assert "Pattern(weight times pattern, 1 layers)" in table
    assert str(Pattern({})) == "Pattern(pattern, 0 layers)"
