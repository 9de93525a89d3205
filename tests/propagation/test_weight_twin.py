"""Relevance of every weight of a whole network, rebuilt weight by weight from its removal."""

from __future__ import annotations

import pytest
import torch
from linear_maps import dense, randomised
from torch import Tensor, nn

from niwaki.attribution import Propagating
from niwaki.propagation import (
    AlphaBeta,
    Assign,
    Epsilon,
    Gamma,
    Maps,
    Rule,
    ZPlus,
    epsilon,
    propagate,
)

SMALL = 1e-6


def network() -> tuple[nn.Sequential, list[nn.Sequential], Tensor]:
    """Convolutions and linear layers with batch norms; also cut into its affine parts."""
    parts = [
        nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3)),
        nn.Sequential(nn.Conv2d(3, 4, 2, stride=2, bias=False), nn.BatchNorm2d(4)),
        nn.Sequential(nn.Linear(16, 5, bias=False), nn.BatchNorm1d(5)),
        nn.Sequential(nn.Linear(5, 3)),
    ]
    first, second, third, last = (randomised(part, seed) for seed, part in enumerate(parts))
    model = nn.Sequential(
        *(*first, nn.ReLU(), *second, nn.ReLU(), nn.Flatten(), *third, nn.ReLU(), *last)
    ).eval()
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    return model, [first, second, third, last], x


def by_removal(part: nn.Sequential, x: Tensor) -> tuple[Tensor, Tensor]:
    """What each weight alone adds to each output, (weight, sample, output); and the offset."""
    weight = part[0].weight
    whole = weight.detach().clone()
    found = []
    with torch.no_grad():
        weight.zero_()
        nothing = part(x)
        for k in range(whole.numel()):
            weight.zero_().view(-1)[k] = whole.reshape(-1)[k]
            found.append((part(x) - nothing).flatten(1))
        weight.copy_(whole)
    return torch.stack(found), nothing.flatten(1)


def share(parts: Tensor, rest: Tensor, offset: Tensor, R: Tensor) -> Tensor:
    """Divide R in proportion to the parts, the offset taking its share."""
    z = rest + offset
    return parts * R / torch.where(z < 0, z - SMALL, z + SMALL)


def shares(parts: Tensor, offset: Tensor, R: Tensor, rule: Rule) -> Tensor:
    """Share out R, shape (sample, output), to parts of shape (part, sample, output)."""
    above, below = parts.clamp(min=0), parts.clamp(max=0)
    if isinstance(rule, Epsilon):
        return share(parts, parts.sum(0), offset, R)
    if isinstance(rule, ZPlus):
        return share(above, above.sum(0), offset.clamp(min=0), R)
    if isinstance(rule, AlphaBeta):
        plus = share(above, above.sum(0), offset.clamp(min=0), R)
        return 2 * plus - share(below, below.sum(0), offset.clamp(max=0), R)
    positive = parts.sum(0) + offset > 0
    total = torch.zeros_like(parts)
    for sign, where in ((1, positive), (-1, ~positive)):
        same = above if sign > 0 else below
        favoured = parts + 0.5 * same
        bias = offset + 0.5 * (offset.clamp(min=0) if sign > 0 else offset.clamp(max=0))
        total = total + share(favoured, favoured.sum(0), bias, R * where)
    return total


def by_hand(parts: list[nn.Sequential], x: Tensor, R: Tensor, rule: Rule) -> list[Tensor]:
    """Relevance of the weights of each affine part, the first part first."""
    inputs = []
    for number, part in enumerate(parts):
        inputs.append(x)
        with torch.no_grad():
            x = part(x)
        x = x if number == len(parts) - 1 else x.clamp(min=0)
        x = x.flatten(1) if number == 1 else x
    found = []
    for part, seen in zip(reversed(parts), reversed(inputs), strict=True):
        of_weights, offset = by_removal(part, seen)
        found.append(shares(of_weights, offset, R, rule).sum((1, 2)).view_as(part[0].weight))
        matrix, _ = dense(part, tuple(seen.shape[1:]))
        of_inputs = (seen.flatten(1)[:, None] * matrix).permute(2, 0, 1)
        R = shares(of_inputs, offset, R, rule).sum(2).T
    return found[::-1]


@pytest.mark.parametrize("rule", [Epsilon(), ZPlus(), AlphaBeta(2, 1), Gamma(0.5)], ids=str)
def test_relevance_of_all_weights_of_a_network(rule: Rule) -> None:
    model, parts, x = network()
    composite = epsilon().with_rows(Assign(rule, kind=("convolution", "linear")))
    expected = by_hand(parts, x, torch.eye(3, dtype=torch.float64), rule)
    method = Propagating(model, composite, start="one", max_loss=None)
    found = method.weights(x, torch.arange(3))
    assert set(found) == {"0", "3", "7", "10"}
    for layer, values in zip(("0", "3", "7", "10"), expected, strict=True):
        torch.testing.assert_close(found[layer], values, rtol=1e-7, atol=1e-9)
        assert values.abs().sum() > 0.01, "a test on zeros would show nothing"


def test_the_weights_of_a_unit_share_what_it_receives() -> None:
    model, _, x = network()
    maps = Maps()
    done = propagate(
        model,
        x,
        epsilon(1e-13, bias=False),
        lambda y: torch.eye(3).to(y),
        [maps],
        weights=True,
        max_loss=None,
    )
    for operation in done.operations:
        if operation.kind not in ("convolution", "linear"):
            continue
        received = maps.relevances[operation.layer].transpose(0, 1).flatten(1).sum(1)
        assert operation.ledger.weights is not None
        handed_down = operation.ledger.weights.flatten(1).sum(1)
        assert received.abs().max() > 0.01
        torch.testing.assert_close(handed_down, received, rtol=1e-6, atol=1e-9)
