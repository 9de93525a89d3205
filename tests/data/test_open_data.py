"""open_data: every form of a data spec, and what is said of the wrong ones."""

import pickle
import struct
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image

from niwaki.data import Preprocessing, names, open_data, register
from niwaki.datasets import DIGITS
from niwaki.errors import DataError

COLOUR = Preprocessing(8, mean=(0, 0, 0), std=(1, 1, 1))
GREY = Preprocessing(28, mean=(0,), std=(1,), channels=1)


def fill(folder, *files, colour=(255, 0, 0)):
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        Image.new("RGB", (8, 8), colour).save(folder / file)


@pytest.fixture
def classes(tmp_path):
    fill(tmp_path / "b", "1.png", "0.PNG")
    fill(tmp_path / "a" / "deeper", "2.jpg")
    fill(tmp_path / ".hidden", "3.png")
    (tmp_path / "a" / "notes.csv").write_text("x")
    return tmp_path


def test_folder_for_each_class(classes):
    data = open_data(classes, COLOUR)
    assert data.classes == ["a", "b"]
    assert data.targets == [0, 1, 1]
    assert [path.name for path in data.paths] == ["2.jpg", "0.PNG", "1.png"]
    assert data.labelled
    assert data[1][1] == 1
    torch.testing.assert_close(data[1][0][:, 0, 0], torch.tensor([1.0, 0, 0]))
    assert len(list(data)) == len(data) == 3
    assert "3 images, 2 classes" in repr(data)


@pytest.mark.parametrize("spec", ["digits", "folder", "MNIST"])
def test_workers_can_be_started_anew(tmp_path, classes, spec):
    """As macOS, Windows and Python 3.14 do it: everything goes to them through pickle."""
    write_mnist(tmp_path, "train", bytes([3, 1, 2]))
    write_mnist(tmp_path, "t10k", bytes([9, 7]))
    spec = {"folder": classes / "b", "MNIST": "torchvision:MNIST"}.get(spec, spec)
    data = open_data(spec, GREY, root=tmp_path)
    twin = pickle.loads(ForkingPickler.dumps(data))
    torch.testing.assert_close(twin[1], data[1])


def test_outputs_map_classes_to_labels(classes):
    data = open_data(classes, COLOUR, outputs=[217, 5])
    assert data.targets == [217, 5, 5]
    assert data.class_name(5) == "b"
    assert data.class_name(6) == "6"
    with pytest.raises(DataError, match=r"1 entries for 2 classes \(a, b\)"):
        open_data(classes, COLOUR, outputs=[1])
    with pytest.raises(DataError, match="outputs has -1"):
        open_data(classes, COLOUR, outputs=[0, -1])


@pytest.mark.parametrize(
    ("present", "split", "expected"),
    [
        (["train", "test"], "test", "test"),
        (["train", "val"], "test", "val"),
        (["train", "test"], "val", "test"),
        (["train", "val"], "train", "train"),
    ],
)
def test_split_folders(tmp_path, present, split, expected):
    for name in present:
        fill(tmp_path / name / "a", "0.png")
    data = open_data(tmp_path, COLOUR, split=split)
    assert list(data.paths) == [tmp_path / expected / "a" / "0.png"]


def test_absent_split_is_named(tmp_path):
    fill(tmp_path / "test" / "a", "0.png")
    with pytest.raises(DataError, match="no split 'train'; it has test"):
        open_data(tmp_path, COLOUR, split="train")


def test_images_without_labels(tmp_path):
    fill(tmp_path, "0.png", "1.png")
    for spec, number in ((tmp_path, 2), (tmp_path / "1.png", 1)):
        data = open_data(spec, COLOUR)
        assert not data.labelled
        assert data.classes == []
        assert [label for _, label in data] == [-1] * number
        with pytest.raises(DataError, match="no labels"):
            open_data(spec, COLOUR, outputs=[1])


def test_empty_folders_are_named(classes):
    (classes / "c").mkdir()
    with pytest.raises(DataError, match=r"1 of 3 class folders .* the first is 'c'"):
        open_data(classes, COLOUR)
    with pytest.raises(DataError, match=r"no image in .*c; images end in"):
        open_data(classes / "c", COLOUR)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_broken_image_is_named_when_read(tmp_path, suffix):
    fill(tmp_path, f"whole.{suffix}")
    content = (tmp_path / f"whole.{suffix}").read_bytes()
    (tmp_path / f"cut.{suffix}").write_bytes(content[: len(content) // 2])
    (tmp_path / f"text.{suffix}").write_text("no image")
    data = open_data(tmp_path, COLOUR)
    order = {path.stem: index for index, path in enumerate(data.paths)}
    assert data[order["whole"]][0].shape == (3, 8, 8)
    for stem in ("cut", "text"):
        with pytest.raises(DataError, match=rf"cannot read the image .*{stem}\.{suffix}"):
            data[order[stem]]


def test_unknown_spec_lists_the_valid_forms():
    with pytest.raises(DataError, match=r"'nothing/here'; valid are digits, .*torchvision:NAME"):
        open_data("nothing/here", COLOUR)
    with pytest.raises(DataError, match="pass a Preprocessing"):
        open_data(".")


def test_digits():
    train, test = open_data("digits", split="train"), open_data("digits")
    assert (len(train), len(test)) == (1200, 597)
    assert test.preprocessing is DIGITS
    counts = np.bincount(train.targets) / 1200 - np.bincount(test.targets) / 597
    assert abs(counts).max() < 0.002
    from sklearn.datasets import load_digits

    raw = load_digits()
    originals = {
        (row.astype(int).tobytes(), label) for row, label in zip(raw.data, raw.target, strict=True)
    }
    restored = set()
    for data in (train, test):
        for inputs, label in data:
            levels = (DIGITS.denormalise(inputs) * 16).round().int().flatten()
            restored.add((levels.numpy().astype(int).tobytes(), label))
    assert restored == originals
    normalised = torch.stack([inputs for inputs, _ in train])
    assert abs(normalised.mean()) < 0.02
    assert abs(normalised.std() - 1) < 0.02
    with pytest.raises(DataError, match="no split 'dev'"):
        open_data("digits", split="dev")


def test_register_adds_a_name_once():
    assert "digits" in names()
    with pytest.raises(ValueError, match="'digits' is registered already"):
        register("digits")(lambda preprocessing, split: open_data("digits", preprocessing))


def write_mnist(root, stem, labels):
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    size = len(labels)
    images = bytes(range(256)) * (28 * 28 * size // 256 + 1)
    head = struct.pack(">IIII", 0x803, size, 28, 28)
    (folder / f"{stem}-images-idx3-ubyte").write_bytes(head + images[: 28 * 28 * size])
    (folder / f"{stem}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, size) + labels)


def test_torchvision_data_already_there(tmp_path):
    write_mnist(tmp_path, "train", bytes([3, 1, 2]))
    write_mnist(tmp_path, "t10k", bytes([9, 7]))
    data = open_data("torchvision:MNIST", GREY, root=tmp_path)
    assert data.targets == [9, 7]
    assert data.classes[9] == "9 - nine"
    expected, label = torchvision.datasets.MNIST(tmp_path, train=False)[1]
    torch.testing.assert_close(data[1][0], GREY(expected))
    assert data[1][1] == label
    assert open_data("torchvision:MNIST", GREY, split="train", root=tmp_path).targets == [3, 1, 2]
    with pytest.raises(DataError, match="no split 'dev'"):
        open_data("torchvision:MNIST", GREY, split="dev", root=tmp_path)


class Named(torch.utils.data.Dataset):
    """Shaped like Imagenette: a split named "val", pairs in `_samples`, synonyms as classes."""

    classes = (("tench", "Tinca tinca"), ("church", "church building"))

    def __init__(self, root, split="train", download=False):
        if split not in ("train", "val"):
            raise ValueError(f"Unknown value '{split}' for argument split.")
        if not download:
            raise RuntimeError("Dataset not found.")
        if root.name == "offline":
            raise OSError("no connection")
        self._samples = [("x.png", 1), ("y.png", 0)]

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return Image.new("RGB", (8, 8)), self._samples[index][1]


def test_torchvision_data_downloads_and_falls_back_to_val(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "Named", Named, raising=False)
    data = open_data("torchvision:Named", COLOUR, root=tmp_path)
    assert data.targets == [1, 0]
    assert data.classes == ["tench", "church"]
    with pytest.raises(DataError, match="Unknown value 'dev'"):
        open_data("torchvision:Named", COLOUR, split="dev", root=tmp_path)
    with pytest.raises(DataError, match="no connection; without a connection"):
        open_data("torchvision:Named", COLOUR, root=tmp_path / "offline")


def test_unknown_torchvision_data_are_named(tmp_path):
    for name in ("Cifar10", "vision", ""):
        with pytest.raises(DataError, match=f"no data set '{name}'"):
            open_data(f"torchvision:{name}", COLOUR, root=tmp_path)
