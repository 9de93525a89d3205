"""Run folders: one record, one owner, and an identity that covers everything."""

import json
import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from niwaki.errors import DataError, NiwakiError
from niwaki.files import clear_leftovers, new_folder, read_layers, write_layers
from niwaki.models import fingerprint
from niwaki.runs import described, digest, discard, open_run


def identity(**settings):
    return lambda: {"model": "m", **settings}


def content(folder):
    return sorted(path.name for path in folder.rglob("*"))


# The folder.


def test_parts_are_there_again(tmp_path):
    with open_run(tmp_path / "deep" / "run", identity()) as run:
        assert run.read("sums") is None
        run.write("sums", {"a": torch.arange(3)}, step=1)
        run.write("b/c: ü", words=["x", None, 2.5], layers=["a"], about=1)
        run.write("sums", {"a": torch.arange(4)}, step=2)
    with open_run(tmp_path / "deep" / "run", identity()) as run:
        assert run.parts == ["sums", "b/c: ü"]
        part = run.read("sums")
        assert part.tensors["a"].tolist() == [0, 1, 2, 3]
        assert part.about == {"step": 2}
        assert run.read("b/c: ü").about == {"words": ["x", None, 2.5], "layers": ["a"], "about": 1}
        run.drop("b/c: ü")
    assert len(content(tmp_path / "deep" / "run")) == 2  # the record, and the part that is left
    discard(tmp_path / "deep" / "run")
    assert content(tmp_path) == ["deep"]


def test_without_a_folder_nothing_is_kept():
    with open_run(None, lambda: pytest.fail("needless")) as run:
        run.write("a", x=1)
        assert run.read("a") is None


def test_nothing_is_left_where_nothing_was_finished(tmp_path):
    with pytest.raises(ZeroDivisionError), open_run(tmp_path / "a" / "b", identity()):
        raise ZeroDivisionError
    assert content(tmp_path) == []


@pytest.mark.parametrize("which", ["part", "record"])
def test_any_flipped_bit_makes_it_unfinished(tmp_path, which):
    with open_run(tmp_path, identity()) as run:
        run.write("a", {"x": torch.randn(20)}, step=3)
        run.write("other", step=4)
    [file] = tmp_path.glob("a.*" if which == "part" else "niwaki-run.json")
    whole = file.read_bytes()
    for position in range(0, len(whole), 7):
        kept = {path: path.read_bytes() for path in tmp_path.iterdir()}
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        with open_run(tmp_path, identity()) as run:
            assert run.read("a") is None, position
            assert (run.read("other") is None) == (which == "record")
        for path, before in kept.items():
            path.write_bytes(before)


def test_another_identity_is_refused_and_named(tmp_path):
    with open_run(tmp_path, identity(keep=0.5, data="A")) as run:
        run.write("a", x=1)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    says = r"another setting and data:\n  keep: there 0.5, now 0.4\n  data: there 'A', now 'B'"
    with pytest.raises(DataError, match=says), open_run(tmp_path, identity(keep=0.4, data="B")):
        pass
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}


def test_what_is_left_out_is_not_none(tmp_path):
    for number, (there, here, says) in enumerate(
        [({}, {"repair": None}, "left out, now None"), ({"repair": None}, {}, "None, now left out")]
    ):
        with open_run(tmp_path / str(number), identity(**there)) as run:
            run.write("a")
        with pytest.raises(DataError, match=f"repair: there {says}"):
            open_run(tmp_path / str(number), identity(**here)).__enter__()


def test_foreign_folders_stay(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match=r"holds 'thesis\.tex'"), open_run(tmp_path, identity()):
        pass
    with pytest.raises(DataError, match=r"holds 'thesis\.tex'"):
        discard(tmp_path)
    with pytest.raises(DataError, match="a file"), open_run(tmp_path / "thesis.tex", identity()):
        pass
    assert content(tmp_path) == ["thesis.tex"]


# The owner.


@pytest.mark.slow
def test_a_second_process_is_told_at_once(tmp_path):
    code = (
        "import sys; from niwaki.runs import open_run\n"
        "with open_run(sys.argv[1], dict) as run:\n"
        "    run.write('a', x=1); print('in', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"in\n"
        with pytest.raises(NiwakiError, match=f"in use by process {other.pid} on .* for 0 s"):  # noqa: SIM117
            with open_run(tmp_path, dict):
                pass
        with pytest.raises(NiwakiError, match="in use"):
            discard(tmp_path)
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert "niwaki.lock" in content(tmp_path)
    with open_run(tmp_path, dict) as run:  # the dead is succeeded
        assert run.read("a").about == {"x": 1}
        with pytest.raises(NiwakiError, match="this process itself"), open_run(tmp_path, dict):
            pass
    assert "niwaki.lock" not in content(tmp_path)


def test_children_of_the_dead_do_not_hold_it(tmp_path):
    """As workers of a data loader do, which live on for some seconds."""
    if not hasattr(os, "fork"):
        pytest.skip("no fork on this system")
    read, write = os.pipe()
    owner = os.fork()
    if owner == 0:
        with open_run(tmp_path, dict) as run:
            run.write("a", x=1)
            child = os.fork()
            if child == 0:
                os.read(read, 1)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(owner, 0)
    try:
        with open_run(tmp_path, dict) as run:
            assert run.read("a") is not None
    finally:
        os.write(write, b"x")


def test_only_who_holds_the_folder_changes_it(tmp_path):
    """A lock that a person deletes lets a second owner in; the first one then only reads."""

    def files():
        return {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    with open_run(tmp_path, dict) as first:
        first.write("a", x=1)
        first.write("b", x=1)
        [damaged] = tmp_path.glob("a.*")
        (tmp_path / "niwaki.lock").unlink()
        with open_run(tmp_path, dict) as second:
            second.write("b", x=2)  # the file that the first one knows is gone
            whole = damaged.read_bytes()
            damaged.write_bytes(whole[:-1])
            before = files()
            assert first.read("a") is None
            assert first.read("b") is None
            with pytest.raises(NiwakiError, match="not held by this process"):
                first.write("c", x=1)
            with pytest.raises(NiwakiError, match="not held by this process"):
                first.drop("a")
            assert files() == before
            damaged.write_bytes(whole)
            assert first.read("a").about == second.read("a").about == {"x": 1}
            assert second.read("b").about == {"x": 2}
    with open_run(tmp_path, dict) as run:
        assert run.parts == ["a", "b"]
    damaged.write_bytes(whole[:-1])
    before = files()
    assert run.read("a") is None  # closed
    assert files() == before
    with open_run(tmp_path, dict) as run:
        assert run.read("a") is None
        assert not damaged.exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_child_does_not_hold_the_folder_of_its_parent(tmp_path):
    with open_run(tmp_path, dict) as run:
        run.write("a", x=1)
        [file] = tmp_path.glob("a.*")
        file.write_bytes(file.read_bytes()[:-1])
        child = os.fork()
        if child == 0:
            os._exit(0 if run.read("a") is None and file.exists() else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert run.read("a") is None
        assert not file.exists()


# What a writer that was killed leaves.


def killed(write, folder):
    """Run something in a child that kills itself at the given moment."""
    child = os.fork()
    if child == 0:
        write(folder)
        os._exit(1)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_leftovers_of_the_dead_are_cleared(tmp_path):
    def half(folder):
        with new_folder(folder / "out") as aside:
            (aside / "part").write_text("half")
            die()

    killed(half, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    with new_folder(tmp_path / "living"):
        living = [path.name for path in tmp_path.iterdir() if ".living." in path.name]
        clear_leftovers(tmp_path)  # all that is not being written
        assert [path.name for path in tmp_path.iterdir()] == living
    killed(half, tmp_path)
    with new_folder(tmp_path / "out") as aside:
        (aside / "part").write_text("whole")
    assert content(tmp_path) == ["living", "out", "part"] or content(tmp_path)[0] == ".niwaki"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_killed_between_two_renames_the_old_folder_comes_back(tmp_path, monkeypatch):
    with new_folder(tmp_path / "out") as aside:
        (aside / "old").write_text("precious")
    rename = type(tmp_path).rename

    def once(path, target):
        if path.name != "out":
            die()
        return rename(path, target)

    def replace(folder):
        monkeypatch.setattr(type(tmp_path), "rename", once)
        with new_folder(folder / "out", overwrite=True) as aside:
            (aside / "new").write_text("x")

    killed(replace, tmp_path)
    assert not (tmp_path / "out").exists()
    with pytest.raises(NiwakiError, match="not empty"), new_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out" / "old").read_text() == "precious"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


# Files that a user loads.


def test_a_flipped_bit_in_a_file_is_refused(tmp_path):
    path = tmp_path / "scores.safetensors"
    shared = torch.randn(8)
    write_layers(path, {"b": shared, "a": shared[2:5]}, criterion="lrp", samples=7)
    whole = path.read_bytes()
    values, about = read_layers(path, lambda v, **about: (v, about), "scores")
    assert list(values) == ["b", "a"]
    assert about == {"criterion": "lrp", "samples": 7}
    for position in range(0, len(whole), 3):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        if whole[position] == ord(" "):
            continue  # fills the head up
        with pytest.raises(DataError, match="holds no scores"):
            read_layers(path, lambda *_, **__: pytest.fail("accepted"), "scores")


def test_equal_files_are_equal_byte_for_byte(tmp_path):
    for number in range(8):
        values = {"b": torch.arange(5.0), "a": torch.arange(3)}
        write_layers(tmp_path / f"{number}.safetensors", values, criterion="lrp", samples=7)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


# The identity.


def data_for(samples=6):
    torch.manual_seed(0)
    return torch.randn(samples, 3, 8, 8), torch.arange(samples) % 3


def test_a_digest_is_of_the_samples_not_of_their_order():
    images, labels = data_for()
    same = digest((images, labels))
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    assert digest((images[order], labels[order])) == same
    assert digest(DataLoader(TensorDataset(images, labels), batch_size=4, shuffle=True)) == same
    in_order = digest((images, labels), ordered=True)
    assert digest((images[order], labels[order]), ordered=True) != in_order
    assert digest(DataLoader(TensorDataset(images, labels), batch_size=4), ordered=True) == in_order
    changed = images.clone()
    changed[2, 1, 3, 3] += 1e-6
    for other in [
        (changed, labels),
        (images, labels[order]),
        (images[:5], labels[:5]),
        (images.double(), labels),
        (images.flatten(2), labels),
    ]:
        assert digest(other) != same
        assert digest(other, ordered=True) != in_order


@pytest.mark.parametrize("place", [0, 17, 99])
def test_every_sample_counts(place):
    images, labels = data_for(100)
    same = digest((images, labels))
    images[place, 0, 0, 0] += 1
    assert digest((images, labels)) != same


class Augmented(Dataset):
    def __init__(self, draw, scale=1.0):
        self.draw, (self.images, self.labels) = draw, data_for()
        self.images = self.images * scale

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index] + self.draw(), int(self.labels[index])


@pytest.mark.parametrize(
    "draw",
    [lambda: torch.rand(()), random.random, lambda: float(np.random.rand())],  # noqa: NPY002
    ids=["torch", "random", "numpy"],
)
def test_augmentation_is_the_same_in_each_digest_and_goes_on_as_if_there_was_none(draw):
    first, then = digest(Augmented(draw)), None
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    expected = draw()
    torch.set_rng_state(state[0])
    random.setstate(state[1])
    np.random.set_state(state[2])  # noqa: NPY002
    assert digest(Augmented(draw)) == first
    then = draw()
    assert then == expected
    assert digest(Augmented(draw, 2.0)) != first
    generator = np.random.default_rng(0)
    own = [digest(Augmented(generator.random)) for _ in range(2)]
    assert own[0] == own[1]
    assert "changing" in own[0]


def test_a_shuffled_loader_has_the_order_that_it_will_have():
    loader = DataLoader(TensorDataset(*data_for()), batch_size=2, shuffle=True)
    torch.manual_seed(3)
    one = digest(loader, ordered=True)
    assert one == digest(loader, ordered=True)
    now = torch.cat([x for x, _ in loader]), torch.cat([y for _, y in loader])
    torch.manual_seed(3)
    x, y = zip(*loader, strict=True)
    assert digest((torch.cat(x), torch.cat(y)), ordered=True) == one
    assert len(now[0]) == 6
    torch.manual_seed(4)
    assert digest(loader, ordered=True) != one


def test_folders_of_images_are_told_apart_by_their_files(tmp_path):
    from PIL import Image

    from niwaki.data import Preprocessing, open_data

    for label in "ab":
        (tmp_path / label).mkdir()
        for number in range(3):
            noise = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / label / f"{number}.png")
    how = Preprocessing(8, mean=(0.5,) * 3, std=(0.5,) * 3)
    data = open_data(str(tmp_path), how)
    found = digest(data)
    assert digest(open_data(str(tmp_path), how)) == found
    subset = torch.utils.data.Subset(torch.utils.data.Subset(data, [5, 4, 3, 2, 1, 0]), [0, 1, 2])
    assert digest(subset) == digest(torch.utils.data.Subset(data, [3, 4, 5]))
    assert digest(subset) != found
    other = Preprocessing(8, mean=(0.4, 0.5, 0.5), std=(0.5,) * 3)
    assert digest(open_data(str(tmp_path), other)) != found
    Image.fromarray(255 - noise).save(tmp_path / "b" / "1.png")
    assert digest(open_data(str(tmp_path), how)) != found


class Scaled(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.layer, self.scale = nn.Conv2d(3, 4, 3), scale
        self.register_buffer("shift", torch.zeros(1), persistent=False)

    def forward(self, x):
        return self.layer(x) * self.scale + self.shift


def test_a_fingerprint_is_of_all_that_a_network_is():
    def twin(**changed):
        torch.manual_seed(0)
        options = {"stride": 1, "act": nn.ReLU, "eps": 1e-5, "scale": 1.0, **changed}
        return nn.Sequential(
            nn.Conv2d(3, 3, 3, stride=options["stride"], padding=1),
            nn.BatchNorm2d(3, eps=options["eps"]),
            options["act"](),
            Scaled(options["scale"]),
        ).eval()

    same = fingerprint(twin())
    assert fingerprint(twin()) == same
    assert fingerprint(twin().train()) == same
    others = [{"stride": 2}, {"act": nn.GELU}, {"eps": 1e-3}, {"scale": 2.0}]
    found = {fingerprint(twin(**changed)) for changed in others}
    weight, buffer = twin(), twin()
    weight[0].weight.data[0, 0, 0, 0] += 1
    buffer[3].shift += 1
    assert len({same, *found, fingerprint(weight), fingerprint(buffer)}) == 7


def test_settings_are_told_apart_by_what_they_are_made_of():
    def scaled(factor):
        return lambda x: x * factor

    class Criterion:
        def __init__(self, weights):
            self.weights = weights

        def __repr__(self):
            return "Criterion"

    values = [
        scaled(1),
        scaled(2),
        lambda x: x + 1,
        Criterion(torch.zeros(3)),
        Criterion(torch.ones(3)),
        Criterion([1, {"a": 2}]),
        torch.zeros(2),
        np.zeros(2),
    ]
    texts = [described(value) for value in values]
    assert len(set(texts)) == len(values)
    assert described(scaled(2)) == texts[1]
    assert described(Criterion(torch.ones(3))) == texts[4]
    around = Criterion(None)
    around.weights = around
    assert described(around) == described(around)
    plain = {"a": [1, 2.5, None, True, "x"], "b": {"c": (1, 2)}}
    assert json.loads(json.dumps(described(plain))) == {
        "a": [1, 2.5, None, True, "x"],
        "b": {"c": [1, 2]},
    }


@pytest.mark.slow
def test_a_description_is_the_same_in_another_process(capsys):
    code = (
        "import torch\nfrom niwaki.runs import described, digest\n"
        "from niwaki.models import fingerprint\nfrom niwaki import criteria\n"
        "torch.manual_seed(0)\n"
        "print(described(criteria.create('lrp')), described(lambda x: x + 1),\n"
        "      digest((torch.randn(4, 3), torch.arange(4))), fingerprint(torch.nn.Linear(3, 2)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    assert done.stdout == capsys.readouterr().out != ""
