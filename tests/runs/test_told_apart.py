"""What a run is recognised by tells apart whatever could change its numbers, and nothing else."""

from __future__ import annotations

import functools
from argparse import Namespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import niwaki
from niwaki.errors import DataError
from niwaki.models import fingerprint
from niwaki.pruning import FineTune
from niwaki.runs import described, digest, identified, open_run

RATE = 0.1
CALLS = 0
SEEN: list[int] = []


def samples(count=6):
    torch.manual_seed(0)
    return torch.randn(count, 3, 8, 8), torch.arange(count) % 3


def rate():
    return RATE


def reads_a_global(model, step):
    global CALLS
    CALLS += 1
    SEEN.append(step)
    return rate()


class Trainer:
    def __init__(self, rate):
        self.rate, self.losses = rate, []

    def __call__(self, model, step):
        self.losses.append(self.rate)

    def fit(self, model, step):
        self.losses.append(self.rate)


def closure_over(value):
    def loop(model, step):
        return value

    return loop


class Unlabelled(Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return {"image": torch.zeros(3)}


@pytest.mark.parametrize(
    "make",
    [
        closure_over,
        lambda value: closure_over({"rate": value}),
        lambda value: closure_over((value, torch.relu)),
        lambda value: closure_over(Namespace(rate=value)),
        lambda value: closure_over(torch.full((2,), value)),
        lambda value: closure_over(closure_over(value)),
        lambda value: closure_over(TensorDataset(samples()[0] * value, samples()[1])),
        lambda value: functools.partial(closure_over, value),
        Trainer,
        lambda value: Trainer(value).fit,
        lambda value: closure_over(Trainer(value)),
        lambda value: FineTune(training=TensorDataset(samples()[0] * value, samples()[1])),
    ],
)
def test_all_that_code_reads_is_told_apart(make):
    assert described(make(0.5)) == described(make(0.5))
    assert described(make(0.5)) != described(make(0.25))


def test_a_global_that_is_read_counts_and_what_code_itself_sets_or_fills_does_not(monkeypatch):
    before = described(reads_a_global)
    reads_a_global(None, 1)
    assert (CALLS, SEEN) == (1, [1])
    assert described(reads_a_global) == before
    monkeypatch.setattr(f"{__name__}.RATE", 0.2)  # which `rate` reads, called by it
    assert described(reads_a_global) != before
    trainer = Trainer(1.0)
    before = described(trainer), described(trainer.fit)
    trainer(None, 0)
    assert (described(trainer), described(trainer.fit)) == before


def test_data_that_niwaki_cannot_read_are_told_by_their_kind_and_length():
    assert described(closure_over(Unlabelled())) == described(closure_over(Unlabelled()))
    described(closure_over(DataLoader(Unlabelled())))


def edited(body):
    """Return a class as it is before and after somebody edits its code."""
    space = {"__name__": "mine", "torch": torch, "nn": nn, "Criterion": niwaki.criteria.Criterion}
    exec(body, space)
    return space["Mine"]


def test_code_of_classes_counts():
    network = (
        "class Mine(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.layer = nn.Linear(3, 2, bias=False)\n"
        "        nn.init.ones_(self.layer.weight)\n"
        "    def forward(self, x):\n"
        "        return self.layer(x){}\n"
    )
    same, other = edited(network.format("")), edited(network.format(" ** 2"))
    assert identified(same()) == identified(same()) == identified(edited(network.format(""))())
    assert fingerprint(same()) == fingerprint(other())
    assert identified(same()) != identified(other())
    criterion = (
        "class Mine(Criterion):\n"
        "    needs_data = False\n"
        "    def scores(self, totals, layers, model):\n"
        "        return {}\n"
    )
    pair = [edited(criterion.format(text)) for text in ("{}", "dict(a=1)")]
    assert described(pair[0]()) == described(pair[0]()) != described(pair[1]())


class Scaled(nn.Module):
    def __init__(self, act, scale):
        super().__init__()
        self.layer, self.act, self.scale = nn.Linear(3, 3), act, scale

    def forward(self, x):
        return self.act(self.layer(x)) * self.scale


def test_functions_tensors_and_hooks_of_a_network_count():
    def network(act=torch.relu, scale=1.0, hook=None):
        torch.manual_seed(0)
        made = Scaled(act, scale * torch.ones(3))
        if hook is not None:
            made.layer.register_forward_hook(lambda *given: given[-1] * hook)
        return made

    found = [
        network(),
        network(torch.tanh),
        network(functools.partial(nn.functional.leaky_relu, negative_slope=0.1)),
        network(functools.partial(nn.functional.leaky_relu, negative_slope=0.2)),
        network(scale=2.0),
        network(hook=2.0),
        network(hook=3.0),
    ]
    assert len(set(map(identified, found))) == len(found)
    assert len(set(map(fingerprint, found[:4]))) == 4
    assert identified(network(hook=2.0)) == identified(found[5])


def test_batches_and_order_count_for_what_is_learned_from():
    images, labels = samples()
    data = TensorDataset(images, labels)

    def seeded(**options):
        return digest(DataLoader(data, **options), seeded=True)

    torch.manual_seed(0)
    found = [
        seeded(batch_size=2),
        seeded(batch_size=4),
        seeded(batch_size=4, drop_last=True),
        seeded(batch_size=2, shuffle=True),
        digest(TensorDataset(images.flip(0), labels.flip(0)), seeded=True),
        digest(data, seeded=True),
    ]
    assert len(set(found)) == len(found)
    torch.manual_seed(1)
    assert seeded(batch_size=2, shuffle=True) == found[3]
    own = [torch.Generator().manual_seed(number) for number in (5, 6)]
    five, six = (seeded(batch_size=2, shuffle=True, generator=one) for one in own)
    assert five == six
    assert torch.equal(own[0].get_state(), torch.Generator().manual_seed(5).get_state())


def test_a_run_of_another_version_is_refused(tmp_path, monkeypatch):
    with open_run(tmp_path, dict) as run:
        run.write("part")
    monkeypatch.setattr(niwaki, "__version__", "9.9")
    with pytest.raises(DataError, match=r"another version of niwaki:\n.*now '9\.9'"):
        open_run(tmp_path, dict).__enter__()


def test_a_method_that_is_registered_anew_is_another(monkeypatch):
    from niwaki import attribution

    monkeypatch.setattr("niwaki.attribution._catalogue._CATALOGUE", {})
    found = []
    for body in ("return 1", "return 2", "return 1"):
        space = {"__name__": "mine"}
        exec(f"def mine(model):\n    {body}\n", space)
        attribution.register("mine")(space["mine"])
        found.append(attribution.told_apart("mine"))
    assert found[0] == found[2] != found[1]
