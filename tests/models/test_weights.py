"""load_weights: what fits is loaded, what does not fit changes nothing and is named."""

import copy
import os

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from niwaki.errors import ModelError, WeightsError
from niwaki.models import check, load_weights


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))


def same(first, second):
    return all(
        torch.equal(a, b)
        for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def prefixed(prefix):
    return lambda state: {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        dict,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {"model_state_dict": state}, "best": 0.5},
        prefixed("module."),
        prefixed("_orig_mod."),
        prefixed("module._orig_mod."),
        lambda state: {"state_dict": prefixed("module.")(state)},
    ],
)
def test_checkpoints_of_every_shape(tmp_path, wrap):
    source, model = network(0), network(1)
    torch.save(wrap(source.state_dict()), tmp_path / "w.pth")
    load_weights(model, tmp_path / "w.pth")
    assert same(source, model)


def test_safetensors_without_counts_of_batches(tmp_path):
    source, model = network(0), network(1)
    state = {k: v for k, v in source.state_dict().items() if not k.endswith("tracked")}
    save_file(state, tmp_path / "w.safetensors")
    load_weights(model, str(tmp_path / "w.safetensors"))
    assert same(source, model)


def test_a_network_with_a_child_called_module(tmp_path):
    source, model = (nn.ModuleDict({"module": network(seed)}) for seed in (0, 1))
    torch.save(source.state_dict(), tmp_path / "w.pth")
    load_weights(model, tmp_path / "w.pth")
    assert same(source, model)
    torch.save(prefixed("module.")(network(2).state_dict()), tmp_path / "w.pth")
    load_weights(model["module"], tmp_path / "w.pth")
    assert same(network(2), model["module"])


def renamed(state):
    state["tail.weight"] = state.pop("3.weight")


def misshapen(state):
    state["0.weight"] = torch.zeros(4, 3, 1, 1)


def poisoned(state):
    state["3.bias"][1] = float("nan")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (renamed, r"1 missing, 1 unexpected, 0 of .*3.weight is missing; tail.weight is not in"),
        (misshapen, r"0.weight has shape \(4, 3, 1, 1\), the network \(4, 3, 3, 3\)\. Build"),
        (lambda state: state.clear(), "8 missing, .*0.weight is missing; .*; and 3 more"),
        (poisoned, "3.bias in .*w.pth has NaN"),
        (lambda state: state.update(epoch=3), "'epoch' is a int; .*'state_dict', 'model_state"),
    ],
)
def test_what_does_not_fit_changes_nothing(tmp_path, spoil, message):
    model = network(1)
    before = copy.deepcopy(model)
    state = network(0).state_dict()
    spoil(state)
    torch.save(dict(state), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=message):
        load_weights(model, tmp_path / "w.pth")
    assert same(before, model)


class Trap:
    def __reduce__(self):
        return os.mkdir, (os.environ["NIWAKI_TRAP"],)


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.setenv("NIWAKI_TRAP", str(tmp_path / "sprung"))
    for name, content in (("trap.pth", Trap()), ("whole.pth", network(0))):
        torch.save(content, tmp_path / name)
        with pytest.raises(WeightsError, match=rf"{name} cannot .*save the model's state_dict\(\)"):
            load_weights(network(1), tmp_path / name)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.bin"])
@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"PK\x03\x04 cut", b"text"])
def test_broken_files_are_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=name):
        load_weights(network(0), tmp_path / name)


def test_other_content_is_named(tmp_path):
    torch.save([torch.zeros(1)], tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="holds a list, not a dict"):
        load_weights(network(0), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"no file of weights at .*absent"):
        load_weights(network(0), tmp_path / "absent")


def test_check_names_what_is_wrong():
    model = network(0)
    with pytest.raises(ModelError, match="the model is in training mode; call"):
        check(model)
    check(model.eval())
    model[1].train()
    with pytest.raises(ModelError, match="submodule '1' is in training"):
        check(model)
    model.eval()[1].running_var[2] = float("inf")
    with pytest.raises(ModelError, match=r"1\.running_var has NaN or inf"):
        check(model)


class Shares(nn.Module):
    """Two layers, of one weight or of two."""

    def __init__(self, shared):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        if shared:
            self.b.weight = self.a.weight


def test_two_weights_do_not_become_one(tmp_path):
    file, apart, shared = tmp_path / "x.pt", Shares(False), Shares(True)
    torch.save(apart.state_dict(), file)
    before = {name: value.clone() for name, value in shared.state_dict().items()}
    with pytest.raises(
        WeightsError, match=r"b\.weight and a\.weight are one tensor in the network"
    ):
        load_weights(shared, file)
    assert all(torch.equal(value, before[name]) for name, value in shared.state_dict().items())
    torch.save(shared.state_dict(), file)
    load_weights(apart, file)
    load_weights(Shares(True), file)
    assert torch.equal(apart.b.weight, shared.a.weight)


@pytest.mark.parametrize(
    ("stored", "own", "value"),
    [(torch.float64, torch.float32, 1e300), (torch.float32, torch.float16, 7e4)],
)
def test_values_that_the_network_cannot_hold(tmp_path, stored, own, value):
    model = nn.Linear(2, 2).to(own)
    weights = {name: one.to(stored) for name, one in model.state_dict().items()}
    load_weights_of(model, weights, tmp_path)
    weights["weight"][0, 0] = value
    with pytest.raises(WeightsError, match=r"has values up to .* does not hold"):
        load_weights_of(model, weights, tmp_path)
    assert bool(model.weight.isfinite().all())


def load_weights_of(model, content, folder):
    torch.save(content, folder / "x.pt")
    load_weights(model, folder / "x.pt")


def test_several_networks_in_one_checkpoint(tmp_path):
    weights = nn.Linear(2, 2).state_dict()
    with pytest.raises(
        WeightsError, match="holds several networks, under 'state_dict' and 'model'"
    ):
        load_weights_of(nn.Linear(2, 2), {"model": weights, "state_dict": weights}, tmp_path)


def test_tensors_without_plain_values(tmp_path):
    weights = nn.Linear(2, 2).state_dict()
    sparse = {**weights, "weight": weights["weight"].to_sparse()}
    with pytest.raises(WeightsError, match=r"weight is stored as torch\.sparse_coo"):
        load_weights_of(nn.Linear(2, 2), sparse, tmp_path)
    with torch.device("meta"):
        empty = nn.Linear(2, 2)
    with pytest.raises(WeightsError, match="meta device"):
        load_weights_of(empty, weights, tmp_path)
    eighth = {name: value.to(torch.float8_e4m3fn) for name, value in weights.items()}
    model = nn.Linear(2, 2)
    load_weights_of(model, eighth, tmp_path)
    assert torch.equal(model.weight, eighth["weight"].float())
