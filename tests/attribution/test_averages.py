"""Gradients averaged over points: the points, their number at a time, seeds; and the controls."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from niwaki.attribution import create, explain
from niwaki.errors import DataError


@pytest.fixture
def network() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 6), nn.Tanh(), nn.Linear(6, 3)
    )
    return model.double().eval(), torch.randn(3, 2, 6, 6, dtype=torch.float64)


def slope(model: nn.Module, x: Tensor, target: int) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(model(leaf)[:, target].sum(), leaf)[0]


AVERAGES = ["integrated_gradients", "smoothgrad", "expected_gradients"]


@pytest.mark.parametrize("name", AVERAGES)
def test_the_number_of_points_at_a_time_changes_nothing(
    name: str, network: tuple[nn.Module, Tensor]
) -> None:
    model, x = network
    one, seven, many = (
        explain(model, x, None, name, internal_batch_size=size) for size in (1, 7, 64)
    )
    torch.testing.assert_close(one, many, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(seven, many, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["smoothgrad", "expected_gradients", "random"])
def test_seeds(name: str, network: tuple[nn.Module, Tensor]) -> None:
    model, x = network
    torch.manual_seed(1)
    zero = explain(model, x, 1, name)
    torch.manual_seed(2)  # the global generator has no say, and is left alone
    state = torch.get_rng_state()
    assert torch.equal(explain(model, x, 1, name, seed=0), zero)
    assert torch.equal(torch.get_rng_state(), state)
    other = explain(model, x, 1, name, seed=1)
    assert float((other - zero).abs().max()) > 1e-3
    single = create(name, model.float()).attribute(x.float(), 1)  # the same points
    torch.testing.assert_close(single.double(), zero, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("relative", [False, True])
def test_smoothgrad_is_the_mean_over_a_cloud(
    relative: bool, network: tuple[nn.Module, Tensor]
) -> None:
    model, x = network
    generator = torch.Generator().manual_seed(5)
    total = torch.zeros_like(x)
    for _ in range(9):
        noise = torch.randn(2, 6, 6, generator=generator, dtype=torch.float64)
        for i, image in enumerate(x):
            sigma = 0.3 * (float(image.max()) - float(image.min()) if relative else 1.0)
            total[i] += slope(model, (image + sigma * noise)[None], 2)[0] / 9
    found = explain(model, x, 2, "smoothgrad", samples=9, sigma=0.3, seed=5, relative=relative)
    torch.testing.assert_close(found, total, rtol=1e-10, atol=1e-12)


def test_smoothgrad_without_noise_is_the_gradient(network: tuple[nn.Module, Tensor]) -> None:
    model, x = network
    torch.testing.assert_close(
        explain(model, x, 2, "smoothgrad", sigma=0.0, samples=3), slope(model, x, 2)
    )


def test_the_output_is_chosen_at_the_input_itself(network: tuple[nn.Module, Tensor]) -> None:
    model, x = network
    largest = model(x).argmax(1)
    for name in AVERAGES:
        assert torch.equal(explain(model, x, None, name), explain(model, x, largest, name))


def test_expected_gradients_with_one_baseline_converge_to_integrated_ones(
    network: tuple[nn.Module, Tensor],
) -> None:
    model, x = network
    exact = explain(model, x, 0, "integrated_gradients", quadrature="gauss", steps=256)
    distances = [
        float((explain(model, x, 0, "expected_gradients", samples=n) - exact).norm() / exact.norm())
        for n in (16, 4096)
    ]
    assert distances[1] < 0.03
    assert distances[1] < distances[0] / 3


def test_expected_gradients_of_a_quadratic_are_known() -> None:
    class Quadratic(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.pow(2).sum(1, keepdim=True)

    x = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    baselines = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, -1.0]], dtype=torch.float64)
    found = explain(
        Quadratic().eval(), x, 0, "expected_gradients", baselines=baselines, samples=20_000
    )
    # The integral of 2 (b + a (x - b)) (x - b) over a is x^2 - b^2.
    expected = (x**2 - baselines**2).mean(0, keepdim=True)
    torch.testing.assert_close(found, expected, rtol=0.03, atol=0.03)
    with pytest.raises(DataError, match="do not fit inputs"):
        explain(Quadratic().eval(), x, 0, "expected_gradients", baselines=baselines[:, :2])


def test_integrated_gradients_of_polynomials_are_exact_with_gauss() -> None:
    class Power(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.pow(5).sum(1, keepdim=True)

    x = torch.tensor([[1.2, -0.7]], dtype=torch.float64)
    found = explain(
        Power().eval(), x, 0, "integrated_gradients", steps=3, quadrature="gauss", baseline=0.5
    )
    torch.testing.assert_close(found, x**5 - 0.5**5, rtol=1e-12, atol=1e-12)


def test_controls(network: tuple[nn.Module, Tensor]) -> None:
    model, x = network
    found = explain(model, x, None, "input")
    assert torch.equal(found, x)
    assert found.data_ptr() != x.data_ptr()
    noise = explain(model, x.new_zeros(2, 2, 100, 100), None, "random", sigma=3.0)
    assert torch.equal(noise[0], noise[1])
    assert float(noise.mean()) == pytest.approx(0, abs=0.1)
    assert float(noise.std()) == pytest.approx(3.0, rel=0.03)
    assert abs(np.corrcoef(noise[0, 0].flatten(), noise[0, 1].flatten())[0, 1]) < 0.05
