"""Networks whose code takes numbers from what it computes, and may go another way with others."""

import warnings

import pytest
import torch
from torch import nn

from niwaki import car
from niwaki.errors import ChoiceWarning, FallbackWarning
from niwaki.pruning import couple, prune


class Choosing(nn.Module):
    """Ends in one of two convolutions, or scales, by a number it reads in some way."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.stem, self.left = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.right, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.stem(x).relu()
        if self.way == "none":
            h = torch.where(h.mean((2, 3), keepdim=True) > 0, self.left(h), self.right(h))
            return self.head(h.relu().mean((2, 3)))
        if self.way == "filled":
            return self.head(self.left(h.masked_fill(h > 1, 1.0)).relu().mean((2, 3)))
        if self.way == "width":
            h = self.left(h) if x.shape[1] == 3 else self.right(h)
            return self.head(h.relu().mean((2, 3)))
        level = x.mean((1, 2, 3))
        if self.way == "truth":
            left = bool((level > 0).all())
        elif self.way == "item":
            left = level[0].item() > 0
        elif self.way == "index":
            left = [False, True][(level[0] > 0).long()]
        elif self.way == "equal":
            left = torch.equal(level, level.abs())
        elif self.way == "close":
            left = torch.allclose(level, level.abs())
        elif self.way == "mask":
            left = len(level[level > 0]) > 0
        elif self.way == "places":
            left = len((level > 0).nonzero()) > 0
        elif self.way == "list":
            left = all(value > 0 for value in level.tolist())
        elif self.way == "numpy":
            left = bool((level.detach().numpy() > 0).all())
        else:  # the largest of the channels, one of which may go
            return self.head(self.left(h * max(h.mean((0, 2, 3)).tolist())).relu().mean((2, 3)))
        h = self.left(h) if left else self.right(h)
        return self.head(h.relu().mean((2, 3)))


@pytest.fixture
def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(12, 3, 6, 6, generator=generator), torch.arange(12) % 3


def choosing(way: str) -> nn.Module:
    torch.manual_seed(0)
    return Choosing(way).eval()


WAYS = ["truth", "item", "index", "equal", "close", "mask", "places", "list", "numpy"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("repair", [None, "rebuild", "rebuild_jointly"])
def test_a_choice_is_named_when_the_network_is_pruned(way, repair, data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)
        with pytest.warns(ChoiceWarning, match=r"code takes numbers .*forward pass.*torch\.where"):
            prune(choosing(way), data, "weight", keep=0.7, repair=repair)


@pytest.mark.parametrize("way", ["none", "width", "filled"])
def test_what_is_no_choice_is_not_named(way, data):
    prune(choosing(way), data, "weight", keep=0.7, repair=None)


def test_channels_that_are_read_as_numbers_stay(data):
    found = couple(choosing("channels"), data[0], ["stem", "left"])
    assert [group.root for group in found] == ["left"]
    assert "reads their values" in found.kept["stem"]


@pytest.mark.filterwarnings("ignore::niwaki.errors.BatchDependenceWarning")  # which it is
def test_the_index_takes_the_way_that_a_network_without_the_filter_takes(data):
    """Silencing a filter may change the choice: the exact criterion has to follow."""

    class Turning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.stem(x).relu().mean((2, 3))
            return self.head(h) if h.mean() > self.level else -self.head(h)

    torch.manual_seed(0)
    model = Turning().eval()
    x, _ = data
    with torch.no_grad():
        full = model.stem(x).relu().mean()
        model.level = float(full) * 0.8
        labels = model(x).argmax(1)
    found = car.index(model, (x, labels), layers=["stem"])["stem"]
    expected = []
    for k in range(4):
        with torch.no_grad():
            kept = model.stem.weight[k].clone(), model.stem.bias[k].clone()
            model.stem.weight[k], model.stem.bias[k] = 0, 0
            expected.append(int((model(x).argmax(1) != labels).sum()))
            model.stem.weight[k], model.stem.bias[k] = kept
    assert max(expected) > 0
    assert found.broken.sum(1).tolist() == expected
