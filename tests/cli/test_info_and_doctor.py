"""`niwaki info` and `niwaki doctor`."""

import json

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import niwaki
from niwaki import evaluation
from niwaki.cli import _doctor, app
from niwaki.errors import DataError, NiwakiError
from niwaki.models import zoo
from niwaki.report import network_info


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


def test_layers_add_up_to_the_whole():
    model = zoo.resnet20().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = network_info(model, torch.randn(1, 3, 32, 32))
    cost = evaluation.cost(model, torch.randn(1, 3, 32, 32))
    assert found.cost == cost
    assert sum(layer.macs for layer in found.layers) == cost.macs
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    rest = sum(p.numel() for norm in norms for p in norm.parameters())
    assert sum(layer.params for layer in found.layers) + rest == cost.params
    by_name = {layer.name: layer for layer in found.layers}
    last = found.layers[-1]
    assert (last.removable, last.why_not) == (0, "its units are the network's outputs")
    assert all(layer.rule.startswith("ZPlus") for layer in found.layers[:-1])
    assert last.rule.startswith("Epsilon")
    # The layers that write one residual stream can only lose units together.
    stage = [layer for layer in found.layers if len(layer.together) > 1]
    assert stage
    for layer in stage:
        for name in layer.together:
            assert layer.name in by_name[name].together
    assert [rule.partition("(")[0] for rule in found.operations["add"]] == ["Epsilon"]
    assert found.remarks == ()
    assert json.loads(json.dumps(found.to_json()))["cost"]["macs"] == cost.macs
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


class Norms(nn.Module):
    """A batch norm that is absorbed, and one that stands alone: the same operation, two rules."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.behind, self.alone = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.alone(self.behind(self.conv(x)).relu()).mean((2, 3)))


def test_an_operation_with_two_rules_shows_both():
    found = network_info(Norms().eval(), torch.randn(1, 1, 6, 6))
    assert [rule.partition("(")[0] for rule in found.operations["batch_norm"]] == ["Pass", "ZPlus"]


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside = nn.Linear(4, 4)
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        y = self.inside(x.flatten(2).transpose(1, 2))
        return self.out((y @ y.transpose(1, 2) @ y).mean(1))


def test_what_is_refused_becomes_a_remark():
    found = network_info(Attention().eval(), torch.randn(1, 4, 3, 3))
    assert [layer.name for layer in found.layers] == ["inside", "out"]
    assert any(remark.startswith("LRP (EpsilonPlus) is refused") for remark in found.remarks)
    assert all(layer.rule == "" for layer in found.layers)


def test_confusions_are_counted():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 3)).eval()
    inputs, labels = torch.randn(50, 1, 2, 3), torch.randint(3, (50,))
    found = evaluation.confusion(model, (inputs, labels), batch_size=7)
    expected = torch.zeros(3, 3, dtype=torch.int64)
    for true, said in zip(labels, model(inputs).argmax(1), strict=True):
        expected[true, said] += 1
    assert torch.equal(found, expected)
    share = float(found.diagonal().sum() / found.sum())
    assert share == pytest.approx(evaluation.accuracy(model, (inputs, labels)))
    with pytest.raises(DataError, match="label 3"):
        evaluation.confusion(model, (inputs, labels + 1))


def test_info_with_and_without_data():
    model = ["niwaki.models.zoo:vgg_digits", "digits", "--weights", "random", "--threads", 1]
    said = json.loads(run("info", *model, "--limit", 40, "--json").stdout)
    assert (said["images"], said["input_shape"]) == (40, [1, 8, 8])
    assert sum(map(sum, said["confusion"])) == 40
    assert said["classes"] == [str(digit) for digit in range(10)]
    shown = run("info", *model, "--limit", 40, "--composite", "epsilon").stdout
    assert "conv1_1" in shown
    assert "accuracy" in shown
    lenet = ["niwaki.models.zoo:lenet", "--weights", "random", "--size", 28]
    assert "1 x 28 x 28" in run("info", *lenet, "--mean", 0.5, "--std", 0.5).stdout
    with pytest.raises(ValueError, match="did you mean EpsilonPlus"):
        run("info", *model, "--composite", "EpsilonPlu")


def test_doctor_tells_what_is_there_and_what_is_missing(monkeypatch):
    said = json.loads(run("doctor", "--json").stdout)
    assert said["niwaki"] == niwaki.__version__
    assert said["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert said["missing"] == []
    assert said["devices"][0].startswith("cpu")
    whole = _doctor.version

    def without(name):
        if name in ("rich", "timm"):
            raise _doctor.PackageNotFoundError(name)
        return whole(name)

    monkeypatch.setattr(_doctor, "version", without)
    done = run("doctor")
    assert done.exit_code == 1
    assert "rich is missing: pip install rich" in done.stdout
    assert "niwaki[timm]" in done.stdout


def test_doctor_of_a_source_tree_says_that_it_is_not_installed(monkeypatch):
    def nothing(name):
        raise _doctor.PackageNotFoundError(name)

    monkeypatch.setattr(_doctor, "metadata", nothing)
    with pytest.raises(NiwakiError, match="not installed"):
        run("doctor")
