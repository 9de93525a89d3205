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
