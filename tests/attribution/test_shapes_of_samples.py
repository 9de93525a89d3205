"""Networks whose samples are not rows of everything: flat outputs, loops, folds; and places."""

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from niwaki import attribution, explain
from niwaki.errors import CompletenessWarning, DataError, PropagationError

OPTIONS: dict[str, dict[str, object]] = {
    "lrp": {"composite": None},
    "smoothgrad": {"samples": 3},
    "expected_gradients": {"samples": 3},
    "EpsilonGammaBox": {"low": -4.0, "high": 4.0},
    "deep_taylor.bounded": {"low": -4.0, "high": 4.0},
}
METHODS = [name for name in attribution.names() if not name.startswith(("pattern", "lrp.seq"))]


class Written(nn.Module):
    """A convolution, what is given, and a linear layer."""

    def __init__(self, middle: Callable[["Written", Tensor], Tensor], outputs: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, outputs)
        self.middle = middle
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.middle(self, x)

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))))


def images(count: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 8, 8, generator=generator, dtype=torch.float64)


def options_of(name: str) -> dict[str, object]:
    found = {key: value for key, value in OPTIONS.get(name, {}).items() if value is not None}
    if name.startswith(("lrp", "deep_taylor", "E")):
        found["max_loss"] = None
    return found


@pytest.mark.filterwarnings("ignore::niwaki.errors.CompletenessWarning")
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("target", [None, 0])
def test_an_output_without_a_column_is_explained_as_with_one(name: str, target: int | None) -> None:
    column = Written(lambda net, x: net.head(net.features(x).mean((2, 3))), 1)
    flat = Written(lambda net, x: net.head(net.features(x).mean((2, 3)))[:, 0], 1)
    told = options_of(name)
    if name == "lrp":
        told["max_loss"] = 1e-3  # with the loss measured, too
    found, expected = (explain(net, images(), target, name, **told) for net in (flat, column))
    torch.testing.assert_close(found, expected)


def looped(net: Written, x: Tensor) -> Tensor:
    return torch.stack([net.head(net.features(one).mean((1, 2))) for one in x])


def folded(net: Written, x: Tensor) -> Tensor:
    views = torch.cat([x[..., :-1], x.flip(3)[..., :-1]])
    return net.head(net.features(views).mean((2, 3))).unflatten(0, (2, -1)).mean(0)


def interleaved(net: Written, x: Tensor) -> Tensor:
    views = torch.stack([x, x.flip(3)], 1).flatten(0, 1)
    return net.head(net.features(views).mean((2, 3))).unflatten(0, (-1, 2)).mean(1)


def channels_in_front(net: Written, x: Tensor) -> Tensor:
    return net.head(F.relu(net.first(x).transpose(0, 1)).transpose(0, 1).mean((2, 3)))


def pooled_alone(net: Written, x: Tensor) -> Tensor:
    found = net.first(x).transpose(0, 1)
    return net.head(F.max_pool2d(found, 2).transpose(0, 1).mean((2, 3)))


@pytest.mark.filterwarnings("ignore::niwaki.errors.BypassedWarning")
@pytest.mark.parametrize("network", [looped, folded, interleaved])
@pytest.mark.parametrize("name", ["grad_cam", "guided_grad_cam", "deep_lift"])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_methods_that_need_to_know_the_samples_refuse_what_hides_them(
    name: str, network: Callable[[Written, Tensor], Tensor], count: int
) -> None:
    model, x = Written(network), images(count)
    if network is interleaved and name == "deep_lift":  # inputs come first, then references
        change = (model(x) - model(torch.zeros_like(x)))[:, 1].detach()
        torch.testing.assert_close(explain(model, x, 1, name).flatten(1).sum(1), change)
        return
    if network is looped and name == "deep_lift" and count == 4:
        # Eight samples with their references, and eight channels: this shows in the sum alone.
        with pytest.warns(CompletenessWarning, match="DeepLIFT"):
            explain(model, x, 1, name)
        return
    with pytest.raises(PropagationError, match="loops over its samples or folds"):
        explain(model, x, 1, name)


@pytest.mark.parametrize("network", [channels_in_front, pooled_alone])
@pytest.mark.parametrize("count", [1, 3, 4])
def test_samples_that_are_not_in_front_are_never_mistaken_without_a_word(
    network: Callable[[Written, Tensor], Tensor], count: int
) -> None:
    model = Written(network)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CompletenessWarning)
        with pytest.raises((PropagationError, CompletenessWarning)):
            explain(model, images(count), 1, "deep_lift")


def with_places(function: Callable[..., object], *arguments: object) -> Callable[..., Tensor]:
    """A pooling that returns places as well, which nobody looks at."""

    def middle(net: Written, x: Tensor) -> Tensor:
        pooled, _ = function(F.relu(net.first(x)), *arguments, return_indices=True)  # type: ignore[misc]
        return net.head(F.relu(net.second(pooled)).mean((2, 3)))

    return middle


POOLS = {
    "max_pool2d": (F.max_pool2d, 2),
    "max_pool2d_with_indices": (lambda x, k, **_: F.max_pool2d_with_indices(x, k), 2),
    "overlapping": (F.max_pool2d, 3, 1, 1),
    "adaptive_max_pool2d": (F.adaptive_max_pool2d, 3),
}


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("name", ["deep_lift", "lrp.epsilon", "gradient", "guided_backprop"])
def test_pools_that_tell_the_places_are_those_that_do_not(name: str, pool: str) -> None:
    function, *arguments = POOLS[pool]
    told = Written(with_places(function, *arguments))

    def plainly(net: Written, x: Tensor) -> Tensor:
        found = function(F.relu(net.first(x)), *arguments)
        found = found[0] if isinstance(found, tuple) else found
        return net.head(F.relu(net.second(found)).mean((2, 3)))

    x = images()
    options = options_of(name)
    found = explain(told, x, 1, name, **options)
    torch.testing.assert_close(found, explain(Written(plainly), x, 1, name, **options))
    if name == "deep_lift":
        change = (told(x) - told(torch.zeros_like(x)))[:, 1]
        torch.testing.assert_close(found.flatten(1).sum(1), change.detach())


INCOMPLETE = {
    "a norm": lambda x: F.layer_norm(x, x.shape[1:]),
    "norms of groups": lambda x: F.group_norm(x, 2),
    "a gate": lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
    "halves": lambda x: torch.cat([F.glu(x, 1), F.glu(-x, 1)], 1),
    "a choice": lambda x: torch.where(x > 0.3, x, 0.1 * x),
    "unit length": lambda x: F.normalize(x, dim=1),
}
COMPLETE = {
    "a leaky activation": lambda x: F.leaky_relu(x - 0.2, 0.1),
    "a smooth activation": F.silu,
    "a pool": lambda x: F.max_pool2d(x, 2),
    "an average": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "moves": lambda x: torch.roll(x, (1, 2), (1, 3)).flip(1),
    "sums": lambda x: x + x.flip(2),
}


@pytest.mark.parametrize("name", [*INCOMPLETE, *COMPLETE])
def test_deep_lift_says_where_its_sum_is_not_the_change(name: str) -> None:
    middle = {**INCOMPLETE, **COMPLETE}[name]
    model = Written(lambda net, x: net.head(F.relu(net.second(middle(net.first(x)))).mean((2, 3))))
    x = images()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = explain(model, x, 1, "deep_lift").flatten(1).sum(1)
    with torch.no_grad():
        change = (model(x) - model(torch.zeros_like(x)))[:, 1]
    right = bool(((found - change).abs() <= 1e-3 * change.abs()).all())
    assert right == (name in COMPLETE)
    assert [one.category for one in told] == ([] if right else [CompletenessWarning])


def test_a_baseline_that_does_not_fit_is_still_refused() -> None:
    model = Written(lambda net, x: net.head(net.features(x).mean((2, 3))))
    with pytest.raises(DataError, match="does not broadcast"):
        explain(model, images(), 1, "deep_lift", baseline=torch.zeros(2, 3))
