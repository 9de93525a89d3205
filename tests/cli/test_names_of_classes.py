"""Commands know which output a folder means, say names, and warn of a network that guesses."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from niwaki import audit, pruning
from niwaki.cli import app
from niwaki.data import Preprocessing, open_data
from niwaki.errors import DataError, NearChanceWarning

COLOURS = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220)}
NETWORK = """
import torch
from torch import nn
from niwaki.data import Preprocessing


def unnamed():
    "Say red, green or blue, with six filters of which two are of each colour."
    net = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)
    )
    with torch.no_grad():
        net[0].weight[:, :, 0, 0] = torch.eye(3).repeat(2, 1)
        net[0].bias.zero_()
        net[4].weight.copy_(torch.eye(3).repeat(1, 2))
        net[4].bias.zero_()
    return net


def build():
    return unnamed()


unnamed.preprocessing = build.preprocessing = Preprocessing(16, mean=(0,) * 3, std=(1,) * 3)
build.class_names = ["red", "green", "blue"]
"""


@pytest.fixture
def net(tmp_path):
    (tmp_path / "net.py").write_text(NETWORK)
    return f"{tmp_path / 'net.py'}"


def fill(folder, count=12, **colours):
    rng = np.random.default_rng(0)
    for name, colour in colours.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.normal(COLOURS[colour], 15, (16, 16, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


def rows(command, *arguments, out):
    done = run(command, *arguments, "--json", "--threads", "1", "--out", out)
    assert done.exit_code == 0
    return json.loads(done.stdout)


@pytest.mark.parametrize("command", ["explain", "compare"])
def test_folders_are_matched_by_name(tmp_path, net, command):
    data = fill(tmp_path / "data", Blue="blue", green="green")
    out = tmp_path / ("x.png" if command == "compare" else "x")
    found = rows(command, f"{net}:build", data, "--method", "gradient", out=out)["images"]
    assert {(row["class"], row["prediction"]) for row in found} == {
        ("blue", "blue"),
        ("green", "green"),
    }


def test_predictions_have_the_names_of_the_folders(tmp_path, net):
    data = fill(tmp_path / "data", a="red", b="green", c="blue")
    found = rows("explain", f"{net}:unnamed", data, "--method", "gradient", out=tmp_path / "x")
    assert {row["prediction"] for row in found["images"]} == {"a", "b", "c"}
    told = rows("car", f"{net}:unnamed", data, out=tmp_path / "car")
    assert set(told["units"][0]["by_class"]) == {"a", "b", "c"}


def test_folders_that_are_no_outputs_are_refused(tmp_path, net):
    two = fill(tmp_path / "two", a="red", b="green")
    for command in ("explain", "prune", "car", "audit", "filters", "evaluate"):
        with pytest.raises(DataError, match=r"2 classes \(a, b\).* 3 outputs.*--outputs"):
            run(command, f"{net}:unnamed", two, "--out", tmp_path / "x")
        with pytest.raises(DataError, match=r"2 of 2 classes .*: a, b. The outputs are red, green"):
            run(command, f"{net}:build", two, "--out", tmp_path / "x")
        assert not (tmp_path / "x").exists()
    options = ["--method", "gradient", "--outputs", "0,1"]
    found = rows("explain", f"{net}:build", two, *options, out=tmp_path / "x")
    assert all(row["class"] == row["prediction"] for row in found["images"])


@pytest.mark.slow
def test_a_pruned_folder_remembers_the_names(tmp_path, net):
    data = tmp_path / "data"
    fill(data / "train", a="red", b="green", c="blue")
    fill(data / "test", b="green", c="blue")  # the first class is not there
    options = ["--keep", 0.8, "--references", 3, "--of", "units"]
    told = rows("prune", f"{net}:unnamed", data, *options, out=tmp_path / "small")
    assert told["trajectory"]["steps" if "steps" in told["trajectory"] else 0]
    about = json.loads((tmp_path / "small" / "niwaki.json").read_text())
    assert about["class_names"] == ["a", "b", "c"]
    other = fill(tmp_path / "other", C="blue")
    found = rows("explain", tmp_path / "small", other, "--method", "gradient", out=tmp_path / "x")
    assert {(row["class"], row["prediction"]) for row in found["images"]} == {("c", "c")}


@pytest.mark.slow
def test_training_names_the_outputs_of_the_audited_images(tmp_path, net):
    training = fill(tmp_path / "training", a="red", b="green", c="blue")
    data = fill(tmp_path / "data", b="green", c="blue")
    told = rows("audit", f"{net}:unnamed", data, "--training", training, out=tmp_path / "x")
    assert told["accuracy"] == 1
    assert told["caution"] is None
    assert told["classes"] == ["a", "b", "c"]


@pytest.mark.slow
def test_a_network_that_guesses_is_warned_of_first(tmp_path, net):
    data = fill(tmp_path / "data", a="blue", b="red", c="green")  # no label is right
    options = ["--keep", 0.8, "--references", 3]
    with pytest.warns(NearChanceWarning, match=r"before pruning, .* 0.0% .*guessing: 33.3%"):
        rows("prune", f"{net}:unnamed", data, *options, out=tmp_path / "small")
    with pytest.warns(NearChanceWarning, match="audit: the network names 0.0% of the images"):
        told = rows("audit", f"{net}:unnamed", data, out=tmp_path / "audit")
    assert "guessing" in told["caution"]
    page = (tmp_path / "audit" / "index.html").read_text()
    assert "No answer here can be relied on" in page
    assert "nothing was\nfound" not in page


def test_an_audit_of_one_class_is_refused_before_any_work(tmp_path):
    images = open_data(
        fill(tmp_path, red="red"), Preprocessing(16, mean=(0,) * 3, std=(1,) * 3), classes=["red"]
    )
    network = nn.Sequential(nn.Flatten(), nn.Linear(768, 1)).eval()
    network.register_forward_hook(lambda *_: pytest.fail("work was done"))
    with pytest.raises(DataError, match="all 12 images are of one class"):
        audit(network, images)


def test_pruning_refuses_references_and_test_images_that_are_numbered_apart(tmp_path):
    look = Preprocessing(16, mean=(0,) * 3, std=(1,) * 3)
    one = open_data(fill(tmp_path / "one", a="red", b="green"), look)
    other = open_data(fill(tmp_path / "other", b="green", c="blue"), look)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 2)).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for call in (
        lambda: pruning.prune(network, one, "weight", test=other),
        lambda: pruning.prune_weights(network, one, "magnitude", test=other),
        lambda: pruning.compare(network, one, ["weight"], test=other),
    ):
        with pytest.raises(DataError, match="'b' has the label 1 in one and 0 in the other"):
            call()
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


@pytest.mark.slow
def test_imagenette_on_a_network_of_imagenet(tmp_path, shared):
    weights = shared / "data/weights/squeezenet1_1_imagenet.safetensors"
    data = shared / "data/imagenette"
    arguments = ["torchvision:squeezenet1_1", data, "--weights", weights, "--limit", 10]
    found = rows("explain", *arguments, "--method", "gradient", out=tmp_path / "x")["images"]
    assert [row["class"] for row in found][:2] == ["tench", "English springer"]
    assert sum(row["class"] == row["prediction"] for row in found) >= 4
