"""What torch's default type of number is, and whether inputs require gradients, changes nothing."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import niwaki
from niwaki.auditing import Spread, gather
from niwaki.data import Described, Preprocessing
from niwaki.errors import ModelError
from niwaki.pruning import Schedule


class Net(nn.Module):
    """A small network of single precision."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 6, 3)
        self.second = nn.Conv2d(6, 6, 3)
        self.head = nn.Linear(6, 3)
        self.float().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.second(F.relu(self.first(x)))).mean((2, 3)))


NET = Net()
IMAGES = torch.randn(9, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float32)
LABELS = torch.arange(9) % 3


def curves(data: Any) -> Tensor:
    how = niwaki.evaluation.Perturbation(regions=(3, 3), replacement="gaussian")
    found = niwaki.evaluation.perturbation_curves(NET, data, "gradient", how)["gradient"]
    return torch.cat([scores.flatten() for scores in found.scores.values()])


def spread(data: Any) -> Tensor:
    pairs = list(zip(*data, strict=True))
    masks = torch.ones(2, 8, 8, dtype=torch.bool).numpy()
    changed = Spread(pairs, data[0][:2], masks, share=0.5, seed=0)
    return torch.stack([changed[i][0] for i in range(len(pairs))])


def explained(name: str, **options: Any) -> Callable[[Any], Tensor]:
    return lambda data: niwaki.explain(NET, data[0], 1, name, **options)


JOBS: dict[str, Callable[[Any], Any]] = {
    **{name: explained(name) for name in ("gradient", "lrp.epsilon_plus", "lrp.w_square")},
    **{name: explained(name) for name in ("grad_cam", "deep_lift", "occlusion", "random")},
    "integrated_gradients": explained("integrated_gradients", quadrature="gauss", steps=4),
    "smoothgrad": explained("smoothgrad", samples=3),
    "expected_gradients": explained("expected_gradients", samples=3),
    "through units": lambda data: niwaki.attribution.create("lrp.epsilon_plus", NET).attribute(
        data[0], 1, conditions={"first": [0, 2]}
    ),
    **{
        f"scores by {name}": lambda data, name=name: list(niwaki.score(NET, data, name).values())
        for name in ("lrp", "taylor", "hessian", "random", "integrated_gradients", "weight")
    },
    **{
        f"weights by {name}": lambda data, name=name: list(
            niwaki.score_weights(NET, data, name).values()
        )
        for name in ("lrp", "gradient", "taylor", "random")
    },
    "curves": curves,
    "randomised": lambda data: (
        niwaki.evaluation.randomisation_test(NET, data, "gradient")["gradient"].spearman
    ),
    "artefacts on other images": spread,
    "signal quality": lambda data: list(
        niwaki.attribution.signal_quality(NET, data, "random", patches=5).values()
    ),
    "pruned": lambda data: (
        niwaki.prune(NET, data, keep=0.6, schedule=Schedule(steps=1)).model(IMAGES).detach()
    ),
    "accuracy reduction": lambda data: niwaki.car.index(NET, data)["first"].car,
}


@pytest.mark.parametrize("name", JOBS)
def test_the_default_type_decides_nothing(name: str) -> None:
    data = IMAGES, LABELS
    expected = JOBS[name](data)
    torch.set_default_dtype(torch.float64)
    try:
        found = JOBS[name](data)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(found, expected, check_dtype=False)


@pytest.mark.parametrize("name", JOBS)
def test_inputs_that_require_gradients_are_taken_as_they_are(name: str) -> None:
    expected = JOBS[name]((IMAGES, LABELS))
    leaf = IMAGES.clone().requires_grad_()
    for inputs in (leaf, leaf * 1):  # a result of something that is trained
        torch.testing.assert_close(JOBS[name]((inputs, LABELS)), expected)
    assert leaf.grad is None


@pytest.mark.filterwarnings("ignore::niwaki.errors.PrecisionWarning")
@pytest.mark.parametrize("own", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("default", [torch.float64, torch.float32])
def test_an_audit_asks_a_network_in_its_own_type(own: torch.dtype, default: torch.dtype) -> None:
    prepared = Preprocessing(8, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    pixels = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float32)
    mean, std = (
        torch.tensor(values, dtype=torch.float32)[:, None, None]
        for values in (prepared.mean, prepared.std)
    )
    data = Described(TensorDataset((pixels - mean) / std, LABELS[:6]), preprocessing=prepared)
    model = copy.deepcopy(NET).to(own)
    torch.set_default_dtype(default)
    try:
        material = gather(model, data, method="gradient")
        asked = material.ask(pixels)
    finally:
        torch.set_default_dtype(torch.float32)
    assert abs(asked - material.outputs).max() < 0.02 * abs(material.outputs).max()


def test_an_audit_refuses_a_type_that_numpy_lacks() -> None:
    data = Described(
        TensorDataset(IMAGES, LABELS),
        preprocessing=Preprocessing(8, mean=(0.5,) * 3, std=(0.5,) * 3),
    )
    with pytest.raises(ModelError, match="bfloat16"):
        niwaki.audit(copy.deepcopy(NET).bfloat16(), data)
