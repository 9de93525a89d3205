"""After a pass, also one that fails, the model, the input and torch are as they were."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from networks import Functional, Modular
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from niwaki.errors import DataError
from niwaki.propagation import (
    Composite,
    Maps,
    epsilon,
    epsilon_plus,
    epsilon_plus_flat,
    gradient,
    propagate,
)

COMPOSITES = [epsilon(), epsilon_plus(), epsilon_plus_flat(), gradient()]


class InPlace(Functional):
    """Overwrites its input."""

    def forward(self, x: Tensor) -> Tensor:
        x.sub_(0.5).mul_(2)
        x[:, 0] = 0
        return super().forward(x)


class Raises(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("in the middle")


def snapshot(model: nn.Module) -> list[object]:
    state = [(k, v.clone(), v._version) for k, v in model.state_dict(keep_vars=True).items()]
    flags = [(n, p.requires_grad, p.grad, id(p)) for n, p in model.named_parameters()]
    modules = [
        (n, m.training, {k: copy.copy(v) for k, v in vars(m).items() if "hooks" in k}, set(vars(m)))
        for n, m in model.named_modules()
    ]
    hooks = [p._backward_hooks for p in model.parameters()]
    return [state, flags, modules, hooks]


def equal(a: object, b: object) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


@contextmanager
def untouched(model: nn.Module, x: Tensor) -> Iterator[None]:
    for i, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, 0.5) if i % 2 else None
        parameter.requires_grad_(i % 3 != 0)
    model.register_forward_hook(lambda *_: None)
    before, kept, version = snapshot(model), x.clone(), x._version
    modes = (torch.is_grad_enabled(), len(_get_current_function_mode_stack()))
    random = torch.get_rng_state()
    yield
    assert equal(before, snapshot(model))
    assert torch.equal(x, kept)
    assert x._version == version
    assert x.grad is None
    assert not x._backward_hooks
    assert modes == (torch.is_grad_enabled(), len(_get_current_function_mode_stack()))
    assert torch.equal(random, torch.get_rng_state())


@pytest.fixture(params=[Modular, Functional, InPlace])
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return request.param().eval()


@pytest.mark.parametrize("composite", COMPOSITES, ids=lambda c: c.name)
@pytest.mark.parametrize("leaf", [False, True], ids=["plain", "requires-grad"])
def test_after_success(model: nn.Module, composite: Composite, leaf: bool) -> None:
    x = torch.randn(2, 3, 8, 8, requires_grad=leaf)
    with untouched(model, x):
        propagate(model, x, composite, torch.ones_like, [Maps()], max_loss=None)
    assert x.requires_grad == leaf


def test_after_an_error_in_the_middle(model: nn.Module) -> None:
    model.head = Raises().eval()
    if isinstance(model, Functional):
        model.head.weight = "no tensor"
    x = torch.randn(2, 3, 8, 8)
    with (
        untouched(model, x),
        torch.no_grad(),
        pytest.raises((RuntimeError, DataError), match=r"middle|bias"),
    ):
        propagate(model, x, epsilon_plus(), torch.ones_like, [Maps()])


def test_after_an_error_in_the_start_or_an_observer(model: nn.Module) -> None:
    class Angry(Maps):
        def relevance(self, operation: object, relevance: Tensor) -> None:
            raise KeyError("observer")

    def start(output: Tensor) -> Tensor:
        raise KeyError("start")

    x = torch.randn(2, 3, 8, 8)
    with untouched(model, x), pytest.raises(KeyError, match="start"):
        propagate(model, x, epsilon_plus(), start)
    with untouched(model, x), pytest.raises(KeyError, match="observer"):
        propagate(model, x, epsilon_plus(), torch.ones_like, [Angry()])


def test_a_start_cannot_change_the_output(model: nn.Module) -> None:
    x = torch.randn(2, 3, 8, 8)
    expected = model(x.clone())
    result = propagate(model, x, gradient(), lambda output: output.fill_(1.0))
    torch.testing.assert_close(result.output, expected)


def test_nothing_of_the_graph_is_kept(model: nn.Module) -> None:
    import gc
    import weakref

    seen: list[weakref.ref[Tensor]] = []

    class Watching(Maps):
        def output(self, operation: object, output: Tensor) -> None:
            seen.append(weakref.ref(output))

    result = propagate(
        model, torch.randn(1, 3, 8, 8), epsilon_plus(), torch.ones_like, [Watching()], max_loss=None
    )
    gc.collect()
    assert result.operations
    assert seen
    assert not any(ref() is not None for ref in seen)
