"""Rules in half precision give what they give in single, for every kind of layer."""

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

from niwaki import explain
from niwaki.criteria import score
from niwaki.errors import PrecisionWarning
from niwaki.propagation import (
    AlphaBeta,
    Assign,
    Epsilon,
    Flat,
    Gamma,
    Norm,
    Ratio,
    Rule,
    WSquare,
    ZBox,
    ZPlus,
    epsilon,
)

pytestmark = pytest.mark.filterwarnings("ignore::niwaki.errors.PrecisionWarning")

RULES = [
    Epsilon(),
    ZPlus(),
    AlphaBeta(2, 1),
    Flat(),
    WSquare(),
    Gamma(),
    Norm(),
    Ratio(),
    ZBox(-3.0, 3.0),
    ZBox((-3.0, -2.0, -4.0, -3.0), (3.0, 4.0, 2.0, 3.0)),
]


class Scaled(nn.Module):
    """What a network may do to its input itself."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.25) / 0.5


LAYERS = {
    "convolution": lambda: nn.Conv2d(4, 6, 3),
    "grouped": lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2),
    "behind a normalisation": lambda: nn.Sequential(Scaled(), nn.Conv2d(4, 6, 3)),
    "behind a norm": lambda: nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3)),
    "with a norm and no bias": lambda: nn.Sequential(
        nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)
    ),
    "with a norm without parameters": lambda: nn.Sequential(
        nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False)
    ),
    "with a norm": lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)),
    "padded": lambda: nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(4, 6, 3)),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_rule_gives_what_it_gives_in_single_precision(
    rule: Rule, layer: str, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(LAYERS[layer](), nn.Flatten(2)).to(dtype).eval()
    x = torch.rand(2, 4, 6, 6).to(dtype)
    composite = epsilon().with_rows(Assign(rule, kind="convolution"))
    same = copy.deepcopy(model).float()  # of the same numbers
    target = torch.zeros(2, 6, same(x.float()).shape[2]).index_fill(1, torch.tensor([1]), 1.0)
    options = {"composite": composite, "max_loss": None, "start": "one"}
    found = explain(model, x, target, "lrp", **options)
    expected = explain(same, x.float(), target, "lrp", **options)
    assert found.dtype == dtype
    torch.testing.assert_close(
        found.float(), expected, rtol=0.05, atol=0.02 * float(expected.abs().max())
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rule", RULES[:9], ids=str)
def test_so_it_does_for_linear_layers(rule: Rule, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 3)).to(dtype).eval()
    x = torch.rand(4, 5).to(dtype)
    composite = epsilon().with_rows(Assign(rule, kind="linear"))
    options = {"composite": composite, "max_loss": None, "start": "one"}
    found = explain(model, x, 1, "lrp", **options)
    expected = explain(copy.deepcopy(model).float(), x.float(), 1, "lrp", **options)
    torch.testing.assert_close(
        found.float(), expected, rtol=0.05, atol=0.02 * float(expected.abs().max())
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", ["gradient", "lrp.epsilon", "EpsilonAlpha2Beta1", "score"])
def test_half_precision_is_named_and_single_is_not(method: str, dtype: torch.dtype) -> None:
    """Also where only a part of the network is in half precision."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
    x = torch.rand(2, 3, 6, 6)

    def run(network: nn.Module, inputs: Tensor) -> None:
        if method == "score":
            score(network, (inputs, torch.tensor([0, 1])), "lrp")
        else:
            explain(network, inputs, 0, method)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(model, x)
        run(copy.deepcopy(model).double(), x.double())
    with pytest.warns(PrecisionWarning, match=rf"computes in {dtype}"):
        run(copy.deepcopy(model).to(dtype), x.to(dtype))

    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = copy.deepcopy(model[:3]).to(dtype), copy.deepcopy(model[3])

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x.to(dtype)).float())

    with pytest.warns(PrecisionWarning, match=rf"computes in {dtype}"):
        run(Partly().eval(), x)
