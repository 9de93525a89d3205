"""build and what goes with it: every form of a model spec, and what is said of the wrong ones."""

import sys

import pytest
import torch
import torchvision.models
from safetensors.torch import save_file
from torch import nn

from niwaki.data import batches, open_data
from niwaki.errors import ModelError, WeightsError
from niwaki.models import build, check, class_names, is_saved, preprocessing

USER_FILE = """
from dataclasses import dataclass
from torch import nn
from beside import WIDTH
from niwaki.data import Preprocessing

@dataclass
class Options:
    width: "int" = WIDTH

class Net(nn.Linear):
    preprocessing = Preprocessing(4, mean=(0,), std=(1,), channels=1)
    class_names = ("no", "yes")
    def __init__(self, num_classes=2):
        from beside import WIDTH
        super().__init__(Options().width, num_classes)

def nothing():
    return 3

def broken():
    raise KeyError("width")
"""


@pytest.fixture
def user_file(tmp_path):
    (tmp_path / "beside.py").write_text("WIDTH = 7\n")
    (tmp_path / "net.py").write_text(USER_FILE)
    yield tmp_path / "net.py"
    sys.modules.pop("beside", None)
    sys.modules.pop("net", None)


def offline(*_, **__):
    raise OSError("no connection")


def test_torchvision_random_and_file(tmp_path):
    twin = torchvision.models.squeezenet1_1(num_classes=5)
    save_file(twin.state_dict(), tmp_path / "w.safetensors")
    spec = "torchvision:SqueezeNet1_1"
    model = build(spec, weights=tmp_path / "w.safetensors", classes=5)
    check(model)
    inputs = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(model(inputs), twin.eval()(inputs))
    assert type(model) is torchvision.models.SqueezeNet
    torch.manual_seed(0)
    assert build(spec, weights="random")(inputs).shape == (1, 1000)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_go(tmp_path, name):
    model = build(f"torchvision:{name}", weights="random", classes=3)
    assert model(torch.rand(1, 3, 96, 96)).shape == (1, 3)
    assert not any("aux" in key.lower() for key in model.state_dict())
    assert not model.transform_input
    # A published file holds them, and was trained on rescaled inputs.
    twin = torchvision.models.get_model(name, num_classes=3, init_weights=False)
    twin.transform_input = True
    torch.save(twin.state_dict(), tmp_path / "w.pth")
    model = build(f"torchvision:{name}", weights=str(tmp_path / "w.pth"), classes=3)
    inputs = torch.rand(1, 3, 96, 96)
    torch.testing.assert_close(model(inputs), twin.eval()(inputs))


def test_default_weights_come_from_torchvision(monkeypatch):
    twin = torchvision.models.googlenet(init_weights=False, aux_logits=True)
    entry = torchvision.models.GoogLeNet_Weights
    monkeypatch.setattr(entry, "get_state_dict", lambda *_, **__: twin.state_dict())
    model = build("torchvision:googlenet", classes=1000)
    torch.testing.assert_close(model.conv1.conv.weight, twin.conv1.conv.weight)
    assert model.aux1 is None
    assert model.transform_input


def test_failed_download_says_so(monkeypatch):
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    entry = torchvision.models.SqueezeNet1_1_Weights
    monkeypatch.setattr(entry, "get_state_dict", offline)
    with pytest.raises(WeightsError, match=r"not be downloaded: no connection; .*'random', or"):
        build("torchvision:squeezenet1_1")


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("torchvision:resnet19", {}, r"'resnet19'; did you mean .*resnet18"),
        ("torchvision:fasterrcnn_resnet50_fpn", {}, "no classification network"),
        ("torchvision:zzz", {}, "it has alexnet, "),
        ("torchvision:vgg16", {"weights": "V9"}, "valid are IMAGENET1K_V1, .*DEFAULT, 'random'"),
        ("torchvision:vgg16", {"weights": "IMAGENET1K_V1", "classes": 7}, "1000 classes, not 7"),
        ("timm:resnet19", {}, r"'resnet19'; did you mean .*resnet18"),
        ("timm:resnet18.nope", {}, r"Invalid pretrained tag \(nope\)"),
        ("timm:resnet18", {"classes": 7}, "1000 classes, not 7"),
        ("timm:resnet18", {"weights": "V1"}, "no file of weights at V1"),
        ("keras:vgg", {}, "cannot import 'keras' .*ModuleNotFoundError.*; a model is torchvision:"),
        ("resnet18", {}, "'resnet18' names no model; write torchvision:NAME"),
        ("nothing/here.py:Net", {}, "FileNotFoundError"),
        ("niwaki.models.zoo:resnet21", {}, "no callable 'resnet21'; it has .*resnet20"),
        ("niwaki.models.zoo:lenet", {"weights": "V1"}, "no file of weights at V1"),
    ],
)
def test_wrong_specs(spec, options, message):
    if spec.startswith("timm"):
        pytest.importorskip("timm")
    with pytest.raises(ModelError, match=message):
        build(spec, **options)


def test_timm_random_and_offline(monkeypatch):
    timm = pytest.importorskip("timm")
    model = build("timm:test_resnet", weights="random", classes=4)
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 4)
    check(model)
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(WeightsError, match="could not be downloaded: no connection; pass weights"):
        build("timm:test_resnet")


def test_timm_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    for function in (build, preprocessing):
        with pytest.raises(ModelError, match=r"pip install 'niwaki\[timm\]'"):
            function("timm:resnet18")


@pytest.mark.parametrize("form", ["file", "module"])
def test_a_users_own_network(user_file, monkeypatch, form):
    monkeypatch.chdir(user_file.parent)
    spec = f"{user_file}:Net" if form == "file" else "net:Net"
    before = list(sys.path)
    assert build(spec).weight.shape == (2, 7)
    model = build(spec, weights="random", classes=5)
    assert model.weight.shape == (5, 7)
    assert not model.training
    assert preprocessing(spec).size == 4
    assert class_names(spec) == ["no", "yes"]
    assert sys.path == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "returned a int; name a callable that returns a torch.nn.Module"),
        ("broken", r"broken\(\) failed: KeyError: 'width'"),
        ("WIDTH", "no callable 'WIDTH'; it has Net, Options, broken, nothing"),
    ],
)
def test_a_users_mistakes(user_file, name, message):
    with pytest.raises(ModelError, match=message):
        build(f"{user_file}:{name}")


def test_a_users_file_that_fails(tmp_path):
    (tmp_path / "net.py").write_text("import torch\n1 / 0\n")
    with pytest.raises(ModelError, match="ZeroDivisionError: division by zero") as caught:
        build(f"{tmp_path / 'net.py'}:Net")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_saved_models_need_their_reader(tmp_path):
    assert not is_saved(tmp_path)
    (tmp_path / "niwaki.json").write_text("{}")
    spec = str(tmp_path)
    assert is_saved(spec)
    assert preprocessing(spec) is class_names(spec) is None
    model = build(spec, load_saved=lambda folder: nn.Linear(len(folder.name), 1).train())
    assert model.in_features == len(tmp_path.name)
    assert not model.training
    with pytest.raises(ModelError, match="pass load_saved"):
        build(spec)
    with pytest.raises(ModelError, match="leave weights='random' and classes=None out"):
        build(spec, weights="random", load_saved=lambda _: nn.Linear(1, 1))


def test_what_the_name_tells():
    names = class_names("torchvision:vgg16")
    assert (len(names), names[0]) == (1000, "tench")
    assert preprocessing("torchvision:resnet50", "IMAGENET1K_V1").resize == 256
    assert preprocessing("torchvision:resnet50", "IMAGENET1K_V2").resize == 232
    assert preprocessing("torchvision:resnet50", "random").resize == 232
    assert class_names("niwaki.models.zoo:resnet20")[3] == "cat"
    assert preprocessing("torch.nn:ReLU") is class_names("torch.nn:ReLU") is None
    pytest.importorskip("timm")
    assert class_names("timm:resnet18")[217] == "English springer"
    assert class_names("timm:convnext_tiny.in12k")[0] == "benthos (n00005787)"


@pytest.mark.long
def test_squeezenet_recognises_imagenette(shared):
    outputs = [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]
    spec = "torchvision:squeezenet1_1"
    weights = shared / "data" / "weights" / "squeezenet1_1_imagenet.safetensors"
    data = open_data(shared / "data" / "imagenette", preprocessing(spec, weights), outputs=outputs)
    model = build(spec, weights=weights)
    with torch.no_grad():
        right = sum((model(x).argmax(1) == y).sum().item() for x, y in batches(data, 50))
    assert abs(right / len(data) - 0.57) < 0.005
