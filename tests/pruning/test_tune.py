"""Fine-tuning: it learns, it is seeded, it leaves no traces; and how it sits in pruning."""

import copy
import json
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from bundles import bundled
from pruning_networks import assert_same, chain, data_for, randomise, snapshot
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from niwaki import pruning
from niwaki.errors import DataError, ModelError
from niwaki.evaluation import accuracy
from niwaki.pruning import FineTune, Kept, Trajectory, fine_tune

# What is left is compared with what was there: nothing is rebuilt.
prune = partial(pruning.prune, repair=None)


def blobs(samples=60, seed=0):
    """Three classes, told apart by the mean of one channel."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % 3
    images = torch.randn(samples, 3, 8, 8, generator=generator)
    images[torch.arange(samples), labels] += 1.0
    return images, labels


@pytest.fixture
def model():
    torch.manual_seed(0)
    return randomise(chain())


QUICK = FineTune(epochs=3, lr=0.02, batch_size=16)


@pytest.mark.parametrize(
    "settings",
    [
        QUICK,
        FineTune(epochs=3, optimizer="adamw", lr=0.01, batch_size=16, schedule="step"),
        FineTune(epochs=3, lr=0.02, batch_size=16, schedule="constant", label_smoothing=0.1),
        FineTune(epochs=3, lr=0.02, batch_size=16, precision="bf16"),
    ],
    ids=["sgd", "adamw", "smoothed", "bf16"],
)
def test_it_learns(model, settings):
    data, test = blobs(), blobs(seed=1)
    before = accuracy(model, test)
    history = fine_tune(model, data, settings)
    assert accuracy(model, test) > max(before + 0.2, 0.8)
    assert [epoch.epoch for epoch in history] == [1, 2, 3]
    assert history[-1].loss < history[0].loss
    assert all(epoch.accuracy is None for epoch in history)


def test_one_step_is_that_of_the_optimizer(model):
    """A twin by hand: one epoch, one batch, so that order does not matter."""
    data, twin = blobs(12), copy.deepcopy(model)
    settings = FineTune(epochs=1, lr=0.1, weight_decay=0.01, batch_size=12, label_smoothing=0.2)
    fine_tune(model, data, settings)
    twin.train()
    loss = F.cross_entropy(twin(data[0]), data[1], label_smoothing=0.2)
    loss.backward()
    for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
        expected = other - 0.1 * (other.grad + 0.01 * other)
        assert torch.allclose(mine, expected, atol=1e-5)


@pytest.mark.parametrize("distil", [1.0, 0.3])
def test_distillation_is_hintons(model, distil):
    data, twin = blobs(12), copy.deepcopy(model)
    teacher = randomise(chain(width=9), seed=3)
    before = snapshot(teacher)
    settings = FineTune(
        epochs=1, lr=0.1, weight_decay=0, batch_size=12, distil=distil, temperature=3.0
    )
    fine_tune(model, data, settings, teacher=teacher)
    twin.train()
    output, soft = twin(data[0]), (teacher(data[0]) / 3).softmax(1).detach()
    # Cross-entropy with soft targets and the divergence have the same gradient.
    taught = -(soft * (output / 3).log_softmax(1)).sum(1).mean()
    ((1 - distil) * F.cross_entropy(output, data[1]) + distil * 9 * taught).backward()
    for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(mine, other - 0.1 * other.grad, atol=1e-5)
    assert_same(before, snapshot(teacher))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("cosine", None),
        ("step", [1.0, 1.0, 0.1, 0.01]),
        ("constant", [1.0, 1.0]),
    ],
)
def test_learning_rates(model, schedule, expected):
    seen = []
    original = torch.optim.SGD.step

    def step(self, *args, **kwargs):
        seen.append(self.param_groups[0]["lr"])
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", step)
        epochs = 4 if schedule == "step" else 2
        history = fine_tune(
            model, blobs(48), FineTune(epochs=epochs, lr=0.01, batch_size=16, schedule=schedule)
        )
    assert len(seen) == 3 * epochs
    if schedule == "cosine":
        progress = torch.arange(6) / 6
        expected = (0.01 * 0.5 * (1 + torch.cos(torch.pi * progress))).tolist()
        assert seen == pytest.approx(expected)
    else:
        assert [epoch.lr for epoch in history] == pytest.approx([0.01 * e for e in expected])


class Dropping(nn.Module):
    """Chance in the forward pass too."""

    def __init__(self):
        super().__init__()
        self.body, self.drop, self.fc = nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, 3)

    def forward(self, x):
        return self.fc(self.drop(self.body(x)))


class Shifted(TensorDataset):
    """Augmentation by one of the generators that anybody may draw from."""

    def __init__(self, draw):
        super().__init__(*blobs())
        self.draw = draw

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image + self.draw(), label


KINDS = {
    "tensors": lambda own: blobs(),
    "loader": lambda own: DataLoader(TensorDataset(*blobs()), 16, shuffle=True),
    "loader with generator": lambda own: DataLoader(
        TensorDataset(*blobs()), 16, shuffle=True, generator=own
    ),
    "sampler with generator": lambda own: DataLoader(
        data := TensorDataset(*blobs()), 16, sampler=RandomSampler(data, generator=own)
    ),
    "batch sampler with generator": lambda own: DataLoader(
        data := TensorDataset(*blobs()),
        batch_sampler=BatchSampler(RandomSampler(data, generator=own), 16, drop_last=False),
    ),
    "augmented by torch": lambda own: Shifted(lambda: torch.rand(())),
    "augmented by Python": lambda own: Shifted(random.random),
    "augmented by NumPy": lambda own: Shifted(lambda: float(np.random.rand())),  # noqa: NPY002
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_weights(kind):
    torch.manual_seed(1)
    start, own = Dropping().eval(), torch.Generator()

    def run(seed):
        model = copy.deepcopy(start)
        fine_tune(model, KINDS[kind](own), FineTune(epochs=2, batch_size=16, seed=seed))
        return model.fc.weight

    first = run(0)
    # What others draw does not matter, and they draw what they would have drawn.
    torch.rand(7), random.random(), np.random.rand()  # noqa: NPY002
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    assert torch.equal(first, run(0))
    assert torch.equal(state[0], torch.get_rng_state())
    assert state[1] == random.getstate()
    np.testing.assert_equal(state[2], np.random.get_state())  # noqa: NPY002
    assert not torch.equal(first, run(1))


def test_nothing_else_changes(model):
    model.register_forward_hook(lambda *_: None)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in ("0.weight", "4.bias"))
    before, drawn = snapshot(model), torch.random.get_rng_state()
    with torch.no_grad():
        fine_tune(model, blobs(), QUICK)
    after = snapshot(model)
    assert torch.equal(drawn, torch.random.get_rng_state())
    for what in ("identity", "requires_grad", "training", "hooks", "attributes"):
        assert before[what] == after[what], what
    assert torch.equal(before["state"]["0.weight"], after["state"]["0.weight"])
    assert not torch.equal(before["state"]["3.weight"], after["state"]["3.weight"])
    assert all(grad is None for grad in after["grad"].values())
    copy.deepcopy(model)


def test_an_error_leaves_nothing(model):
    attributes = sorted(vars(model))
    # Each step multiplies the weights by about -999.
    settings = FineTune(epochs=9, lr=1000.0, weight_decay=1.0, schedule="constant", batch_size=8)
    with pytest.raises(ModelError, match=r"diverged in epoch \d.*lr = 1000.0"):
        fine_tune(model, blobs(), settings)
    assert sorted(vars(model)) == attributes
    assert not any(module.training for module in model.modules())


@pytest.fixture
def accelerator():
    """A user's own, which keeps its state in classes."""
    yield Accelerator(cpu=True, gradient_accumulation_steps=4)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def theirs():
    """What accelerate's classes hold."""
    kinds = (PartialState, AcceleratorState, GradientState)
    return [{name: repr(value) for name, value in kind._shared_state.items()} for kind in kinds]


def test_beside_an_accelerator(model, accelerator):
    """In the middle of its gradient accumulation, and with another precision."""
    alone = copy.deepcopy(model)
    fine_tune(alone, blobs(), replace(QUICK, precision="bf16"))
    other = nn.Linear(4, 2)
    layer, optimizer = accelerator.prepare(other, torch.optim.SGD(other.parameters(), 0.1))
    first = other.weight.detach().clone()
    for step in range(4):
        with accelerator.accumulate(layer):
            accelerator.backward(layer(torch.ones(2, 4)).square().sum())
            before = theirs()
            tuned = copy.deepcopy(model)
            fine_tune(tuned, blobs(), replace(QUICK, precision="bf16"))
            assert theirs() == before
            assert_same({"state": tuned.state_dict()}, {"state": alone.state_dict()})
            optimizer.step()
            assert torch.equal(first, other.weight) == (step < 3)


def test_while_an_accelerator_trains_in_another_thread(model, accelerator):
    alone = copy.deepcopy(model)
    fine_tune(alone, blobs(), QUICK)

    def train():
        torch.manual_seed(0)
        data = DataLoader(TensorDataset(torch.arange(64.0).view(16, 4) / 64), batch_size=2)
        network = nn.Linear(4, 2)
        nn.init.ones_(network.weight), nn.init.zeros_(network.bias)
        layer, own, rows = accelerator.prepare(
            network, torch.optim.SGD(network.parameters(), 0.01), data
        )
        for _ in range(20):
            for (x,) in rows:
                with accelerator.accumulate(layer):
                    accelerator.backward(layer(x).square().sum())
                    own.step()
                    own.zero_grad()
        return network.weight.detach().clone()

    expected = train()
    with ThreadPoolExecutor(1) as pool:
        trained = pool.submit(train)
        fine_tune(model, blobs(), QUICK)
        assert torch.equal(trained.result(60), expected)
    assert_same({"state": model.state_dict()}, {"state": alone.state_dict()})


class Scripted:
    """Accuracies in place of those on the validation data."""

    def __init__(self, *values):
        self.values = list(values)

    def __call__(self, *_, **__):
        return self.values.pop(0)


@pytest.mark.parametrize(
    ("patience", "accuracies", "epochs", "best"),
    [
        (None, [0.1, 0.5, 0.9, 0.3, 0.9], 4, 2),  # the first of equals
        (2, [0.1, 0.5, 0.4, 0.4, 0.9], 3, 1),
        (2, [0.6, 0.5, 0.4], 2, 0),  # the unpruned network
    ],
    ids=str,
)
def test_the_best_weights_are_kept(model, patience, accuracies, epochs, best, monkeypatch):
    from niwaki.pruning.repair import _fine_tune

    weights, data, script = [], blobs(), Scripted(*accuracies)

    def look(network, *args, **kwargs):
        assert not network.training
        weights.append(network[0].weight.clone())
        return script()

    monkeypatch.setattr(_fine_tune, "accuracy", look)
    settings = FineTune(epochs=4, lr=0.01, batch_size=16, patience=patience)
    history = fine_tune(model, data, settings, validation=data)
    assert len(history) == epochs
    assert [epoch.accuracy for epoch in history] == accuracies[1 : epochs + 1]
    same = [torch.equal(model[0].weight, found) for found in weights]
    assert same == [epoch == best for epoch in range(epochs + 1)]
    assert history.kept == Kept(best, epochs, accuracies[best], accuracies[0], 60)


@pytest.mark.parametrize(
    ("kept", "said", "chance"),
    [
        (Kept(3, 5, 0.9, 0.55, 20), "epoch 3 of 5: 90.0% on 20 {}, 55.0% before", False),
        (
            Kept(1, 5, 0.95, 0.9, 20),
            "epoch 1 of 5: 95.0% on 20 {}, 90.0% before; one image more may be chance",
            True,
        ),
        (
            Kept(1, 1, 0.7, 0.45, 20),
            "epoch 1 of 1: 70.0% on 20 {}, 45.0% before; 5 images more may be chance",
            True,
        ),
        (Kept(1, 1, 0.75, 0.45, 20), "epoch 1 of 1: 75.0% on 20 {}, 45.0% before", False),
        (
            Kept(0, 4, 0.885, 0.885, 200),
            "the weights as they were: no epoch of 4 did better than 88.5% on 200 {}",
            False,
        ),
        (Kept(2, 4, 0.9, 0.5, None), "epoch 2 of 4: 90.0% on the {}, 50.0% before", False),
    ],
    ids=["gain", "one image", "five images", "six images", "nothing", "length unknown"],
)
def test_what_was_kept_is_said_with_its_gain(kept, said, chance):
    assert str(kept) == "kept " + said.format("validation images")
    assert kept.may_be_chance is chance


def test_without_validation_data_nothing_is_chosen(model):
    assert fine_tune(model, blobs(), QUICK).kept is None


def test_what_was_kept_is_in_the_trajectory_and_its_json(model):
    pruned = prune(
        model,
        blobs(),
        "weight",
        keep=0.6,
        tune=QUICK,
        validation=blobs(20, 1),
        schedule=pruning.Schedule(steps=1),
    )
    first, last = pruned.trajectory
    assert first.kept is None
    assert last.kept.samples == 20
    assert last.kept.accuracy == last.validation
    assert last.kept.accuracy == max(last.kept.before, *(e.accuracy for e in last.epochs))
    again = Trajectory.from_json(json.loads(json.dumps(pruned.trajectory.to_json())))
    assert again == pruned.trajectory


def test_a_last_batch_of_one_is_left_out():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 9), nn.BatchNorm1d(9), nn.Linear(9, 3))
    fine_tune(model.eval(), blobs(17), FineTune(epochs=1, batch_size=8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs = 0"),
        ({"optimizer": "adam"}, "optimizer = 'adam'"),
        ({"schedule": "linear"}, "schedule = 'linear'"),
        ({"lr": -0.1}, "lr = -0.1"),
        ({"lr": 0}, "above 0"),
        ({"lr": float("nan")}, "lr = nan"),
        ({"label_smoothing": 1.0}, "label_smoothing = 1.0"),
        ({"distil": 1.5}, "distil = 1.5"),
        ({"patience": 0}, "patience = 0"),
        ({"precision": "fp8"}, "precision = 'fp8'"),
    ],
    ids=str,
)
def test_settings_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        FineTune(**options)


def test_what_settings_need(model):
    with pytest.raises(ValueError, match="needs a teacher"):
        fine_tune(model, blobs(), FineTune(distil=0.5))
    with pytest.raises(ValueError, match="needs validation data"):
        fine_tune(model, blobs(), FineTune(patience=2))
    with pytest.raises(ValueError, match="needs a GPU"):
        fine_tune(model, blobs(), FineTune(precision="fp16"))
    with pytest.raises(DataError, match="label 3"):
        fine_tune(model, (blobs()[0], torch.full((60,), 3)), QUICK)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ModelError, match="all parameters are frozen"):
        fine_tune(model, blobs(), QUICK)


# In pruning.


@pytest.mark.parametrize("each", [True, False], ids=["each step", "in the end"])
def test_pruning_with_fine_tuning(model, each):
    data, test = blobs(), blobs(seed=1)
    fine_tune(model, data, FineTune(epochs=4, lr=0.02, batch_size=16))
    options = {"keep": 0.4, "steps": 2, "test": test}
    plain = prune(model, data, "random:seed=1", **bundled(**options))
    before = snapshot(model)
    pruned = prune(model, data, "random:seed=1", **bundled(tune=QUICK, tune_each=each, **options))
    assert_same(before, snapshot(model))
    assert pruned.plan == plain.plan
    tuned = [row.accuracy_tuned for row in pruned.trajectory]
    assert [value is None for value in tuned] == [True, not each, False]
    epochs = [len(row.epochs) for row in pruned.trajectory]
    assert epochs == [0, QUICK.epochs if each else 0, QUICK.epochs]
    assert all(epoch.loss > 0 for epoch in pruned.trajectory[-1].epochs)
    as_read = json.loads(json.dumps(pruned.trajectory.to_json()))
    assert Trajectory.from_json(as_read) == pruned.trajectory
    assert tuned[-1] == accuracy(pruned.model, test) > plain.trajectory[-1].accuracy
    assert pruned.trajectory[-1].accuracy is not None
    again = prune(model, data, "random:seed=1", **bundled(tune=QUICK, tune_each=each, **options))
    for mine, other in zip(pruned.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_the_unpruned_network_teaches(model):
    data = blobs()
    teach = FineTune(epochs=2, lr=0.02, batch_size=16, distil=0.9)
    taught = prune(
        model, data, "weight", keep=0.5, tune=teach, schedule=pruning.Schedule(steps=1)
    ).model
    alone = copy.deepcopy(
        prune(model, data, "weight", keep=0.5, schedule=pruning.Schedule(steps=1)).model
    )
    fine_tune(alone, data, replace(teach, seed=teach.seed + 1), teacher=model)
    for mine, other in zip(taught.parameters(), alone.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_a_loop_of_your_own(model):
    data, seen = blobs(), []

    def loop(network, step):
        seen.append((step, network.training, torch.is_grad_enabled()))
        network.train()
        optimizer = torch.optim.Adam(network.parameters(), 0.01)
        for _ in range(3):
            optimizer.zero_grad()
            noise = 0.1 * torch.randn_like(data[0])
            F.cross_entropy(network(data[0] + noise), data[1]).backward()
            optimizer.step()
        network[0].weight.requires_grad_(False)

    with torch.no_grad():
        first = prune(
            model,
            data,
            "weight",
            keep=0.5,
            tune=loop,
            test=data,
            schedule=pruning.Schedule(steps=2),
        )
    assert seen == [(1, False, True), (2, False, True)]
    assert first.trajectory[-1].accuracy_tuned == accuracy(first.model, data)
    assert all(p.requires_grad and p.grad is None for p in first.model.parameters())
    assert not any(m.training for m in first.model.modules())
    second = prune(
        model, data, "weight", keep=0.5, tune=loop, test=data, schedule=pruning.Schedule(steps=2)
    )
    for mine, other in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_a_loop_that_diverges(model):
    def loop(network, step):
        network[0].weight.data.fill_(float("nan"))

    with pytest.raises(ModelError, match="NaN"):
        prune(model, blobs(), "weight", keep=0.5, tune=loop, schedule=pruning.Schedule(steps=1))


def test_the_floor_is_held_by_the_tuned_network(model):
    data = blobs()
    fine_tune(model, data, FineTune(epochs=4, lr=0.02, batch_size=16))
    options = {"keep": 0.4, "steps": 1, "floor": 0.8, "validation": data}
    assert prune(model, data, "random:seed=1", **bundled(**options)).trajectory[-1].rejected
    tuned = prune(
        model,
        data,
        "random:seed=1",
        **bundled(tune=FineTune(epochs=9, lr=0.03, batch_size=16), **options),
    )
    assert not tuned.trajectory[-1].rejected
    assert tuned.trajectory[-1].validation >= 0.8


def test_data_of_another_size(model):
    with pytest.raises((RuntimeError, DataError)):
        fine_tune(model, data_for(4), QUICK)
    assert not model.training
