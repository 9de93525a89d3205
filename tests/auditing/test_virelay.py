"""Collected heatmaps: their layout, their project file, and going on after an interruption."""

import json

import h5py
import numpy as np
import pytest
import torch
import yaml
from audit_networks import inputs_of, looking

from niwaki.attribution import create
from niwaki.auditing import (
    Collection,
    collect,
    find_strategies,
    gather,
    write_analysis,
    write_project,
)
from niwaki.data import Described
from niwaki.errors import DataError


@pytest.fixture(scope="module")
def model():
    return looking(torch.full((64, 64), 0.002))


@pytest.fixture(scope="module")
def project(model, tiles, tmp_path_factory):
    folder = tmp_path_factory.mktemp("virelay")
    images = tiles.images()
    collect(model, images, folder, method="lrp.epsilon", batch_size=64)
    material = gather(model, images, method="lrp.epsilon")
    write_analysis(folder, material, find_strategies(material))
    write_project(folder, method="lrp.epsilon", target="predicted", model="looking")
    return folder


def test_layout_is_that_of_virelay(project, tiles, model):
    with h5py.File(project / "attribution.h5") as file:
        assert file["attribution"].shape == (200, 3, 64, 64)
        assert file["prediction"].shape == (200, 2)
        assert file["label"].shape == (200,)
        assert file["index"][:].tolist() == list(range(200))
    with h5py.File(project / "data.h5") as file:
        assert np.abs(file["data"][:].astype(int) - tiles.pixels.transpose(0, 3, 1, 2)).max() <= 1
        assert file["data"].dtype == np.uint8
        assert np.array_equal(file["label"][:], tiles.labels)
    with h5py.File(project / "analysis.h5") as file:
        assert sorted(file) == ["00000000", "00000001"]
        group = file["00000001"]
        assert sorted(group) == ["cluster", "embedding", "index"]
        count = len(group["index"])
        assert set(tiles.labels[group["index"][:]]) == {1}
        assert group["cluster/spectral-place"].shape == (count,)
        assert group["embedding/tsne-place"].shape == (count, 2)
        assert len(group["embedding/spectral-place"]) == count
        assert len(group["embedding/spectral-place"].attrs["eigenvalue"]) > 5
    names = json.loads((project / "label-map.json").read_text())
    assert [row["name"] for row in names] == ["normal", "tumour"]
    assert [row["index"] for row in names] == [0, 1]


def test_heatmaps_are_those_of_the_method(project, tiles, model):
    collection = Collection(project)
    inputs, _ = inputs_of(tiles)
    expected = create("lrp.epsilon", model).attribute(inputs[64:70])
    found = collection.read("attribution", 64, 70)
    assert np.allclose(found, expected.numpy(), atol=1e-6)
    assert len(collection) == 200
    assert "lrp.epsilon" in repr(collection)
    with pytest.raises(DataError, match="attribution"):
        collection.read("heatmap")


def test_the_project_file_leads_to_all_that_virelay_shows(project, tiles):
    """Follow it as ViRelAy's loader does, by hand."""
    said = yaml.safe_load((project / "project.yaml").read_text())["project"]
    keys = json.loads((project / said["label_map"]).read_text())
    assert said["dataset"]["type"] == "hdf5"
    with h5py.File(project / said["dataset"]["path"]) as file:
        assert file["data"].shape == (200, 3, 64, 64)
        assert keys[file["label"][3]]["name"] == ["normal", "tumour"][tiles.labels[3]]
    assert said["attributions"]["attribution_strategy"] == "predicted_label"
    assert said["attributions"]["attribution_method"] == "lrp.epsilon"
    (source,) = said["attributions"]["sources"]
    with h5py.File(project / source) as file:
        assert {len(file[name]) for name in ("attribution", "prediction", "label", "index")} == {
            200
        }
    (analysis,) = said["analyses"]
    assert analysis["analysis_method"] == "spectral"
    with h5py.File(project / analysis["sources"][0]) as file:
        assert sorted(file) == sorted(row["word_net_id"] for row in keys)
        of_class = file[keys[1]["word_net_id"]]
        assert of_class["embedding/tsne-place"].shape == (100, 2)
        base = of_class["embedding/tsne-place"].attrs["embedding"]
        assert len(of_class["embedding"][base]) == len(of_class["cluster"][base]) == 100


class Interrupted(torch.utils.data.Dataset):
    """Fails once, at an image that is read for the given time."""

    def __init__(self, images, at, look):
        self.images, self.at, self.look, self.read = images, at, look, []
        self.preprocessing, self.targets = images.preprocessing, images.targets
        self.classes = images.classes

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if index == self.at:
            self.look -= 1
            if self.look == 0:
                raise RuntimeError("the power went off")
        self.read.append(index)
        return self.images[index]


def test_a_run_that_was_cut_off_goes_on(model, tiles, tmp_path, monkeypatch):
    images = tiles.select(range(50)).images()
    looks = Interrupted(images, at=37, look=0)
    collect(model, looks, tmp_path / "none", method="gradient", batch_size=10)
    data = Interrupted(images, at=37, look=looks.read.count(37))  # when it is explained
    with pytest.raises(RuntimeError, match="power"):
        collect(model, data, tmp_path / "one", method="gradient", batch_size=10)
    assert not (tmp_path / "one" / "attribution.h5").exists()
    explained = []
    attribute = type(create("gradient", model)).attribute

    def counted(self, inputs, *args):
        explained.append(len(inputs))
        return attribute(self, inputs, *args)

    monkeypatch.setattr(type(create("gradient", model)), "attribute", counted)
    done = collect(model, data, tmp_path / "one", method="gradient", batch_size=10)
    assert explained == [10, 10]  # the first three batches were there
    whole = collect(model, images, tmp_path / "two", method="gradient")
    for name in ("attribution", "prediction", "label", "index", "data"):
        assert np.allclose(done.read(name), whole.read(name), atol=1e-6)
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == [
        "attribution.h5", "data.h5", "label-map.json", "project.yaml"
    ]  # fmt: skip


def unfinished(model, data, folder, **options):
    """Collect until the last batch, which fails."""
    looks = Interrupted(data, at=len(data) - 1, look=0)
    collect(model, looks, folder / "all", method="gradient", batch_size=10)
    cut = Interrupted(data, at=len(data) - 1, look=looks.read.count(len(data) - 1))
    with pytest.raises(RuntimeError):
        collect(model, cut, folder / "cut", method="gradient", batch_size=10, **options)


class Changed(torch.utils.data.Dataset):
    """The same images but for one pixel of the last."""

    def __init__(self, images):
        self.images, self.preprocessing = images, images.preprocessing
        self.classes = images.classes

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        inputs, label = self.images[index]
        if index == len(self) - 1:
            inputs = inputs.clone()
            inputs[0, 0, 0] += 1
        return inputs, label


def test_another_run_does_not_go_on_with_it(model, tiles, tmp_path):
    images = tiles.select(range(30)).images()
    unfinished(model, images, tmp_path)
    with pytest.raises(DataError, match=r"another setting:\n  method: there 'gradient \["):
        collect(model, images, tmp_path / "cut", method="lrp.epsilon", batch_size=10)
    with pytest.raises(DataError, match="another data"):
        collect(model, Changed(images), tmp_path / "cut", method="gradient", batch_size=10)
    named = Described(images, class_names="xy")
    with pytest.raises(DataError, match="class_names"):
        collect(model, named, tmp_path / "cut", method="gradient", batch_size=10)


def test_flipped_bits_are_found(model, tiles, tmp_path):
    images = tiles.select(range(20)).images()
    unfinished(model, images, tmp_path)
    [part] = (tmp_path / "cut" / "unfinished").glob("batch*")
    content = part.read_bytes()
    middle = len(content) // 2
    part.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    done = collect(model, images, tmp_path / "cut", method="gradient", batch_size=10)
    whole = Collection(tmp_path / "all")
    assert np.array_equal(done.read("attribution"), whole.read("attribution"))
    for name in ("attribution", "data"):
        path = done.folder / f"{name}.h5"
        content = path.read_bytes()
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        with pytest.raises(DataError, match="damaged"):
            done.read(name)


def test_a_finished_collection_stays(model, tiles, tmp_path):
    images = tiles.select(range(12)).images()
    collect(model, images, tmp_path, method="gradient", target=1)
    with pytest.raises(DataError, match="overwrite"):
        collect(model, images, tmp_path, method="gradient")
    again = collect(model, images, tmp_path, method="gradient", target="true", overwrite=True)
    assert again.about["target"] == "true"
    with pytest.raises(ValueError, match="predicted"):
        collect(model, images, tmp_path / "x", target="largest")
