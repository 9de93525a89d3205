"""Networks that shape values anew by `view`, which relies on how these lie in memory."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

import niwaki
from niwaki.models.network import Network
from niwaki.pruning import Schedule

WAYS = {
    "flatten": lambda x: x.flatten(1),
    "view": lambda x: x.view(x.size(0), -1),
    "view_as": lambda x: x.view_as(x.flatten(1)),
    "view as a type": lambda x: x.view(torch.float32).view(x.shape[0], -1),
}
INPUTS = torch.randn(24, 2, 6, 6, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(24) % 4


class Shaping(nn.Module):
    """Two convolutions, and a linear layer over all positions."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 6, 3)
        self.reader, self.way = nn.Linear(24, 4), WAYS[way]

    def forward(self, x: Tensor) -> Tensor:
        """Compute."""
        given: Tensor = self.reader(self.way(self.second(self.first(x).relu()).relu()))
        return given


def network(way: str) -> Shaping:
    """Build it with the same weights whichever way."""
    torch.manual_seed(0)
    return Shaping(way).eval()


@pytest.mark.parametrize("way", WAYS)
def test_operations_are_listed_and_give_the_same(way: str) -> None:
    model = network(way)
    listed = Network(model, INPUTS[:2])
    with torch.no_grad():
        torch.testing.assert_close(
            listed.run(INPUTS, [listed.output])[listed.output], model(INPUTS)
        )


@pytest.mark.parametrize("way", list(WAYS)[1:3])
def test_they_are_rebuilt_like_those_that_flatten(way: str) -> None:
    done = []
    for each in (way, "flatten"):
        with warnings.catch_warnings():
            warnings.simplefilter("error", niwaki.errors.FallbackWarning)
            pruned = niwaki.prune(
                network(each), (INPUTS, LABELS), keep=0.6, schedule=Schedule(steps=1)
            )
        with torch.no_grad():
            done.append(pruned.model(INPUTS))
    assert torch.equal(*done)
