"""After scoring, also one that fails, the network, the data and torch are as they were."""

import copy

import pytest
import torch
from criteria_networks import Functional, Plain, randomise
from torch import nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils.data import DataLoader, Dataset, TensorDataset

from niwaki.criteria import create, names, score
from niwaki.errors import DataError

NAMES = [name for name in names() if not name.startswith("lrp.")] + ["taylor + weight"]


def snapshot(model):
    state = {k: (v.clone(), v._version, id(v)) for k, v in model.state_dict(keep_vars=True).items()}
    flags = [(p.requires_grad, None if p.grad is None else p.grad.clone(), p._backward_hooks)
             for p in model.parameters()]  # fmt: skip
    modules = [
        (m.training, {k: copy.copy(v) for k, v in vars(m).items() if "hooks" in k}, set(vars(m)))
        for m in model.modules()
    ]
    around = (
        torch.is_grad_enabled(),
        len(_get_current_function_mode_stack()),
        torch.get_rng_state().clone(),
    )
    return [state, flags, modules, around]


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def loader(dataset, batch_size):
    """One that leaves torch's own random numbers alone."""
    return DataLoader(dataset, batch_size, generator=torch.Generator())


def prepared(criterion, network):
    torch.manual_seed(0)
    if network == "functional" and criterion != "bn_scale":
        model = Functional().double().eval()
    else:
        model = randomise(Plain(transposed=criterion != "pattern_attribution"))
    for i, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, 0.5) if i % 2 else None
        parameter.requires_grad_(i % 3 != 0)
    model.register_forward_hook(lambda *_: None)
    return model, (torch.randn(4, 3, 12, 12).double(), torch.arange(4))


@pytest.mark.parametrize("network", ["plain", "functional"])
@pytest.mark.parametrize("criterion", NAMES)
def test_after_success(criterion, network):
    model, data = prepared(criterion, network)
    before, kept = snapshot(model), [t.clone() for t in data]
    made = create(criterion, **({"max_loss": None} if criterion == "lrp" else {}))
    with torch.no_grad():
        score(model, loader(TensorDataset(*data), 3), made)
    score(model, loader(TensorDataset(*data), 3), made)
    assert same(before, snapshot(model))
    assert same(kept, list(data))


class Raises(nn.Module):
    """Fails when it is called for the `at`-th time."""

    def __init__(self, at):
        super().__init__()
        self.at, self.calls = at, []

    def forward(self, x):
        self.calls.append(1)
        if len(self.calls) >= self.at:
            raise RuntimeError("in the middle")
        return x


@pytest.mark.parametrize("at", [1, 3])
@pytest.mark.parametrize("criterion", NAMES)
def test_after_an_error_in_the_middle(criterion, at):
    model, data = prepared(criterion, "plain")
    model[7] = Raises(at).eval()
    before = snapshot(model)
    made = create(criterion, **({"max_loss": None} if criterion == "lrp" else {}))
    if at == 3 and not made.needs_data:
        return  # they look at one sample, once or twice
    with pytest.raises((RuntimeError, DataError), match="in the middle"):
        score(model, loader(TensorDataset(*data), 2), made)
    assert same(before, snapshot(model))


class Torn(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == 3:
            raise OSError("the disk is gone")
        return torch.zeros(3, 12, 12).double() + index, index


@pytest.mark.parametrize("criterion", [name for name in NAMES if create(name).needs_data])
def test_after_data_that_break_off(criterion):
    model, _ = prepared(criterion, "plain")
    before = snapshot(model)
    made = create(criterion, **({"max_loss": None} if criterion == "lrp" else {}))
    with pytest.raises(OSError, match="the disk is gone"):
        score(model, loader(Torn(), 2), made)
    assert same(before, snapshot(model))
