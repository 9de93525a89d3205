"""A layer's output that its batch norm and a shortcut both read, as in pre-activation ResNets."""

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from linear_maps import dense, randomised
from networks import without_biases
from torch import Tensor, nn

from niwaki.attribution import create
from niwaki.criteria import score
from niwaki.errors import PropagationError
from niwaki.propagation import (
    AlphaBeta,
    Assign,
    Composite,
    Epsilon,
    Gamma,
    Gradient,
    Maps,
    Pass,
    Rule,
    ZPlus,
    base_rows,
    epsilon_plus,
    gradient,
    propagate,
    resolve,
)

E = 1e-9


class PreActivation(nn.Module):
    """A first convolution, one block after He et al. (2016b), and a head."""

    def __init__(self, order: str = "norm first", stride: int = 1) -> None:
        super().__init__()
        self.order = order
        self.conv0 = nn.Conv2d(2, 3, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(3)
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1, stride=stride)
        self.norm2 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 3, 3, padding=1)
        self.head = nn.Linear(3, 2)

    def block(self, x: Tensor) -> Tensor:
        y = self.conv1(self.norm1(x).relu())
        return self.conv2(self.norm2(y).relu())

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv0(x)
        if self.order == "norm first":
            x = self.block(x) + x
        elif self.order == "shortcut first":  # known to be no norm of one reader alone
            shortcut = 1 * x
            x = self.block(x) + shortcut
        elif self.order == "in place":
            x += self.block(x)
        elif self.order == "two norms":
            x = self.block(x) + self.norm1(x)
        return self.head(x.relu().mean((2, 3)))


def network(order: str = "norm first") -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = randomised(PreActivation(order))
    return model.eval(), torch.randn(2, 2, 4, 5, dtype=torch.float64)


def under(rule: Rule, sums: Rule | None = None) -> Composite:
    rows = (Assign(rule, kind=("convolution", "linear", "batch_norm")),)
    return Composite("test", (*rows, *base_rows(sums or Epsilon(E), Epsilon(E))))


def relevance(model: nn.Module, x: Tensor, composite: Composite, **options: object) -> Tensor:
    found = propagate(model, x, composite, lambda y: y, max_loss=None, **options).relevance
    assert found is not None
    return found


def contribute(parts: Tensor, offset: Tensor, R: Tensor) -> Tensor:
    z = parts.sum(2) + offset
    return torch.einsum("noi,no->ni", parts, R / torch.where(z < 0, z - E, z + E))


FORMULAS: dict[str, tuple[Rule, Callable[[Tensor, Tensor], Tensor], Callable]] = {
    "epsilon": (Epsilon(E), lambda parts, b: parts, lambda b: b),
    "z-plus": (ZPlus(E), lambda parts, b: parts.clamp(min=0), lambda b: b.clamp(min=0)),
}


@pytest.mark.parametrize("rule", FORMULAS)
def test_equals_dense_matrices(rule: str) -> None:
    model, x = network()
    given, kept, offset = FORMULAS[rule]

    def back(module: nn.Module, inputs: Tensor, R: Tensor) -> Tensor:
        W, b = dense(module, tuple(inputs.shape[1:]))
        parts = kept(inputs.flatten(1)[:, None] * W, b)
        return contribute(parts, offset(b), R.flatten(1)).view_as(inputs)

    with torch.no_grad():
        a = model.conv0(x)
        n = model.norm1(a)
        y = nn.Sequential(model.conv1, model.norm2)(n.relu())
        c = model.conv2(y.relu())
        total = c + a
        mean = total.relu().mean((2, 3))
        output = model.head(mean)
    R = back(model.head, mean, output)
    share = (total.relu() / (total.relu().sum((2, 3), keepdim=True) + 20 * E)) * R[..., None, None]
    each = share / torch.where(total < 0, total - E, total + E)
    of_block, of_shortcut = c * each, a * each
    R = back(model.conv2, y.relu(), of_block)
    R = back(nn.Sequential(model.conv1, model.norm2), n.relu(), R)
    R = back(model.norm1, a, R) + of_shortcut
    expected = back(model.conv0, x, R)
    found = relevance(model, x, under(given))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8 * float(expected.abs().max()))


RULES = [Epsilon(E), ZPlus(E), AlphaBeta(2, 1, E), Gamma(0.25, E), Gradient(), Pass()]


@pytest.mark.parametrize("order", ["in place", "norm first"])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_who_reads_first_makes_no_difference(rule: Rule, order: str) -> None:
    if isinstance(rule, Gradient) and order == "in place":
        pytest.skip("the network itself overwrites what its derivative needs")
    composite = under(rule)
    if isinstance(rule, Pass):  # only norms could pass it on
        composite = under(Epsilon(E)).with_rows(Assign(rule, kind="batch_norm"))
    (one, x), (other, _) = network(order), network("shortcut first")
    maps = [Maps(), Maps()]
    found, expected = (
        relevance(model, x, composite, observers=[seen])
        for model, seen in zip((one, other), maps, strict=True)
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert list(maps[0].relevances) == list(maps[1].relevances)
    for layer, value in maps[0].relevances.items():
        torch.testing.assert_close(value, maps[1].relevances[layer], rtol=1e-12, atol=1e-12)


def test_two_norms_of_one_output() -> None:
    model, x = network("two norms")
    assert bool(relevance(model, x, under(ZPlus(E))).isfinite().all())
    table = resolve(model, x, epsilon_plus())
    assert table.count("batch norm absorbed") == 1  # that of conv1
    assert table.count("batch_norm  ZPlus") == 2


@pytest.mark.parametrize("rule", [Epsilon(E), ZPlus(E)], ids=str)
def test_conserves_without_biases(rule: Rule) -> None:
    model, x = network()
    result = propagate(
        without_biases(model), x, under(rule), lambda y: y, max_loss=None, weights=True
    )
    missing = result.output.sum(1) - result.relevance.flatten(1).sum(1)
    lost = sum(torch.as_tensor(op.ledger.lost) for op in result.operations)
    torch.testing.assert_close(missing, lost, rtol=1e-6, atol=1e-6)


def test_nothing_stays_in_memory() -> None:
    model, x = network()
    activations: list[weakref.ref[torch.Tensor]] = []
    for layer in model.modules():
        if not list(layer.children()):
            layer.register_forward_hook(lambda _m, _i, out: activations.append(weakref.ref(out)))
    result = propagate(model, x, epsilon_plus(), lambda y: y)
    gc.collect()
    assert len(activations) > 3
    assert all(one() is None for one in activations)
    assert result.operations


def test_gradients_and_what_layers_see() -> None:
    model, x = network()
    leaf = x.clone().requires_grad_()
    first = model.conv0(leaf)
    first.retain_grad()
    model.conv0.forward = lambda _: first
    model(leaf).sum().backward()
    del model.conv0.forward
    seen = Maps()
    found = propagate(model, x, gradient(), torch.ones_like, [seen]).relevance
    torch.testing.assert_close(found, leaf.grad)
    # Both readers' part, not only the norm's.
    torch.testing.assert_close(seen.relevances["conv0"], first.grad)


def test_conditions_let_through_both_parts() -> None:
    model, x = network()
    method = create("EpsilonPlus", model, max_loss=None)
    parts = [method.attribute(x, 0, conditions={"conv0": [unit]}) for unit in range(3)]
    torch.testing.assert_close(sum(parts), method.attribute(x, 0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("criterion", ["lrp", "taylor", "gradient", "activation"])
def test_criteria_see_the_same_whoever_reads_first(criterion: str) -> None:
    (one, x), (other, _) = network(), network("shortcut first")
    data = (x, torch.tensor([0, 1]))
    found, expected = (score(model, data, criterion) for model in (one, other))
    for layer, value in found.items():
        torch.testing.assert_close(value, expected[layer], rtol=1e-9, atol=1e-12)


def test_no_rule_for_a_norm_that_stands_alone_after_all() -> None:
    model, x = network()
    rows = tuple(row for row in under(ZPlus(E)).rows if "batch_norm" not in row.kinds)
    rows = (Assign(ZPlus(E), kind=("convolution", "linear")), *rows)
    with pytest.raises(PropagationError, match=r"no rule for the operation 'batch_norm'"):
        relevance(model, x, Composite("without norms", rows))
