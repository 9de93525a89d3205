"""A run that is resumed with one thing changed is refused, and never goes on with old numbers."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import niwaki
from niwaki.errors import DataError
from niwaki.pruning import FineTune, Run, Schedule


class Stopped(Exception):
    pass


def network():
    torch.manual_seed(1)
    layers = [nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()


@pytest.fixture(scope="module")
def data():
    torch.manual_seed(0)
    return torch.randn(36, 1, 8, 8), torch.arange(36) % 3


def pruned(data, folder, tune, stop=None):
    def callback(step):
        if step.step == stop:
            raise Stopped

    return niwaki.prune(
        network(),
        data,
        "weight",
        keep=0.5,
        schedule=Schedule(steps=3),
        repair=None,
        tune=tune,
        run=Run(folder, callback=callback),
    )


def train(model, step, data, rate):
    optimizer = torch.optim.SGD(model.parameters(), rate)
    for inputs, labels in DataLoader(TensorDataset(*data), 12):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()


def own(data, rate):
    return functools.partial(train, data=data, rate=rate)


def shuffled(data, size):
    return DataLoader(TensorDataset(*data), size, shuffle=True)


def tuned(**options):
    return FineTune(epochs=1, **options)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (lambda d: tuned(training=shuffled(d, 6)), lambda d: tuned(training=shuffled(d, 12))),
        (lambda d: tuned(training=DataLoader(TensorDataset(*d), 6)),
         lambda d: tuned(training=shuffled(d, 6))),
        (lambda d: tuned(training=d),
         lambda d: tuned(training=(d[0].flip(0), d[1].flip(0)))),
        (lambda d: own(d, 0.1), lambda d: own(d, 0.2)),
        (lambda d: FineTune(loop=own(d, 0.1)), lambda d: FineTune(loop=own((d[0] + 1, d[1]), 0.1))),
    ],
    ids=["batches", "shuffling", "order", "rate", "data of a loop"],
)  # fmt: skip
def test_another_way_of_learning_is_another_run(data, tmp_path, first, then):
    with pytest.raises(Stopped):
        pruned(data, tmp_path, first(data), stop=2)
    with pytest.raises(DataError, match=r"training|tune"):
        pruned(data, tmp_path, then(data))
    # The same goes on, and ends as without the interruption.
    torch.manual_seed(99)
    resumed, whole = pruned(data, tmp_path, first(data)), pruned(data, None, first(data))
    assert resumed.plan == whole.plan
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])


def test_the_order_of_what_layers_are_fitted_to_counts(data, tmp_path):
    other = data[0].flip(0), data[1].flip(0)

    def run(data, folder, **options):
        options = {"schedule": Schedule(steps=3), "keep": 0.5, **options}

        def stop(step):
            if step.step == 2 and data is not other:
                raise Stopped

        return niwaki.prune(network(), data, run=Run(tmp_path / folder, callback=stop), **options)

    for folder, options in {
        "fitted": {"criterion": "weight"},
        "chosen by fits": {"repair": None, "criterion": "lrp.rebuilt"},
        "neither": {"repair": None, "criterion": "lrp"},
    }.items():
        with pytest.raises(Stopped):
            run(data, folder, **options)
        if folder == "neither":
            run(other, folder, **options)
        else:
            with pytest.raises(DataError, match="data: there"):
                run(other, folder, **options)


def test_an_option_that_turns_a_default_off_is_another_comparison(data, tmp_path):
    def compare(stop=None, **options):
        def callback(outcome):
            if outcome.label == stop:
                raise Stopped

        schedule = Schedule(steps=1)
        run = Run(tmp_path, callback=callback)
        niwaki.pruning.compare(
            network(), data, ["lrp", "taylor"], test=data, references=4, schedule=schedule,
            run=run, **options,
        )  # fmt: skip

    with pytest.raises(Stopped):
        compare(stop="lrp")
    with pytest.raises(DataError, match="repair: there 'rebuild', now None"):
        compare(repair=None)


def test_another_precision_is_another_run(data, tmp_path, monkeypatch):
    from niwaki.pruning import _prune

    with pytest.raises(Stopped):
        pruned(data, tmp_path, tuned(), stop=2)
    # As on a device that has it.
    monkeypatch.setattr(_prune, "precision_on", lambda device, wanted: "bf16")
    with pytest.raises(DataError, match=r"'precision': 'no'.*'precision': 'bf16'"):
        pruned(data, tmp_path, tuned())


def test_the_batches_of_reference_samples_count_where_they_are_learned_from(data, tmp_path):
    with pytest.raises(Stopped):
        pruned(shuffled(data, 6), tmp_path / "tuned", tuned(), stop=2)
    with pytest.raises(DataError, match="data: there"):
        pruned(shuffled(data, 12), tmp_path / "tuned", tuned())
    with pytest.raises(Stopped):
        pruned(shuffled(data, 6), tmp_path / "plain", None, stop=2)
    assert pruned(shuffled(data, 12), tmp_path / "plain", None).trajectory.final.step == 3
