"""Patterns against closed-form toy data and against numpy on patches laid out one by one."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from niwaki.attribution import Patterns, create, fit_patterns
from niwaki.errors import DataError, ModelError, PatternWarning, PropagationError

SIGNAL, DISTRACTOR = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])
WEIGHT = torch.tensor([1.0, -1.0])  # w^T signal = 1 and w^T distractor = 0


def signal_and_distractor() -> Tensor:
    """Samples x = signal * y + distractor * e with y and e on a grid: exactly independent."""
    y, e = (v.flatten() for v in torch.meshgrid(*2 * [torch.linspace(-2, 2, 9)], indexing="ij"))
    return (y[:, None] * SIGNAL + 3 * e[:, None] * DISTRACTOR).double()


def unlabelled(inputs: Tensor) -> tuple[Tensor, Tensor]:
    return inputs, torch.zeros(len(inputs), dtype=torch.int64)


@pytest.mark.parametrize("estimator", ["linear", "relu", "negative"])
@pytest.mark.parametrize("bias", [0.0, 1.25])
def test_dense_pattern_is_the_signal_where_the_gradient_is_not(estimator: str, bias: float) -> None:
    model = nn.Sequential(nn.Linear(2, 1), nn.ReLU()).double().eval()
    model[0].weight.data[:], model[0].bias.data[:] = WEIGHT, bias
    x = signal_and_distractor()
    patterns = fit_patterns(model, unlabelled(x), estimator=estimator)
    torch.testing.assert_close(patterns["0"][0], SIGNAL.double())
    active = (x @ WEIGHT.double()) + bias > 0
    gradient = create("gradient", model).attribute(x[active])
    assert not torch.allclose(gradient[0], SIGNAL.double())
    signal = create("pattern.net", model, patterns=patterns, start="one").attribute(x[active])
    torch.testing.assert_close(signal, SIGNAL.double().expand_as(signal))


@pytest.mark.parametrize("estimator", ["linear", "relu"])
def test_convolution_pattern_is_the_signal(estimator: str) -> None:
    """Two groups, a kernel of two pixels and a stride of two: patches that do not overlap."""
    x = signal_and_distractor()[torch.randperm(81, generator=torch.Generator().manual_seed(0))]
    images = x.view(9, 1, 1, 18).repeat(1, 2, 1, 1)
    model = nn.Sequential(nn.Conv2d(2, 2, (1, 2), stride=2, groups=2), nn.ReLU()).double().eval()
    model[0].weight.data[:], model[0].bias.data[:] = WEIGHT, 0.3
    patterns = fit_patterns(model, unlabelled(images), estimator=estimator, batch_size=4)
    torch.testing.assert_close(patterns["0"], SIGNAL.double().expand(2, 1, 1, 2))


def by_hand(
    x: NDArray[np.float64], conv: nn.Module, norm: nn.Module, estimator: str
) -> NDArray[np.float64]:
    """Lay out every patch in a loop and follow the definition word by word."""
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().numpy()
    shift = norm.bias - norm.running_mean * norm.weight / (norm.running_var + norm.eps).sqrt()
    weight = conv.weight.detach().numpy() * scale.reshape(-1, *[1] * (conv.weight.dim() - 1))
    bias = conv.bias.detach().numpy() * scale + shift.detach().numpy()
    padded = np.pad(x, [(0, 0), (0, 0), *[(p, p) for p in conv.padding]])
    kernel, units = weight.shape[2:], len(weight)
    reach = [d * (k - 1) + 1 for d, k in zip(conv.dilation, kernel, strict=True)]
    counts = [
        (n - r) // s + 1 for n, r, s in zip(padded.shape[2:], reach, conv.stride, strict=True)
    ]
    result = np.zeros_like(weight)
    for unit in range(units):
        channels = weight.shape[1]
        start = unit // (units // conv.groups) * channels
        patches = []
        for sample, position in product(range(len(x)), product(*map(range, counts))):
            corner = [p * s for p, s in zip(position, conv.stride, strict=True)]
            window = tuple(
                slice(c, c + r, d) for c, r, d in zip(corner, reach, conv.dilation, strict=True)
            )
            patches.append(padded[(sample, slice(start, start + channels), *window)].ravel())
        rows = np.array(patches)
        w = weight[unit].ravel()
        y = rows @ w
        active = y + bias[unit] > 0
        chosen = {"linear": active | True, "relu": active, "negative": ~active}[estimator]
        if not chosen.any():
            continue  # no pattern
        mean_xy = (rows[chosen] * y[chosen, None]).mean(0)
        mean_x = rows[chosen].mean(0)
        above = mean_xy - mean_x * y.mean()
        below = w @ mean_xy - (w @ mean_x) * y.mean()
        result[unit] = (above / below).reshape(weight[unit].shape)
    return result


CONVOLUTIONS = {
    "1d": (nn.Conv1d, nn.BatchNorm1d, (11,), {"kernel_size": 3, "stride": 2, "padding": 1}),
    "grouped": (
        nn.Conv2d,
        nn.BatchNorm2d,
        (7, 6),
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "groups": 2},
    ),
    "depthwise": (nn.Conv2d, nn.BatchNorm2d, (5, 6), {"kernel_size": 3, "groups": 4, "padding": 1}),
    "dilated": (nn.Conv2d, nn.BatchNorm2d, (7, 7), {"kernel_size": 3, "dilation": 2, "padding": 2}),
    "3d": (nn.Conv3d, nn.BatchNorm3d, (4, 4, 3), {"kernel_size": 2, "padding": (0, 1, 0)}),
}


@pytest.mark.parametrize("estimator", ["linear", "relu", "negative"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_patterns_are_those_of_patches_laid_out(name: str, estimator: str) -> None:
    torch.manual_seed(0)
    kind, normalise, space, options = CONVOLUTIONS[name]
    model = nn.Sequential(kind(4, 4, **options), normalise(4), nn.ReLU()).double().eval()
    norm = model[1]
    norm.weight.data.normal_()
    for values in (norm.bias.data, norm.running_mean):
        values.normal_(std=0.3)
    norm.running_var.uniform_(0.5, 2)
    x = torch.randn(5, 4, *space).double() + 0.5
    patterns = fit_patterns(model, unlabelled(x), estimator=estimator, batch_size=2)
    expected = torch.from_numpy(by_hand(x.numpy(), model[0], norm, estimator))
    torch.testing.assert_close(patterns["0"], expected, rtol=1e-8, atol=1e-10)


def small_network() -> nn.Sequential:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 3),
    )
    for layer in (0, 4, 7):  # every unit is active on some images and inactive on others
        nn.init.zeros_(model[layer].bias)
        nn.init.orthogonal_(model[layer].weight, gain=2)
    return model.eval()


def images(count: int = 12) -> Tensor:
    return torch.randn(count, 2, 6, 6, generator=torch.Generator().manual_seed(2))


def assert_equal(one: Patterns, other: Patterns, **tolerance: float) -> None:
    assert list(one) == list(other)
    for name in one:
        torch.testing.assert_close(one[name], other[name], **tolerance)


def test_batches_merge_to_what_one_batch_gives() -> None:
    model, x = small_network().double(), images().double()
    whole = fit_patterns(model, unlabelled(x), batch_size=12)
    tolerance = {"rtol": 1e-9, "atol": 1e-11}
    assert_equal(whole, fit_patterns(model, unlabelled(x), batch_size=5), **tolerance)
    loader = DataLoader(TensorDataset(*unlabelled(x)), batch_size=1, shuffle=True)
    assert_equal(whole, fit_patterns(model, loader), **tolerance)
    assert (whole.samples, list(whole)) == (12, ["0", "4", "7"])


def test_large_batches_are_worked_on_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = small_network().double(), images().double()
    whole = fit_patterns(model, unlabelled(x))
    monkeypatch.setattr("niwaki.attribution._pattern_statistics.CHUNK", 300)
    assert_equal(whole, fit_patterns(model, unlabelled(x)), rtol=1e-9, atol=1e-11)


def test_single_precision_keeps_its_digits_under_a_large_mean() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 5), nn.ReLU()).eval()
    x = torch.randn(4000, 20) + 100
    single = fit_patterns(model, unlabelled(x), estimator="linear", batch_size=500)
    double = fit_patterns(model.double(), unlabelled(x.double()), estimator="linear")
    torch.testing.assert_close(single["0"].double(), double["0"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("estimator", ["linear", "relu", "negative"])
def test_weight_times_pattern_sums_to_one(estimator: str) -> None:
    model = small_network()
    patterns = fit_patterns(model, unlabelled(images(40)), estimator=estimator, layers=["4", "7"])
    assert list(patterns) == ["4", "7"]
    for name in patterns:
        products = (patterns[name] * model.get_submodule(name).weight).flatten(1).sum(1)
        expected = patterns[name].flatten(1).any(1).to(products)
        assert expected.sum() == len(expected) - patterns.missing[name] > 0
        torch.testing.assert_close(products, expected, rtol=1e-4, atol=1e-4)


def test_the_network_is_not_changed() -> None:
    model = small_network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit_patterns(model, unlabelled(images()))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_units_that_nothing_counts_for_have_no_pattern() -> None:
    model = small_network()
    model[0].bias.data[1] = -1e4  # never active
    patterns = fit_patterns(model, unlabelled(images()), layers=["0"])
    assert patterns.missing == {"0": 1}
    assert not patterns["0"][1].any()
    assert repr(patterns) == (
        "Patterns(relu: 3 units in 1 layers, 1 without a pattern, 12 samples)"
    )
    model[0].bias.data[1] = 1e4  # always active: the estimator is the linear one
    always, linear = (
        fit_patterns(model, unlabelled(images()), estimator=estimator, layers=["0"])
        for estimator in ("relu", "linear")
    )
    torch.testing.assert_close(always["0"][1], linear["0"][1])
    negative = fit_patterns(model, unlabelled(images()), estimator="negative", layers=["0"])
    assert negative.missing == {"0": 1}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_output_that_does_not_vary_has_no_pattern(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 4)).to(dtype).eval()
    constant = torch.randn(1, 7, dtype=dtype).expand(50, 7)
    with pytest.warns(PatternWarning, match="no unit of layer '0'"):
        patterns = fit_patterns(model, unlabelled(constant), estimator="linear")
    assert patterns.missing == {"0": 4}


def test_a_layer_used_twice_pools_its_patches() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x).relu())  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model = Twice().double().eval()
    x = torch.randn(30, 4).double()
    hidden = model.layer(x).relu().detach()
    one = nn.Sequential(model.layer).eval()
    expected = fit_patterns(one, unlabelled(torch.cat([x, hidden])))["0"]
    torch.testing.assert_close(fit_patterns(model, unlabelled(x))["layer"], expected)


def test_saved_patterns_are_the_same(tmp_path: Path) -> None:
    model = small_network()
    patterns = fit_patterns(model, unlabelled(images()))
    path = tmp_path / "patterns.safetensors"
    patterns.save(path)
    loaded = Patterns.load(path)
    assert_equal(patterns, loaded, rtol=0, atol=0)
    assert repr(loaded) == repr(patterns)
    assert loaded.fingerprint == patterns.fingerprint
    by_path = create("pattern.net", model, patterns=path).attribute(images())
    direct = create("pattern.net", model, patterns=patterns).attribute(images())
    assert torch.equal(by_path, direct)
    (tmp_path / "other.safetensors").write_bytes(b"no such file")
    with pytest.raises(DataError, match="holds no patterns"):
        Patterns.load(tmp_path / "other.safetensors")
    with pytest.raises(DataError, match="holds no patterns"):
        Patterns.load(tmp_path / "missing.safetensors")


@pytest.mark.parametrize("name", ["pattern.net", "pattern.attribution"])
def test_patterns_of_another_network_are_refused(name: str) -> None:
    model = small_network()
    with pytest.raises(ValueError, match="fit_patterns"):
        create(name, model)
    patterns = fit_patterns(model, unlabelled(images()))
    other = small_network()
    other[4] = nn.Conv2d(3, 5, 2)
    with pytest.raises(ModelError, match=r"in layer '4' they have shape \(4, 3, 2, 2\)"):
        create(name, other, patterns=patterns)
    other = small_network()
    other[7].weight.data += 1
    with pytest.warns(PatternWarning, match="other weights"):
        create(name, other, patterns=patterns)
    part = fit_patterns(model, unlabelled(images()), layers=["0", "7"])
    with pytest.raises(PropagationError, match=r"conv2d \(4\) has no pattern"):
        create(name, model, patterns=part).attribute(images())


def test_what_cannot_be_fitted_is_an_error_that_says_so() -> None:
    model = small_network()
    with pytest.raises(ValueError, match="'quadratic' is not one of "):
        fit_patterns(model, unlabelled(images()), estimator="quadratic")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no convolution or linear layer 'head'; layers: 0, 4, 7"):
        fit_patterns(model, unlabelled(images()), layers=["head"])
    with pytest.raises(ModelError, match="training mode"):
        fit_patterns(small_network().train(), unlabelled(images()))
    transposed = nn.Sequential(nn.ConvTranspose2d(2, 3, 2), nn.Flatten()).eval()
    with pytest.raises(PropagationError, match="not for transposed convolutions"):
        fit_patterns(transposed, unlabelled(images()))
