"""Images that are decoded once and lie on disk are the same images."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from niwaki.data import OnDisk, Rows, batches, decoded
from niwaki.data import _decoded as room
from niwaki.runs import digest


class Counted(Dataset):
    """Images that count how often each is decoded."""

    def __init__(self, count):
        self.images = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        self.times = np.zeros(count, dtype=int)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.times[index] += 1
        return self.images[index], index % 7


@pytest.fixture
def small(monkeypatch):
    for name in ("_IN_MEMORY", "_BUFFERED"):
        monkeypatch.setattr(room, name, 2**12)


def joined(data, size=32):
    inputs, labels = zip(*batches(data, size), strict=True)
    return torch.cat(inputs), torch.cat(labels)


@pytest.mark.usefixtures("small")
def test_they_are_the_same_and_each_is_decoded_once():
    data = Counted(200)
    inputs, labels = data.images, torch.arange(200) % 7
    found = decoded(data)
    assert isinstance(found, Dataset)
    assert list(data.times) == [2] + [1] * 199  # the first says how large they are
    for size in (1, 7, 200):
        assert all(map(torch.equal, joined(found, size), (inputs, labels)))
    some = [5, 199, 0, 5, 6, 7]
    assert all(map(torch.equal, joined(Subset(found, some)), (inputs[some], labels[some])))
    assert torch.equal(found[-1][0], inputs[-1])
    assert all(map(torch.equal, joined(DataLoader(found, 3)), (inputs, labels)))
    assert decoded(found) is found
    assert data.times.sum() == 201
    pair = digest((inputs, labels), ordered=True)
    assert digest(found, ordered=True) == pair


@pytest.mark.usefixtures("small")
def test_several_threads_read_at_once():
    data = Counted(500)
    found = decoded(data)
    chance = np.random.default_rng(0)
    asked = [chance.integers(0, 500, 20).tolist() for _ in range(200)]
    with ThreadPoolExecutor(8) as pool:
        for some, read in zip(asked, pool.map(found.__getitems__, asked), strict=True):
            assert torch.equal(torch.stack([image for image, _ in read]), data.images[some])


@pytest.mark.usefixtures("small")
def test_tensors_of_any_shape_and_type_lie_on_disk():
    made = [
        torch.randn(40, 3, 8, 8), torch.arange(5), torch.tensor(7.0), torch.zeros(0, 3),
        torch.randn(9, 2).bfloat16(), torch.randn(4, 6).T, torch.rand(3, 1, 2).double() > 0.5,
    ]  # fmt: skip
    found = OnDisk()
    for tensor in made:
        found.append(tensor)
    assert len(found) == len(made)
    for place in (3, 0, 6, 1, 2, 5, 4, 0):
        assert found[place].dtype == made[place].dtype
        assert torch.equal(found[place], made[place])


def test_rows_have_one_shape():
    rows = Rows()
    rows.append(np.zeros((4, 3)))
    with pytest.raises(ValueError, match="follow on others"):
        rows.append(np.zeros((4, 2)))


def test_what_stays_as_it_is():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([])

    stream, few, many = Stream(), Counted(10), Counted(100)
    assert decoded(stream) is stream
    assert decoded(many, limit=1000) is many
    assert all(map(torch.equal, decoded(few), (few.images, torch.arange(10) % 7)))


@pytest.mark.usefixtures("small")
def test_on_a_full_disk_images_are_read_again_and_again(monkeypatch):
    def full(self, rows):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Rows, "append", full)
    data = Counted(200)
    assert decoded(data) is data
    monkeypatch.setattr(Rows, "append", lambda *_: (_ for _ in ()).throw(OSError(5, "broken")))
    with pytest.raises(OSError, match="broken"):
        decoded(data)
