"""Images in tar files and in Arrow files are what they are in a folder; what is broken is named."""

import io
import multiprocessing
import os
import pickle
import shutil
import tarfile
import tracemalloc
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from niwaki.data import Masks, Preprocessing, groups_named, open_data, read_places
from niwaki.errors import DataError, LeftOutWarning
from niwaki.runs import digest

COLOUR = Preprocessing(8, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
CLASSES = ("ant", "bee", "fly")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve photographs of three classes, of several kinds of files."""
    place = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number in range(12):
        name = place / CLASSES[number % 3] / f"{number:02}{('.png', '.jpg', '.webp')[number % 2]}"
        name.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9, 11, 3), np.uint8)).save(name, quality=90)
    return place


def pack(shard, members):
    """Write a tar file of names and bytes, in this order."""
    with tarfile.open(shard, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return shard


def members(files, *, label=lambda file: file.parent.name):
    for file in files:
        name = f"{file.parent.name}/{file.name}"
        yield name, file.read_bytes()
        yield f"{os.path.splitext(name)[0]}.json", b"{}"
        if (said := label(file)) is not None:
            yield f"{os.path.splitext(name)[0]}.cls", f"{said}\n".encode()


def files_of(folder):
    return sorted(folder.rglob("*.*"))


def png(size=(8, 8), colour=(255, 0, 0)):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def shards(tmp_path, folder):
    """The photographs in three tar files, uneven ones."""
    files = files_of(folder)
    for number, part in enumerate((files[:5], files[5:6], files[6:])):
        pack(tmp_path / f"part-{number:03}.tar", members(part))
    return f"webdataset:{tmp_path}/part-{{000..002}}.tar"


@pytest.fixture(scope="module")
def arrow(tmp_path_factory, folder):
    place = tmp_path_factory.mktemp("saved")
    files = files_of(folder)
    kinds = {"image": datasets.Image(), "kind": datasets.ClassLabel(names=list(CLASSES))}
    rows = {"image": list(map(str, files)), "kind": [file.parent.name for file in files]}
    table = datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))
    table.save_to_disk(str(place / "photos"))
    return f"hf:{place / 'photos'}"


@pytest.fixture(params=["tar", "arrow"])
def spec(request):
    return request.getfixturevalue({"tar": "shards", "arrow": "arrow"}[request.param])


def test_images_are_those_of_the_folder(spec, folder):
    plain, packed = open_data(folder, COLOUR), open_data(spec, COLOUR)
    assert packed.classes == plain.classes
    assert packed.targets == plain.targets
    assert [path.name for path in packed.paths] == [path.name for path in plain.paths]
    for number in (11, 0, 5, 5, 2):  # in any order
        torch.testing.assert_close(packed[number][0], plain[number][0], rtol=0, atol=0)
    assert digest(packed) == digest(plain)
    part = packed.subset([7, 3])
    torch.testing.assert_close(part[1][0], plain[3][0], rtol=0, atol=0)
    assert [path.name for path in part.paths] == [plain.paths[n].name for n in (7, 3)]
    assert digest(part) == digest(plain.subset([3, 7])) != digest(plain.subset([3, 6]))
    assert packed.paths == open_data(spec, COLOUR).paths  # by which a held-out part is told apart


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a single processor
def test_workers_read_at_once(spec, folder):
    data = open_data(spec, COLOUR)
    twin = pickle.loads(ForkingPickler.dumps(data))
    torch.testing.assert_close(twin[4], data[4])
    expected = torch.stack([x for x, _ in open_data(folder, COLOUR)])
    if "fork" in multiprocessing.get_all_start_methods():
        loader = DataLoader(data, 1, num_workers=2, multiprocessing_context="fork")
        found = torch.cat([x for x, _ in loader])
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_groups_and_masks_go_by_names(spec, folder, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    Image.new("L", (11, 9), 255).save(masks / "03.png")
    plain, packed = open_data(folder, COLOUR), open_data(spec, COLOUR)
    assert groups_named(packed, r"\d") == groups_named(plain, r"\d")
    for one, other in zip(Masks(packed, masks), Masks(plain, masks), strict=True):
        np.testing.assert_array_equal(one, other)


def test_names_say_the_tar_file_and_the_member(shards, tmp_path):
    packed = open_data(shards, COLOUR)
    assert packed.paths[5] == tmp_path / "part-001.tar" / "bee" / "04.png"
    assert packed.paths[-1] == packed.paths[11]
    assert read_places(shards) == [tmp_path / f"part-00{n}.tar" for n in range(3)]


def test_names_say_the_data_set_and_the_row(arrow):
    packed = open_data(arrow, COLOUR)
    assert str(packed.paths[5]) == f"{arrow.removeprefix('hf:')}/all/5/04.png"
    assert read_places(arrow) == [Path(arrow.removeprefix("hf:"))]


# Patterns and splits.


def test_patterns(tmp_path):
    for name in ("a-08", "a-09", "a-10", "b"):
        pack(tmp_path / f"{name}.tar", [(f"{name}.png", png())])

    def found(pattern):
        data = open_data(f"webdataset:{tmp_path}/{pattern}.tar", COLOUR)
        assert not data.labelled
        return [path.stem for path in data.paths]

    assert found("a-{08..10}") == ["a-08", "a-09", "a-10"]
    assert found("{b,a-{10..09}}") == ["b", "a-10", "a-09"]
    assert found("a-?[89]") == ["a-08", "a-09"]
    assert found("{b,*}") == ["b", "a-08", "a-09", "a-10"]
    with pytest.raises(DataError, match=r"2 of 4 shards are missing, the first is .*a-11\.tar"):
        found("a-{09..12}")
    with pytest.raises(DataError, match="shards are missing"):
        found("c-*")
    with pytest.raises(DataError, match="not on this machine"):
        open_data("webdataset:https://somewhere/a.tar", COLOUR)
    with pytest.raises(DataError, match="more than"):
        found("a-{0..99999999999}")


def labelled(*pairs):
    for number, label in pairs:
        yield f"{number}.png", png()
        yield f"{number}.cls", str(label).encode()


def test_splits_have_the_classes_of_the_training_part(tmp_path):
    pack(tmp_path / "train-0.tar", labelled((0, "fly"), (1, "bee")))
    pack(tmp_path / "train-1.tar", labelled((0, "bee")))
    pack(tmp_path / "val-0.tar", labelled((0, "ant"), (1, "fly")))
    spec = f"webdataset:{tmp_path}/{{split}}-*.tar"
    training, test = open_data(spec, COLOUR, split="train"), open_data(spec, COLOUR)
    assert (training.classes, training.targets) == (["bee", "fly"], [1, 0, 0])
    assert (test.classes, test.targets) == (["bee", "fly", "ant"], [2, 1])
    (tmp_path / "val-0.tar").unlink()
    with pytest.raises(DataError, match="no split 'test'; it has train"):
        open_data(spec, COLOUR)
    with pytest.raises(DataError, match="there are no shards"):
        open_data(spec.replace("{split}", "none-{split}"), COLOUR)
    with pytest.raises(DataError, match="1 of 2 shards are missing"):  # not taken for no split
        open_data(f"webdataset:{tmp_path}/{{split}}-{{1..2}}.tar", COLOUR)


def test_numbers_of_classes_are_in_the_order_of_numbers(tmp_path):
    pack(tmp_path / "a.tar", labelled((0, 10), (1, 9), (2, 0)))
    data = open_data(f"webdataset:{tmp_path}/a.tar", COLOUR)
    assert (data.classes, data.targets) == (["0", "9", "10"], [2, 1, 0])
    assert data.numbered(12).targets == [10, 9, 0]
    assert open_data(f"webdataset:{tmp_path}/a.tar", COLOUR, classes=list("abcdefghijk")).targets


# What is broken.


def refused(tmp_path, content, match):
    pack(tmp_path / "a.tar", content)
    with pytest.raises(DataError, match=match):
        open_data(f"webdataset:{tmp_path}/a.tar", COLOUR)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ([("a.txt", b"x")], "no image in 1 shards"),
        ([("a.png", b"")], r"'a.png' in .*a\.tar is empty"),
        ([("a.png", png()), ("a.jpg", png())], "sample 'a' .* has 2 images"),
        ([("a.png", png()), ("a.png", png())], "two members 'a.png'"),
        ([("a.png", png()), ("b.png", png()), ("a.png", png())], "two samples 'a'"),
        ([("a.cls", b"1"), ("b.png", png())], "'a' .* has a class and no image"),
        ([("a.v2.png", png())], "only 'a.v2.png': what follows the first dot"),
        ([("a.png", png()), ("a.cls", b" \n")], "'a.cls' .* holds no class"),
        ([("a.png", png()), ("a.cls", b"\xff\xfe")], "'a.cls' .* holds no class"),
        ([*labelled((0, 1)), ("d/a.png", png())], r"1 of 2 images have no class.*a\.tar/d/a\.png"),
        ([("a.png", png()), ("b.png", png()), ("a.cls", b"1")], "'a' .* has a class and no image"),
    ],
)
def test_samples_that_are_no_samples(content, match, tmp_path):
    refused(tmp_path, content, match)


def test_what_is_left_out_is_told(tmp_path):
    content = [("a.png", png()), ("a.seg.png", png()), ("._a.png", b"x"), ("b.heic", b"x")]
    pack(tmp_path / "a.tar", content)
    with pytest.warns(LeftOutWarning) as told:
        assert len(open_data(f"webdataset:{tmp_path}/a.tar", COLOUR)) == 1
    said = " ".join(str(one.message) for one in told)
    assert "1 hidden image files" in said
    assert "1 .heic files" in said


def test_torn_at_any_byte_it_is_refused(tmp_path):
    whole = pack(tmp_path / "whole.tar", labelled((0, 0), (1, 1))).read_bytes()
    needed = len(whole.rstrip(b"\0")) + 512  # rounded up, with a block of zeros at its end
    torn = tmp_path / "torn.tar"
    for end in range(0, -(-needed // 512) * 512, 37):
        torn.write_bytes(whole[:end])
        with pytest.raises(DataError, match=r"torn\.tar"):
            open_data(f"webdataset:{torn}", COLOUR)
    torn.write_bytes(whole + whole)
    with pytest.raises(DataError, match="another tar file was appended"):
        open_data(f"webdataset:{torn}", COLOUR)
    damaged = bytearray(whole)
    damaged[2048:2060] = b"x" * 12  # a header
    torn.write_bytes(damaged)
    with pytest.raises(DataError, match="damaged behind byte 2048"):
        open_data(f"webdataset:{torn}", COLOUR)


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_compressed_it_is_refused(kind, tmp_path):
    with tarfile.open(tmp_path / "a.tar", f"w:{kind}") as tar:
        tar.addfile(tarfile.TarInfo("a.png"))
    with pytest.raises(DataError, match="is compressed"):
        open_data(f"webdataset:{tmp_path}/a.tar", COLOUR)


def test_a_link_is_no_image(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = tarfile.SYMTYPE, "b.png"
        tar.addfile(link)
    with pytest.raises(DataError, match=r"'a.png' .* is a link"):
        open_data(f"webdataset:{tmp_path}/a.tar", COLOUR)


def test_a_broken_image_is_named_and_so_is_a_tar_file_that_changes(tmp_path):
    place = pack(tmp_path / "a.tar", [("x/a.png", png()), ("x/b.png", png()[:50])])
    data = open_data(f"webdataset:{place}", COLOUR)
    assert data[0][1] == -1
    with pytest.raises(DataError, match=r"cannot read the image .*a\.tar/x/b\.png"):
        data[1]
    pack(place, [("x/b.png", png(colour=(0, 0, 0))), ("x/a.png", png())])
    with pytest.raises(DataError, match=r"a\.tar has changed since it was opened"):
        data[0]


def test_long_names_and_folders(tmp_path):
    name = "./" + "d" * 90 + "/" + "é" * 80
    pack(tmp_path / "a.tar", [(f"{name}.PNG", png()), (f"{name}.cls", b"7")])
    data = open_data(f"webdataset:{tmp_path}/a.tar", COLOUR)
    assert data.paths[0] == tmp_path / "a.tar" / f"{name}.PNG"
    assert data.classes == ["7"]


@pytest.mark.slow
def test_an_image_takes_some_bytes_of_memory(tmp_path):
    for number in range(20):
        pack(tmp_path / f"{number:02}.tar", labelled(*((n, n % 7) for n in range(100))))
    tracemalloc.start()
    data = open_data(f"webdataset:{tmp_path}/*.tar", COLOUR)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(data) == 2000
    assert kept / len(data) < 80
    assert peak - kept < 3e5  # what is known of a single tar file meanwhile


# Arrow files.


def saved(place, rows, **kinds):
    features = datasets.Features({"image": datasets.Image(), **kinds})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(place))
    return f"hf:{place}"


def row(content=None, path=None):
    return {"bytes": content, "path": path}


def test_splits_of_a_saved_data_set(tmp_path, folder):
    kinds = datasets.Features(
        {"image": datasets.Image(), "y": datasets.ClassLabel(names=["a", "b"])}
    )
    parts = {
        name: datasets.Dataset.from_dict({"image": [row(png())] * n, "y": [1] * n}, features=kinds)
        for name, n in (("train", 3), ("validation", 2))
    }
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "both"))
    spec = f"hf:{tmp_path / 'both'}"
    assert len(open_data(spec, COLOUR, split="train")) == 3
    assert len(open_data(spec, COLOUR)) == 2
    assert len(open_data(f"{spec}:train", COLOUR)) == 3
    assert open_data(spec, COLOUR).targets == [1, 1]
    with pytest.raises(DataError, match="no split 'none'; it has train, validation"):
        open_data(f"{spec}:none", COLOUR)


def test_rows_without_a_class(tmp_path):
    kind = datasets.ClassLabel(names=["a", "b"])
    rows = {"image": [row(png())] * 3, "y": [-1, -1, -1]}
    assert not open_data(saved(tmp_path / "hidden", rows, y=kind), COLOUR).labelled
    with pytest.raises(DataError, match=r"1 of 3 rows .* have no class, the first is row 1"):
        open_data(saved(tmp_path / "some", {**rows, "y": [1, None, 0]}, y=kind), COLOUR)


def test_what_is_no_data_set_of_images(tmp_path):
    images = [row(png()), row(png()[:50]), None]
    data = open_data(saved(tmp_path / "broken", {"image": images}), COLOUR)
    assert data[0][1] == -1
    with pytest.raises(DataError, match=r"cannot read the image .*/broken/all/1"):
        data[1]
    with pytest.raises(DataError, match="/broken/all/2 has no image"):
        data[2]
    text = datasets.Value("string")
    with pytest.raises(DataError, match=r"'label' of .* is no ClassLabel"):
        open_data(
            saved(tmp_path / "text", {"image": images, "label": list("abc")}, label=text), COLOUR
        )
    two = {"image": images, "other": images}
    with pytest.raises(DataError, match="2 columns of the kind Image: image, other"):
        open_data(saved(tmp_path / "two", two, other=datasets.Image()), COLOUR)
    datasets.Dataset.from_dict({"text": ["x"]}).save_to_disk(str(tmp_path / "none"))
    with pytest.raises(DataError, match=r"no column of images; it has text \(Value\)"):
        open_data(f"hf:{tmp_path / 'none'}", COLOUR)


def test_what_cannot_be_loaded_is_told(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"hf:.* cannot be loaded: .*"):
        open_data(f"hf:{tmp_path}", COLOUR)
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'niwaki\[datasets\]'"):
        open_data("hf:beans", COLOUR)


def test_files_outside_the_data_set(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    photos = tmp_path / "photos"
    shutil.copytree(folder, photos)
    plain, packed = open_data(photos, COLOUR), open_data(f"hf:{photos}", COLOUR)
    assert packed.classes == plain.classes
    assert packed.targets == plain.targets
    assert digest(packed) == digest(plain)
    plain.paths[4].unlink()
    with pytest.raises(DataError, match=f"/4/{plain.paths[4].name} .* cannot be read"):
        packed[4]


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind", ["grey of 16 bits", "transparent", "print colours"])
def test_a_mode_that_the_data_set_wants_is_reached_as_files_are_read(tmp_path, kind, mode):
    levels = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    colours = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    image = {
        "grey of 16 bits": Image.fromarray(levels),
        "transparent": Image.fromarray(colours),
        "print colours": Image.fromarray(colours[..., :3]).convert("CMYK"),
    }[kind]
    file = tmp_path / ("x.tif" if kind == "print colours" else "x.png")
    image.save(file)
    features = datasets.Features({"image": datasets.Image(mode=mode)})
    table = datasets.Dataset.from_dict({"image": [row(file.read_bytes())]}, features=features)
    table.save_to_disk(str(tmp_path / "saved"))
    look = COLOUR if mode == "RGB" else Preprocessing(8, mean=(0,), std=(1,), channels=1)
    found, expected = (open_data(spec, look)[0][0] for spec in (f"hf:{tmp_path}/saved", file))
    assert torch.equal(found, expected)
