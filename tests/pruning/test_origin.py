"""Which code a saved network runs, and that it is found again from anywhere."""

import json
import os
import shutil
import sys
import textwrap

import pytest
import torch
import torchvision
from torch import nn
from typer.testing import CliRunner

import niwaki
from niwaki import models
from niwaki.cli import app
from niwaki.errors import ModelError
from niwaki.models import zoo
from niwaki.pruning import prune

SOURCE = """
    import pathlib
    pathlib.Path({ran!r}).touch()
    from torch import nn
    class Small(nn.Sequential):
        def __init__(self):
            super().__init__(
                nn.Conv2d(1, 6, 3, padding=1), nn.{act}(), nn.Conv2d(6, 6, 3), nn.{act}(),
                nn.Flatten(), nn.Linear(6 * 36, 10))
    def small():
        return Small()
"""
DATA = torch.rand(8, 1, 8, 8), torch.arange(8)


@pytest.fixture(autouse=True)
def secret(tmp_path_factory, monkeypatch):
    """Give everybody a home of their own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Return a pruned folder, from a file of one's own, and the file that running it leaves."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    write(work / "nets.py", tmp_path / "ran")
    model = models.build("nets.py:small")
    smaller = prune(
        model, DATA, "weight", keep=0.6, repair=None, schedule=niwaki.pruning.Schedule(steps=1)
    )
    smaller.save(work / "smaller", about={"model": "nets.py:small"})
    (tmp_path / "ran").unlink()
    return work / "smaller", tmp_path / "ran"


def write(file, ran, act="ReLU"):
    file.write_text(textwrap.dedent(SOURCE.format(ran=str(ran), act=act)))


def edit(folder, **changes):
    about = json.loads((folder / "niwaki.json").read_text())
    about = {k: v for k, v in {**about, **changes}.items() if v is not ...}
    (folder / "niwaki.json").write_text(json.dumps(about))


def stranger(monkeypatch, tmp_path):
    """Become somebody else, who has not sealed anything."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another"))


def test_ones_own_folder_loads_alone_and_elsewhere(mine, tmp_path, monkeypatch):
    folder, _ = mine
    x = torch.rand(4, 1, 8, 8)
    expected = niwaki.load(folder)(x)
    shutil.move(folder, tmp_path / "elsewhere")
    monkeypatch.chdir("/")
    assert torch.equal(niwaki.load(tmp_path / "elsewhere")(x), expected)
    assert "nets" not in sys.modules


def test_anothers_folder_runs_nothing_unless_it_is_trusted(mine, tmp_path, monkeypatch):
    folder, ran = mine
    stranger(monkeypatch, tmp_path)
    with pytest.raises(ModelError, match=r"work/nets\.py.*--trust.*trust=True.*--architecture"):
        niwaki.load(folder)
    assert not ran.exists()
    niwaki.load(folder, trust=True)
    assert ran.exists()


def test_a_seal_is_of_one_path(mine, tmp_path):
    folder, ran = mine
    write(tmp_path / "evil.py", tmp_path / "ran")
    about = json.loads((folder / "niwaki.json").read_text())
    edit(folder, builder={**about["builder"], "file": str(tmp_path / "evil.py")})
    with pytest.raises(ModelError, match="--trust"):
        niwaki.load(folder)
    edit(folder, builder=..., model=f"{tmp_path}/evil.py:small")
    with pytest.raises(ModelError, match="--trust"):
        niwaki.load(folder)
    assert not ran.exists()


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize(
    "spec",
    [
        "nets:small", "nets.py:small", "./nets.py:small", "../work2/nets.py:small",
        "{home}/nets.py:small", "sub.nets:small", "sub/nets.py:small", "sub/../nets.py:small",
        "link.py:small",
    ],
)  # fmt: skip
def test_nothing_in_the_folder_is_ever_run(mine, tmp_path, monkeypatch, spec, trust):
    folder, ran = mine
    home = tmp_path / "work2"
    shutil.copytree(folder, home)
    (home / "sub").mkdir()
    for place in (home, home / "sub"):
        write(place / "nets.py", ran)
        write(place / "timm.py", ran)
    (tmp_path / "link.py").symlink_to(home / "nets.py")
    monkeypatch.chdir(tmp_path if spec.startswith("link") else home)
    monkeypatch.syspath_prepend("")
    edit(home, model=spec.format(home=home), builder=...)
    for given in (home, os.path.relpath(home)):
        with pytest.raises(ModelError):
            niwaki.load(given, trust=trust)
    file = str(home / "nets.py")
    for builder in (
        {"file": file, "root": str(home)},
        {"file": file, "root": str(tmp_path)},
        {"file": str(tmp_path / "link.py"), "root": str(tmp_path)},
        {"file": str(tmp_path / "x" / ".." / "work2" / "nets.py"), "root": "/"},
    ):
        edit(home, builder=builder)
        with pytest.raises(ModelError):
            niwaki.load(home, trust=trust)
    assert not ran.exists()


@pytest.mark.parametrize(
    "spec",
    [
        "os:abort", "os:getcwd", "builtins:breakpoint", "antigravity:fly", "subprocess:Popen",
        "torch.hub:load", "torch.utils.collect_env:main", "pip:main", "numpy:zeros",
        "niwaki.cli:main", "niwaki.models.zoo:os", "niwaki.models.zoo:nn",
        "https://example.org/x.py:build", "http://example.org/x:build", "torch.hub:evil/repo:main",
        "timm:hf-hub:somebody/evil", "timm:local-dir:/tmp", "torchvision:../evil", ":", "x", "",
        "nets:", ":small", "a b:c", "évil:x", "x;y:z", "-c:import os",
    ],
)  # fmt: skip
def test_other_callables_build_no_network(mine, spec, capfd):
    folder, _ = mine
    edit(folder, model=spec, builder=...)
    with pytest.raises(ModelError):
        niwaki.load(folder)


def test_the_command_line_names_the_path_and_takes_an_architecture(mine, tmp_path, monkeypatch):
    folder, ran = mine
    stranger(monkeypatch, tmp_path)
    options = [str(folder), "digits", "--limit", "2", "--method", "gradient", "--threads", "1"]

    def run(out, *more):
        arguments = ["explain", *options, "--out", str(tmp_path / out), *more]
        return CliRunner().invoke(app, arguments, catch_exceptions=False)

    with pytest.raises(ModelError, match=r"work/nets\.py.*--trust"):
        run("a")
    assert not ran.exists()
    assert run("a", "--trust").exit_code == 0
    assert run("b", "--architecture", "nets.py:small").exit_code == 0
    options[0] = "nets.py:small"
    with pytest.raises(ModelError, match="goes with the folder"):
        run("c", "--architecture", "nets.py:small")


def test_code_that_is_gone_or_changed_is_told(mine, tmp_path):
    folder, ran = mine
    write(folder.parent / "nets.py", ran, act="GELU")
    with pytest.raises(ModelError, match=r"other outputs than when it was saved.*nets\.py has ch"):
        niwaki.load(folder)
    (folder.parent / "nets.py").rename(tmp_path / "moved.py")
    with pytest.raises(ModelError, match=r"work/nets\.py.*no such file.*--architecture"):
        niwaki.load(folder)
    write(tmp_path / "moved.py", ran)
    niwaki.load(folder, models.build(f"{tmp_path}/moved.py:small"))


def test_a_package_of_ones_own_is_found_again(tmp_path, monkeypatch):
    package = tmp_path / "work" / "mynets"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "parts.py").write_text("from torch import nn\nact = nn.ReLU\n")
    (package / "plain.py").write_text(
        "from torch import nn\nfrom .parts import act\ndef build():\n    return nn.Sequential("
        "nn.Conv2d(1, 6, 3), act(), nn.Conv2d(6, 6, 3), act(), nn.Flatten(), nn.Linear(96, 10))\n"
    )
    monkeypatch.chdir(tmp_path / "work")
    model = models.build("mynets.plain:build")
    prune(
        model, DATA, "weight", keep=0.6, repair=None, schedule=niwaki.pruning.Schedule(steps=1)
    ).save(tmp_path / "a", about={"model": "mynets.plain:build"})
    for name in [name for name in sys.modules if name.startswith("mynets")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.chdir("/")
    niwaki.load(tmp_path / "a")
    for name in [name for name in sys.modules if name.startswith("mynets")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: torchvision.models.squeezenet1_1(num_classes=3), "torchvision:squeezenet1_1"),
        (lambda: torchvision.models.resnet18(num_classes=3), "torchvision:resnet18"),
        (lambda: zoo.resnet20(4), "niwaki.models.zoo:resnet20"),
    ],
)
def test_networks_of_others_are_recognised(make, name, tmp_path, monkeypatch):
    model = make().eval()
    data = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    prune(
        model, data, "weight", keep=0.8, repair=None, schedule=niwaki.pruning.Schedule(steps=1)
    ).save(tmp_path / "a")
    stranger(monkeypatch, tmp_path)
    assert json.loads((tmp_path / "a" / "niwaki.json").read_text())["model"] == name
    niwaki.load(tmp_path / "a")


def test_timm_networks_are_recognised(tmp_path, monkeypatch):
    timm = pytest.importorskip("timm")
    model = timm.create_model("resnet10t", num_classes=3).eval()
    data = torch.rand(4, 3, 64, 64), torch.tensor([0, 1, 2, 0])
    prune(
        model, data, "weight", keep=0.8, repair=None, schedule=niwaki.pruning.Schedule(steps=1)
    ).save(tmp_path / "a")
    stranger(monkeypatch, tmp_path)
    niwaki.load(tmp_path / "a")


def test_a_network_of_unknown_origin_says_how_to_name_it(tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 10)).eval()
    prune(
        model, DATA, "weight", keep=0.6, repair=None, schedule=niwaki.pruning.Schedule(steps=1)
    ).save(tmp_path / "a")
    with pytest.raises(ModelError, match=r"does not say.*--architecture.*model="):
        niwaki.load(tmp_path / "a")
    niwaki.load(tmp_path / "a", model)


@pytest.mark.long
def test_networks_that_rescale_their_inputs_still_do(tmp_path):
    model = torchvision.models.googlenet(
        weights=None, init_weights=False, transform_input=True, aux_logits=False, num_classes=3
    ).eval()
    about = {"model": "torchvision:googlenet", "classes": 3}
    data = torch.rand(2, 3, 64, 64), torch.tensor([0, 1])
    smaller = prune(
        model, data, "weight", keep=0.9, repair=None, schedule=niwaki.pruning.Schedule(steps=1)
    )
    smaller.save(tmp_path / "a", about=about)
    assert torch.equal(niwaki.load(tmp_path / "a")(data[0]), smaller.model(data[0]))
    smaller.save(tmp_path / "b")
    assert torch.equal(niwaki.load(tmp_path / "b")(data[0]), smaller.model(data[0]))
