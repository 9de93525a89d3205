"""The one loop over data: what it hands on, and what it refuses."""

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from niwaki.data import batches, check_labels, count, open_data
from niwaki.errors import DataError

INPUTS = torch.arange(10.0)[:, None, None, None].expand(10, 1, 2, 2)
LABELS = torch.arange(10)
PAIR = (INPUTS, LABELS)


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(*PAIR, strict=True)


class NoPairs(torch.utils.data.Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return torch.zeros(2)


@pytest.mark.parametrize(
    ("data", "sizes"),
    [
        (PAIR, [4, 4, 2]),
        (list(PAIR), [4, 4, 2]),
        (TensorDataset(*PAIR), [4, 4, 2]),
        (Stream(), [4, 4, 2]),
        (DataLoader(TensorDataset(*PAIR), batch_size=3), [3, 3, 3, 1]),
        (DataLoader(TensorDataset(*PAIR), batch_size=3, drop_last=True), [3, 3, 3]),
    ],
)
def test_goes_through_everything_in_order(data, sizes):
    seen = list(batches(data, 4, description="looking"))
    assert [len(labels) for _, labels in seen] == sizes
    assert torch.cat([labels for _, labels in seen]).tolist() == list(range(sum(sizes)))
    torch.testing.assert_close(torch.cat([inputs for inputs, _ in seen]), INPUTS[: sum(sizes)])
    assert count(data) == (None if isinstance(data, Stream) else sum(sizes))


def test_count_of_a_loader_with_its_own_batches():
    sampler = [[0, 1], [2]]
    assert count(DataLoader(TensorDataset(*PAIR), batch_sampler=sampler)) is None
    assert count(DataLoader(Stream(), batch_size=2)) is None


def test_labels_become_int64_and_go_to_the_device():
    inputs, labels = next(batches((INPUTS, LABELS.to(torch.uint8)), place="meta"))
    assert labels.dtype == torch.int64
    assert inputs.device.type == labels.device.type == "meta"


def test_digits_in_batches():
    shapes = [inputs.shape for inputs, _ in batches(open_data("digits"), 400)]
    assert shapes == [(400, 1, 8, 8), (197, 1, 8, 8)]


def poisoned(value):
    inputs = INPUTS.clone()
    inputs[7, 0, 1, 1] = value
    return inputs


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((INPUTS[:0], LABELS[:0]), "no data"),
        (DataLoader([], batch_size=2), "no data"),
        ((INPUTS, LABELS[:9]), "9 labels do not match"),
        ((INPUTS, LABELS.float()), "labels are torch.float32"),
        ((INPUTS, torch.eye(10).long()), r"of shape \(10, 10\)"),
        ((INPUTS.byte(), LABELS), "inputs are torch.uint8"),
        ((poisoned(float("nan")), LABELS), "input 7 has NaN"),
        ((poisoned(float("inf")), LABELS), "input 7 has NaN or infinite"),
        (NoPairs(), "a batch is a Tensor"),
        (TensorDataset(INPUTS, LABELS, LABELS), "a batch is a list of 3"),
        ("folder", "str is no data"),
        ((INPUTS, LABELS, LABELS), "tuple of 3 is no data"),
    ],
)
def test_refuses(data, message):
    with pytest.raises(DataError, match=message):
        list(batches(data, 4))


def test_refuses_a_batch_size_below_one():
    with pytest.raises(ValueError, match="batch_size = 0"):
        batches(PAIR, 0)


def test_check_labels_names_the_first_wrong_one():
    check_labels(LABELS, 10)
    with pytest.raises(DataError, match=r"label 7 \(sample 7 of the batch\).* has 7: 0 to 6"):
        check_labels(LABELS, 7)
    with pytest.raises(DataError, match=r"label -1 \(sample 1 .*no labels, give some"):
        check_labels(torch.tensor([0, -1]), 7)


class Spent(IterableDataset):
    """Goes on where it has stopped, as a generator does."""

    def __init__(self):
        self.rest = iter([(torch.zeros(3), 0)] * 5)

    def __iter__(self):
        return self.rest


@pytest.mark.parametrize(
    "make",
    [
        Spent,
        lambda: DataLoader(Spent(), 2),
        lambda: DataLoader(TensorDataset(*PAIR), 2, sampler=iter(range(10))),
        lambda: DataLoader(TensorDataset(*PAIR), batch_sampler=iter([[0, 1], [2]])),
    ],
)
def test_data_that_can_be_gone_through_only_once_are_refused(make):
    with pytest.raises(DataError, match="goes on where it has stopped"):
        batches(make())
