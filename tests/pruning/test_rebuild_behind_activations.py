"""What a flat activation cuts off need only be cut off again: against a convex solver."""

import copy

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from niwaki.pruning import Plan, Removal, rebuild, replay

PULL = 10.0


class Read(nn.Module):
    """A layer, a batch norm or none, a sum or none, and an activation."""

    def __init__(self, activation, *, norm=False, shortcut=False):
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3, padding=1)
        self.reader = nn.Conv2d(6, 4, 3, padding=1, bias=not norm)
        self.norm = nn.BatchNorm2d(4) if norm else nn.Identity()
        self.shortcut = nn.Conv2d(6, 4, 1) if shortcut else None
        self.activation = activation

    def forward(self, x):
        x = torch.sigmoid(self.first(x))
        shortcut = 0 if self.shortcut is None else self.shortcut(x)
        x = self.norm(self.reader(x))
        if self.shortcut is not None:
            x = x + shortcut
        return self.activation(x)


class Clamped(nn.Module):
    """A ReLU that is called as a method."""

    def forward(self, x):
        return x.relu()


#: Each with what its own derivative says of where it is flat.
ACTIVATIONS = {
    "ReLU": nn.ReLU,
    "ReLU6": nn.ReLU6,
    "Hardtanh": lambda: nn.Hardtanh(-0.3, 0.4),
    "Hardswish": nn.Hardswish,
    "Hardsigmoid": nn.Hardsigmoid,
    "method": Clamped,
}
KINDS = {
    "alone": {},
    "behind a norm": {"norm": True},
    "at a sum": {"shortcut": True},
    "behind a norm at a sum": {"norm": True, "shortcut": True},
}


def built(activation="ReLU", spread=1.0, **options):
    """A network a part of whose values the activation cuts off, and what is left of it."""
    torch.manual_seed(0)
    model = Read(ACTIVATIONS[activation](), **options).double().eval()
    x = torch.randn(14, 2, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        given = seen(model, x)[1].movedim(1, 0).flatten(1)
        if options.get("norm"):
            model.norm.weight.copy_(torch.tensor([1.5, -0.8, 0.7, -1.2]))  # of both signs
            model.norm.bias.normal_(std=0.3)
            model.norm.running_mean.copy_(given.mean(1))
            model.norm.running_var.copy_(given.var(1))
        else:
            model.reader.weight.mul_((spread / given.std(1)).view(-1, 1, 1, 1))
            model.reader.bias.zero_()
            model.reader.bias.sub_(seen(model, x)[1].mean((0, 2, 3)))
    plan = Plan().with_step([Removal("first", (1, 4))])
    smaller = copy.deepcopy(model)
    replay(smaller, x[:2], plan)
    return model, smaller, plan, x


def seen(model, x):
    """What the reader reads and gives, and what the activation reads."""
    found = {}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda _, args, out, name=name: found.__setitem__(name, (args[0], out))
        )
        for name in ("reader", "activation")
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return (*found["reader"], found["activation"][0])


def objective(smaller, model, x):
    """The error and its gradient for one output, with what surrounds the layer done by torch."""
    inputs, given, _ = seen(smaller, x)
    _, _, wanted = seen(model, x)
    patches = nn.functional.unfold(inputs, 3, padding=1).transpose(1, 2).flatten(0, 1)
    own = wanted.movedim(1, 0).flatten(1)  # (outputs, rows), before the activation
    rest = (seen(smaller, x)[2] - through(smaller, given)).movedim(1, 0).flatten(1)
    scale = slope(smaller)
    flat = []
    for row in own:  # by the derivative of the activation itself
        row = row.clone().requires_grad_(True)
        (g,) = torch.autograd.grad(model.activation(row).sum(), row)
        flat.append(g == 0)
    start = smaller.reader.weight.detach().flatten(1)
    columns = start.shape[1]

    def of(unit):
        centre = patches - patches.mean(0)
        strength = PULL / len(x) * float(centre.square().sum()) / columns
        edges = edge(model.activation)
        low, high = own[unit] <= edges[0], own[unit] >= edges[1]
        assert bool((flat[unit] == low | high).all())

        def error(weights, offset):
            value = scale[unit] * (patches @ weights + offset) + shift(smaller)[unit] + rest[unit]
            missed = value - own[unit]
            missed = torch.where(low, (value - edges[0]).clamp(min=0), missed)
            missed = torch.where(high, (value - edges[1]).clamp(max=0), missed)
            return (missed / scale[unit]).square().sum()

        def both(flat_weights):
            w = torch.tensor(flat_weights, requires_grad=True)
            loss = error(w[:-1], w[-1]) + strength * (w[:-1] - start[unit]).square().sum()
            loss.backward()
            return float(loss.detach()), w.grad.numpy()

        assert 0.1 < float(flat[unit].double().mean()) < 0.95
        return error, both, start[unit]

    return of


def edge(activation):
    return {
        nn.ReLU: (0, np.inf), nn.ReLU6: (0, 6), nn.Hardtanh: (-0.3, 0.4),
        nn.Hardswish: (-3, np.inf), nn.Hardsigmoid: (-3, 3), Clamped: (0, np.inf),
    }[type(activation)]  # fmt: skip


def slope(model):
    if isinstance(model.norm, nn.Identity):
        return torch.ones(4, dtype=torch.float64)
    return (model.norm.weight / (model.norm.running_var + model.norm.eps).sqrt()).detach()


def shift(model):
    if isinstance(model.norm, nn.Identity):
        return torch.zeros(4, dtype=torch.float64)
    return (model.norm.bias - model.norm.running_mean * slope(model)).detach()


def through(model, given):
    return given * slope(model).view(-1, 1, 1) + shift(model).view(-1, 1, 1)


CASES = [*(("ReLU", kind) for kind in KINDS), *((name, "alone") for name in ACTIVATIONS)]


@pytest.mark.parametrize(("activation", "kind"), CASES, ids=lambda v: v)
def test_the_error_behind_the_activation_comes_near_the_least(activation, kind):
    spread = {"ReLU6": 5.0, "Hardswish": 4.0, "Hardsigmoid": 4.0, "Hardtanh": 0.5}.get(
        activation, 1
    )
    model, smaller, plan, x = built(activation, spread, **KINDS[kind])
    bare = copy.deepcopy(smaller)
    said = rebuild(smaller, model, (x, torch.zeros(len(x))), plan, pull=PULL, mirror=False)
    if KINDS[kind].get("shortcut"):  # which was fitted first
        bare.shortcut.load_state_dict(smaller.shortcut.state_dict())
    of = objective(bare, model, x)
    moved = torch.zeros(4, dtype=torch.float64)
    if not isinstance(model.norm, nn.Identity):
        moved = bare.norm.running_mean - smaller.norm.running_mean
    errors = [0.0, 0.0]
    for unit in range(4):
        error, both, start = of(unit)
        least = minimize(both, np.append(start.numpy(), 0.0), jac=True, options={"maxiter": 2000})
        offset = moved[unit] if smaller.reader.bias is None else smaller.reader.bias[unit].detach()
        ours = np.append(smaller.reader.weight[unit].detach().flatten().numpy(), float(offset))
        first = 0.0 if bare.reader.bias is None else float(bare.reader.bias[unit].detach())
        plain = both(np.append(start.numpy(), first))[0]
        assert least.fun <= both(ours)[0] * (1 + 1e-6)
        assert both(ours)[0] - least.fun < 0.05 * (plain - least.fun)
        with torch.no_grad():
            errors[0] += float(error(start, first))
            errors[1] += float(error(torch.tensor(ours[:-1]), float(offset)))
    before, after = said.errors["reader"]
    assert before > after
    assert after / before == pytest.approx(errors[1] / errors[0], rel=1e-6)


def test_an_activation_that_is_nowhere_flat_changes_nothing():
    fitted = []
    for activation in (nn.Identity(), nn.LeakyReLU(0.1), nn.GELU(), nn.Tanh()):
        model, smaller, plan, x = built()
        model.activation = smaller.activation = activation
        rebuild(smaller, model, (x, torch.zeros(len(x))), plan)
        fitted.append(smaller.reader.weight.detach())
    for other in fitted[1:]:
        assert torch.equal(other, fitted[0])


def test_what_somebody_else_reads_before_the_activation_is_met():
    """Another reader of the sum sees what the activation cuts off."""

    class Watched(Read):
        def forward(self, x):
            x = torch.sigmoid(self.first(x))
            x = self.reader(x)
            return self.activation(x) + 0.1 * x

    fitted = []
    for kind in (Watched, Read):
        torch.manual_seed(0)
        model = kind(nn.ReLU()).double().eval()
        x = torch.randn(14, 2, 6, 6, dtype=torch.float64)
        plan = Plan().with_step([Removal("first", (1, 4))])
        smaller = copy.deepcopy(model)
        replay(smaller, x[:2], plan)
        plain = copy.deepcopy(smaller)
        plain.activation = nn.Identity()
        without = copy.deepcopy(model)
        without.activation = nn.Identity()
        rebuild(smaller, model, (x, torch.zeros(14)), plan)
        rebuild(plain, without, (x, torch.zeros(14)), plan)
        fitted.append(torch.equal(smaller.reader.weight, plain.reader.weight))
    assert fitted == [True, False]


@pytest.mark.parametrize(("precision", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_networks_of_less_precision_come_to_the_same(precision, near):
    model, smaller, plan, x = built(norm=True)
    given = [copy.deepcopy(net).to(precision) for net in (smaller, model)]
    exact = rebuild(smaller, model, (x, torch.zeros(len(x))), plan).errors["reader"]
    rough = rebuild(*given, (x.to(precision), torch.zeros(len(x))), plan).errors["reader"]
    assert rough == pytest.approx(exact, rel=near)
