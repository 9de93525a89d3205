"""Reference samples: balanced, reproducible, sorted."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Subset, TensorDataset

from niwaki.data import open_data, references
from niwaki.errors import DataError, RangeError


def pair(labels):
    return torch.arange(float(len(labels)))[:, None], torch.tensor(labels)


@settings(max_examples=40, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    per_class=st.integers(1, 5),
    seed=st.integers(0, 2**31),
)
def test_same_number_of_each_class(labels, per_class, seed):
    smallest = min(labels.count(label) for label in set(labels))
    if smallest < per_class:
        with pytest.raises(DataError, match=f"has {labels.count(min_label(labels, per_class))} "):
            references(pair(labels), per_class, seed)
        return
    chosen = references(pair(labels), per_class, seed).indices
    assert chosen == references(pair(labels), per_class, seed).indices
    assert len(set(chosen)) == len(chosen)
    assert [labels[i] for i in chosen] == sorted(list(set(labels)) * per_class)
    assert chosen == sorted(chosen, key=lambda i: (labels[i], i))


def min_label(labels, per_class):
    return min(label for label in set(labels) if labels.count(label) < per_class)


def test_seed_decides():
    data = open_data("digits", split="train")
    draws = {tuple(references(data, 10, seed).indices) for seed in range(5)}
    assert len(draws) == 5


def test_every_sample_is_drawn_equally_often():
    data = pair([0] * 8)
    drawn = torch.tensor([references(data, 2, seed).indices for seed in range(800)])
    # Expected 200 times each, with a standard deviation of about 12.
    assert (drawn.flatten().bincount(minlength=8) - 200).abs().max() < 60


def test_targets_save_reading(monkeypatch):
    data = open_data("digits")
    labels = torch.tensor(data.targets[:100])
    expected = references((torch.zeros(100, 1), labels), 3, 1).indices
    monkeypatch.setattr(type(data), "image", lambda *_: pytest.fail("an image was read"))
    assert references(Subset(data, range(100)), 3, 1).indices == expected


def test_labels_are_read_where_there_are_no_targets():
    inputs, labels = pair([1, 0, 1, 0, 0])

    class Bare(torch.utils.data.Dataset):
        def __len__(self):
            return 5

        def __getitem__(self, index):
            return inputs[index], labels[index]

    assert references(Bare(), 2, 3).indices == references((inputs, labels), 2, 3).indices
    assert references(TensorDataset(inputs, labels), 2, 3).indices[2:] == [0, 2]


def test_errors_name_the_class():
    data = open_data("digits", outputs=range(10, 20))
    with pytest.raises(DataError, match="class '0' has 59 samples, fewer than the 60"):
        references(data, 60, 0)
    with pytest.raises(DataError, match="no labels"):
        references(pair([-1, -1]), 1, 0)
    with pytest.raises(RangeError, match="per_class = 0"):
        references(data, 0, 0)
