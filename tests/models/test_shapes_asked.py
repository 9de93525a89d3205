"""Networks whose code asks for shapes, and branches on them."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import niwaki
from niwaki.errors import FallbackWarning
from niwaki.models.network import Network, UntraceableError
from niwaki.pruning import Plan, Removal, rebuild, replay


def asserted(x: Tensor) -> Tensor:
    assert x.shape[1] == 6, "six channels"
    assert x.dim() == x.ndim == 4
    return x


def branched(x: Tensor) -> Tensor:
    if x.shape != F.avg_pool2d(x, 3, 1, 1).shape or x.size()[2] > 9:
        raise AssertionError
    return F.adaptive_avg_pool2d(x, 2) if x.shape[-1] > 1 and not x.is_cuda else x


def unpacked(x: Tensor) -> Tensor:
    samples, channels, height, width = x.shape
    groups = x.view(samples, 2, channels // 2, height * width).transpose(1, 2)
    return groups.transpose(1, 2).reshape(samples, channels, height, width)


def looped(x: Tensor) -> Tensor:
    for _ in range(x.dim() - 2):
        x = x * torch.ones(int(x.size(1)), 1, 1, dtype=x.dtype, device=x.device)
    return x


def in_place(x: Tensor) -> Tensor:
    *_, height, width = x.shape
    x = x + 1
    x -= height / width
    return x


WAYS = {"assert": asserted, "branch": branched, "unpack": unpacked, "loop": looped, "-=": in_place}
INPUTS = torch.randn(24, 2, 6, 6, generator=torch.Generator().manual_seed(1))


class Asking(nn.Module):
    """Two convolutions and a linear layer, with something in between that changes nothing."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 6, 3)
        self.reader, self.way = nn.Linear(24, 4), WAYS.get(way, nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        """Compute."""
        given: Tensor = self.reader(self.way(self.second(self.first(x).relu()).relu()).flatten(1))
        return given


def network(way: str) -> nn.Module:
    """Build it with the same weights whichever way."""
    torch.manual_seed(0)
    return Asking(way).eval()


@pytest.mark.parametrize("way", WAYS)
def test_operations_are_listed_for_inputs_of_one_size(way: str) -> None:
    model = network(way)
    if way in ("assert", "branch", "loop"):
        with pytest.raises(UntraceableError):
            Network(model, INPUTS[:2])
    listed = Network(model, INPUTS[:2], sized=True)
    with torch.no_grad():
        for some in (INPUTS, INPUTS[:1]):
            given = listed.run(some, [listed.output])[listed.output]
            torch.testing.assert_close(given, model(some))


@pytest.mark.parametrize("way", WAYS)
def test_they_are_rebuilt_like_those_that_do_not_ask(way: str) -> None:
    plan, labels = Plan(((Removal("first", (0, 3)),),)), torch.zeros(len(INPUTS))
    done = []
    for each in (way, "none"):
        model, smaller = network(each), network(each)
        replay(smaller, INPUTS[:2], plan)
        rebuild(smaller, model, (INPUTS, labels), plan, jointly=True)
        with torch.no_grad():
            done.append(smaller(INPUTS))
    torch.testing.assert_close(*done)


class OnValues(Asking):
    """Branches on what it computes."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute."""
        return super().forward(x if float(x.detach().mean()) < 100 else -x)


class OnSamples(Asking):
    """Branches on how many samples there are."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute."""
        return super().forward(x if x.shape[0] < 100 else -x)


@pytest.mark.filterwarnings("ignore::niwaki.errors.ChoiceWarning")
@pytest.mark.parametrize("kind", [OnValues, OnSamples])
def test_what_depends_on_the_samples_is_not_taken_for_granted(kind: type[Asking]) -> None:
    model = kind("none").eval()
    with pytest.raises(UntraceableError):
        Network(model, INPUTS[:2], sized=True)
    labels = torch.arange(len(INPUTS)) % 4
    with pytest.warns(FallbackWarning, match="cannot be rebuilt"):
        niwaki.prune(model, (INPUTS, labels), keep=0.7, repair="rebuild")


def test_the_network_has_its_own_classes_and_hooks_again() -> None:
    model = network("unpack")
    kinds, state = [type(m) for m in model.modules()], list(model.state_dict().values())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Network(model, INPUTS[:2], sized=True)
    assert [type(m) for m in model.modules()] == kinds
    assert all(
        a is b or torch.equal(a, b) for a, b in zip(model.state_dict().values(), state, strict=True)
    )
