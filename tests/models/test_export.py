"""Exported networks compute what the network does, for any batch; nothing else is written."""

import json
import math
import sys

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from niwaki.cli import app
from niwaki.errors import ModelError, NiwakiError
from niwaki.models import export, zoo
from niwaki.pruning import Schedule, prune

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def runs(path, inputs):
    if path.suffix == ".pt2":
        return torch.export.load(path).module()(inputs)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["outputs"], {"inputs": inputs.numpy()})[0])


@pytest.fixture(scope="module")
def pruned():
    torch.manual_seed(0)
    model = zoo.ResNet(1).eval()
    for module in model.modules():  # statistics that matter
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    data = torch.randn(2, 3, 32, 32), torch.tensor([0, 1])
    return prune(model, data, "weight", keep=0.5, of="macs", schedule=Schedule(steps=1, per_cost=0))


@pytest.fixture(scope="module")
def whole():
    return sum(p.numel() for p in zoo.ResNet(1).parameters())


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_a_pruned_network_as_a_file(pruned, whole, suffix, tmp_path):
    path = tmp_path / f"smaller{suffix}"
    before = {name: value.clone() for name, value in pruned.model.state_dict().items()}
    pruned.export(path, format="onnx" if suffix == ".onnx" else "program")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    if suffix == ".onnx":
        _check_file(onnx.load(path), whole)
    for count in (1, 4, 7):
        inputs = torch.randn(count, 3, 32, 32)
        with torch.no_grad():
            expected = pruned.model(inputs)
        torch.testing.assert_close(runs(path, inputs).detach(), expected, rtol=1e-4, atol=1e-4)
    after = pruned.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not pruned.model.training
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in pruned.model.modules())


def _check_file(written, whole):
    onnx.checker.check_model(written)
    (inputs,) = written.graph.input
    dimensions = inputs.type.tensor_type.shape.dim
    assert dimensions[0].dim_param
    assert [d.dim_value for d in dimensions[1:]] == [3, 32, 32]
    assert sum(math.prod(i.dims) for i in written.graph.initializer) < 0.8 * whole


class Lies(nn.Module):
    """Computes something else when it is exported."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        return self.fc(x) + (0.1 if torch.compiler.is_exporting() else 0.0)


class Branches(nn.Module):
    """Decides by the values it sees, which no file can hold."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        return self.fc(x) if float(x.sum()) > 0 else self.fc(-x)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "program"])
@pytest.mark.parametrize(
    ("network", "message"),
    [(Lies, "differs from the network by 0.1"), (Branches, "torch.export cannot follow")],
)
def test_what_differs_or_cannot_be_followed_is_not_written(network, message, format, tmp_path):
    with pytest.raises(ModelError, match=message):
        export(network().eval(), tmp_path / "x.onnx", (3,), format=format)
    assert not list(tmp_path.iterdir())


def test_wrong_networks_and_formats(tmp_path):
    with pytest.raises(ModelError, match="training mode"):
        export(zoo.lenet().train(), tmp_path / "x.onnx", (1, 28, 28))
    with pytest.raises(ValueError, match="neither 'onnx' nor 'program'"):
        export(zoo.lenet().eval(), tmp_path / "x", (1, 28, 28), format="torchscript")


def test_without_the_extra_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(NiwakiError, match=r"onnxruntime: pip install niwaki\[onnx\]"):
        export(zoo.lenet().eval(), tmp_path / "x.onnx", (1, 28, 28))
    export(zoo.lenet().eval(), tmp_path / "x.pt2", (1, 28, 28), format="program")


@pytest.mark.slow
def test_double_precision_where_the_runtime_has_it(tmp_path):
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(72, 2)).double().eval()
    convolution = nn.Sequential(nn.Conv2d(1, 2, 3), *linear).double().eval()
    export(linear, tmp_path / "x.onnx", (2, 6, 6))
    inputs = torch.randn(2, 2, 6, 6).double()
    with torch.no_grad():
        expected = linear(inputs)
    torch.testing.assert_close(runs(tmp_path / "x.onnx", inputs), expected)
    with pytest.raises(ModelError, match=r"cannot run the network in torch\.float64.*model\.float"):
        export(convolution, tmp_path / "y.onnx", (1, 8, 8))
    assert not (tmp_path / "y.onnx").exists()


def test_the_command_line(tmp_path):
    runner, out = CliRunner(), tmp_path / "x.pt2"
    command = ["export", "niwaki.models.zoo:lenet", "--out", str(out)]
    done = runner.invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0
    assert "inputs (N, 1, 28, 28)" in done.output
    assert runs(out, torch.randn(3, 1, 28, 28)).shape == (3, 10)
    for wrong, message in [
        (command, "--force"),
        ([*command, "--force", "--input-shape", "1,x"], "expected whole numbers"),
        ([*command[:-1], "x.pth"], r"must end in \.onnx or \.pt2"),
    ]:
        with pytest.raises(ValueError, match=message):
            runner.invoke(app, wrong, catch_exceptions=False)


def test_a_saved_network_knows_its_input(pruned, tmp_path):
    pruned.save(tmp_path / "smaller", about={"model": f"{__file__}:small"})
    runner, out = CliRunner(), tmp_path / "x.pt2"
    command = ["export", str(tmp_path / "smaller"), "--out", str(out), "--json"]
    done = runner.invoke(app, command, catch_exceptions=False)
    assert json.loads(done.output)["input_shape"] == [3, 32, 32]
    inputs = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = pruned.model(inputs)
    torch.testing.assert_close(runs(out, inputs), expected, rtol=1e-4, atol=1e-4)


def small():
    """What the saved network is rebuilt from."""
    return zoo.ResNet(1)
