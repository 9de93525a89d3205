"""Rules in half precision give what they give in single, for every kind of layer."""

import copy

import pytest
import torch
from torch import Tensor, nn

from niwaki import explain
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
