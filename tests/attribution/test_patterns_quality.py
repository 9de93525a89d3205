"""The quality of signal estimators: against least squares on patches laid out, and on LeNet."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from niwaki.attribution import fit_patterns, signal_quality
from niwaki.data import open_data
from niwaki.errors import ModelError
from niwaki.models import load_weights, zoo


def unlabelled(inputs: Tensor) -> tuple[Tensor, Tensor]:
    return inputs, torch.zeros(len(inputs), dtype=torch.int64)


def samples(count: int, seed: int, size: int = 6) -> Tensor:
    """Correlated values, so that the direction of the weight is not that of the signal."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size, size, generator=torch.Generator().manual_seed(9))
    return (torch.randn(count, size, generator=generator) @ mixing + 0.5).double()


def linear() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), nn.ReLU()).double().eval()


def by_least_squares(layer: nn.Linear, x: Tensor, a: Tensor, below: Tensor) -> Tensor:
    """Find and measure each unit's readout as it is defined, one unit after the other."""
    result = []
    for unit in range(len(layer.weight)):
        w, bias = layer.weight[unit].detach(), layer.bias[unit].detach()
        y = x @ w
        directions = torch.where((y + bias > 0)[:, None], a[unit] / (a[unit] @ w), below[unit])
        d = x - directions * y[:, None]
        centred, target = d[::2] - d[::2].mean(0), y[::2] - y[::2].mean()
        v = torch.linalg.lstsq(centred, target, driver="gelsd").solution
        correlation = torch.corrcoef(torch.stack([y[1::2], d[1::2] @ v]))[0, 1]
        result.append(1 - correlation.clamp(min=0))
    return torch.stack(result)


def test_rho_is_that_of_least_squares_on_the_distractor() -> None:
    model, x = linear(), samples(400, 1)
    w = model[0].weight.detach()
    scaled = w / w.square().sum(1, keepdim=True)
    expected = by_least_squares(model[0], x, w, scaled)
    for batch_size in (400, 33):  # the split goes by the image's place in the whole data
        found = signal_quality(model, unlabelled(x), "weight", ridge=1e-9, batch_size=batch_size)
        torch.testing.assert_close(found["0"], expected, rtol=1e-4, atol=1e-5)


def test_rho_of_two_components_and_of_half_of_them() -> None:
    model, x = linear(), samples(400, 1)
    fitted = unlabelled(samples(300, 2))
    above, below = (fit_patterns(model, fitted, estimator=e) for e in ("relu", "negative"))
    expected = by_least_squares(model[0], x, above["0"], below["0"])
    found = signal_quality(model, unlabelled(x), (above, below), ridge=1e-9)
    torch.testing.assert_close(found["0"], expected, rtol=1e-4, atol=1e-4)
    assert expected.min() > 0.7
    half = signal_quality(model, unlabelled(x), above, ridge=1e-9)
    expected = by_least_squares(model[0], x, above["0"], above["0"])
    torch.testing.assert_close(half["0"], expected, rtol=1e-4, atol=1e-5)


def test_every_patch_of_a_grouped_convolution_is_a_sample() -> None:
    """A convolution whose patches are the rows of the linear layer, in each of its two groups."""
    layer, x = linear()[0], samples(400, 1)
    images = x.view(100, 4, 2, 3).permute(0, 2, 1, 3).reshape(100, 2, 12).repeat(1, 2, 1)
    model = nn.Sequential(nn.Conv1d(4, 8, 3, stride=3, groups=2), nn.ReLU()).double().eval()
    model[0].weight.data[:] = layer.weight.data.view(4, 2, 3).repeat(2, 1, 1)
    model[0].bias.data[:] = layer.bias.data.repeat(2)
    found = signal_quality(model, unlabelled(images), "weight", ridge=1e-9)["0"]
    rows = x.view(100, 4, 6)  # split by image, where the linear layer has its patches
    order = torch.stack([rows[::2].flatten(0, 1), rows[1::2].flatten(0, 1)], 1).flatten(0, 1)
    w = layer.weight.detach()
    expected = by_least_squares(layer, order, w, w / w.square().sum(1, keepdim=True))
    torch.testing.assert_close(found, expected.repeat(2), rtol=1e-4, atol=1e-5)
    one, again = (signal_quality(model, unlabelled(images), "weight", patches=2) for _ in range(2))
    other = signal_quality(model, unlabelled(images), "weight", patches=2, seed=1)
    assert torch.equal(one["0"], again["0"])
    assert not torch.equal(one["0"], other["0"])


def test_weights_lie_in_memory_as_they_like() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).eval()
    images = unlabelled(torch.randn(30, 3, 6, 6))
    plain = signal_quality(model, images, "weight")
    other = signal_quality(model.to(memory_format=torch.channels_last), images, "weight")
    for layer, rho in plain.items():
        torch.testing.assert_close(other[layer], rho)


def test_the_signal_is_told_from_the_distractor() -> None:
    """x = signal * y + distractor * e: only the signal's direction leaves nothing of y."""
    generator = torch.Generator().manual_seed(0)
    y, e = torch.randn(2, 2000, 1, generator=generator).double()
    x = y * torch.tensor([1.0, 0.0]) + e * torch.tensor([1.0, 1.0])
    model = nn.Sequential(nn.Linear(2, 1)).double().eval()
    model[0].weight.data[:] = torch.tensor([1.0, -1.0])
    truth = {"0": torch.tensor([[1.0, 0.0]])}
    rho = {
        str(name): float(signal_quality(model, unlabelled(x), estimator)["0"])
        for name, estimator in {"truth": truth, **{n: n for n in ("weight", "identity")}}.items()
    }
    assert rho["truth"] > 0.95
    assert rho["weight"] < 0.7
    assert rho["identity"] == 0


def test_units_without_pattern_or_output() -> None:
    model, x = linear(), samples(400, 1)
    patterns = dict(fit_patterns(model, unlabelled(samples(300, 2)), estimator="linear"))
    patterns["0"][1] = 0
    model[0].weight.data[2] = 0
    rho = signal_quality(model, unlabelled(x), patterns)["0"]
    assert rho[1] == 0
    assert rho[2].isnan()
    assert rho[0] > 0.7


def test_what_makes_no_sense_is_an_error() -> None:
    model, x = linear(), samples(40, 1)
    with pytest.raises(ValueError, match="'signal' is not one of"):
        signal_quality(model, unlabelled(x), "signal")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="patches = 0"):
        signal_quality(model, unlabelled(x), "weight", patches=0)
    with pytest.raises(ModelError, match="of another network: layer '0'"):
        signal_quality(model, unlabelled(x), {"0": torch.ones(4, 7)})


@pytest.mark.slow
def test_patterns_beat_weight_and_identity_in_every_layer_of_lenet(shared: Path) -> None:
    model = zoo.lenet().eval()
    load_weights(model, shared / "data/weights/lenet_mnist.safetensors")
    digits = open_data(shared / "data/mnist", zoo.lenet.preprocessing, split="train")
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0)).tolist()
    images = torch.stack([digits[i][0] for i in order[:600]])
    fitted, held_out = unlabelled(images[:250]), unlabelled(images[250:])
    patterns = tuple(
        fit_patterns(model, fitted, estimator=e, batch_size=125) for e in ("relu", "negative")
    )
    rho = {
        name: {
            layer: float(values.mean())
            for layer, values in signal_quality(
                model, held_out, estimator, patches=8, batch_size=350
            ).items()
        }
        for name, estimator in {"patterns": patterns, "weight": "weight"}.items()
    }
    identity = signal_quality(model, unlabelled(images[250:270]), "identity")
    for layer in ("conv1", "conv2", "fc1", "fc2"):
        assert rho["patterns"][layer] > rho["weight"][layer] + 0.3, (layer, rho)
        assert rho["patterns"][layer] > float(identity[layer].mean()), layer
