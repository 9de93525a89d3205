"""Saving and loading: bit for bit, whole or not at all, without pickles."""

import json

import pytest
import torch
import torchvision
from pruning_networks import Residual, chain, data_for, randomise
from torch import nn

from niwaki.errors import ModelError, NiwakiError, WeightsError
from niwaki.models import zoo
from niwaki.pruning import Schedule, _pruned, load, prune

NETWORKS = {
    "resnet20": (zoo.resnet20, 16, 3),
    "vgg_digits": (zoo.vgg_digits, 8, 1),
    "vgglike": (zoo.vgglike, 32, 3),
    "lenet": (zoo.lenet, 28, 1),
    "resnet18": (torchvision.models.resnet18, 32, 3),
    "mobilenet_v2": (torchvision.models.mobilenet_v2, 32, 3),
    "densenet121": (torchvision.models.densenet121, 32, 3),
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["single", "double"])
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_come_back_bit_for_bit(name, dtype, tmp_path):
    if dtype == torch.float64 and name in ("densenet121", "mobilenet_v2"):
        pytest.skip("slow, and no different from the others")
    build, size, channels = NETWORKS[name]
    torch.manual_seed(0)
    model = build().to(dtype)
    model = randomise(model)
    data = data_for(size, samples=2, channels=channels, dtype=dtype)
    pruned = prune(model, data, "weight", keep=0.7, repair=None, schedule=Schedule(steps=2))
    pruned.save(tmp_path / "smaller")
    torch.manual_seed(5)
    fresh = build()
    before = {n: t.clone() for n, t in fresh.state_dict().items()}
    loaded = load(tmp_path / "smaller", fresh)
    assert torch.equal(loaded(data[0]), pruned.model(data[0]))
    assert all(torch.equal(t, fresh.state_dict()[n]) for n, t in before.items())
    assert not any(m.training for m in loaded.modules())
    assert next(loaded.parameters()).dtype == dtype


@pytest.fixture
def pruned():
    return prune(randomise(chain()), data_for(8), "weight", keep=0.6, schedule=Schedule(steps=2))


@pytest.fixture
def folder(pruned, tmp_path):
    pruned.save(tmp_path / "smaller", about={"model": "mine:chain"})
    return tmp_path / "smaller"


def test_the_folder_holds_plain_data_only(folder, pruned):
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(files) == {
        ".niwaki",
        "niwaki.json",
        "plan.json",
        "trajectory.json",
        "weights.safetensors",
    }
    weights = files.pop("weights.safetensors")
    header = int.from_bytes(weights[:8], "little")
    assert set(json.loads(weights[8 : 8 + header])) - {"__metadata__"} == set(
        pruned.model.state_dict()
    )
    for content in files.values():
        json.loads(content)
    for content in (weights, *files.values()):
        assert not content.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04"))
    about = json.loads(files["niwaki.json"])
    assert about["model"] == "mine:chain"
    assert about["input_shape"] == [3, 8, 8]
    assert about["settings"]["keep"] == 0.6


def test_a_failing_save_leaves_nothing(pruned, tmp_path, monkeypatch):
    def fail(model, path):
        with open(path, "wb") as file:
            file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(_pruned, "save_model", fail)
    with pytest.raises(OSError, match="no space is left"):
        pruned.save(tmp_path / "smaller")
    assert list(tmp_path.iterdir()) == []


def test_a_failing_overwrite_leaves_what_was_there(pruned, folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(path, content):
        raise OSError("no space left")

    monkeypatch.setattr(_pruned, "write_json", fail)
    with pytest.raises(OSError, match="no space is left"):
        pruned.save(folder, overwrite=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert list(folder.parent.iterdir()) == [folder]


def test_an_existing_folder_is_refused_unless_it_may_be_replaced(pruned, folder):
    (folder / "note.txt").write_text("mine")
    with pytest.raises(NiwakiError, match="exists and is not empty"):
        pruned.save(folder)
    with pytest.raises(NiwakiError, match=r"did not write 'note\.txt'"):
        pruned.save(folder, overwrite=True)
    assert (folder / "note.txt").exists()
    (folder / "note.txt").unlink()
    pruned.save(folder, overwrite=True)
    load(folder, chain())


@pytest.mark.parametrize(
    ("other", "lines"),
    [
        (lambda: chain(width=7), [r"0\.weight: saved \[6, 3, 3, 3\], given \[7, 3, 3, 3\]"]),
        (Residual, [r"0\.weight: saved \[6, 3, 3, 3\], given nothing"]),
        (lambda: nn.Sequential(*chain(), nn.Linear(3, 2)), [r"9\.weight: saved nothing, given"]),
    ],
    ids=["width", "architecture", "one layer more"],
)
def test_another_architecture_is_told_apart(folder, other, lines):
    for line in lines:
        with pytest.raises(WeightsError, match=line):
            load(folder, other())


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def edit(change):
    def damage(path):
        content = json.loads(path.read_text())
        content = change(content) or content
        path.write_text(json.dumps(content))

    return damage


def first_removal(**changes):
    return edit(lambda plan: plan[0][0].update(changes))


DAMAGE = {
    "no weights": ("weights.safetensors", lambda p: p.unlink(), WeightsError, "no file"),
    "cut weights": ("weights.safetensors", cut, WeightsError, "no readable"),
    "no plan": ("plan.json", lambda p: p.unlink(), ModelError, "no folder of a pruned"),
    "cut plan": ("plan.json", cut, ModelError, "no folder of a pruned"),
    "no record": ("niwaki.json", lambda p: p.unlink(), ModelError, "no folder of a pruned"),
    "list as record": ("niwaki.json", edit(lambda a: [1]), ModelError, "not names with values"),
    "later format": ("niwaki.json", edit(lambda a: a.update(format=2)), ModelError, "format 2"),
    "no shapes": ("niwaki.json", edit(lambda a: {"format": 1}), ModelError, "damaged"),
    "wrong type": ("niwaki.json", edit(lambda a: a.update(dtype="int")), ModelError, "damaged"),
    "wrong size": (
        "niwaki.json",
        edit(lambda a: a.update(input_shape=[3, 9, 20])),
        ModelError,
        "follow|damaged",
    ),
    "no list": ("plan.json", edit(lambda p: {"steps": p}), ModelError, "damaged"),
    "words": ("plan.json", first_removal(channels=["one"]), ModelError, "damaged"),
    "other layer": ("plan.json", first_removal(layer="conv"), ModelError, "damaged"),
    "no layer": ("plan.json", first_removal(layer="2"), ModelError, "damaged"),
    "many channels": ("plan.json", first_removal(channels=[99]), ModelError, "damaged"),
    "negative": ("plan.json", first_removal(channels=[-1]), ModelError, "damaged"),
    "all channels": ("plan.json", first_removal(channels=list(range(8))), ModelError, "damaged"),
    "fewer steps": ("plan.json", edit(lambda p: p[:1]), WeightsError, "does not fit"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_folder_is_a_clear_error(folder, kind):
    name, damage, error, message = DAMAGE[kind]
    damage(folder / name)
    with pytest.raises(error, match=message):
        load(folder, chain())


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(ModelError, match="no folder of a pruned network"):
        load(tmp_path / "nowhere", chain())
