"""Repairs: batch norms measured anew, biases that take over what went."""

import copy

import pytest
import torch
import torch.nn.functional as F
from bundles import bundled
from pruning_networks import Concat, Residual, chain, data_for, depthwise, randomise
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from niwaki.data import open_data, references
from niwaki.errors import DataError
from niwaki.evaluation import accuracy
from niwaki.models import load_weights, zoo
from niwaki.pruning import Removal, Schedule, compensate, load, operate, prune, recalibrate


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


# Recalibration.


@pytest.mark.parametrize("build", [chain, Residual, Concat, depthwise], ids=lambda b: b.__name__)
def test_in_one_batch_evaluation_becomes_training(build):
    model, data = randomise(build()).double(), data_for(8, samples=12, dtype=torch.float64)
    before = state(model)
    recalibrate(model, data)
    assert not any(module.training for module in model.modules())
    found = model(data[0])
    after = state(model)
    model.train()
    assert torch.allclose(found, model(data[0]), rtol=1e-9, atol=1e-12)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("running" in name for name in changed)


def test_the_first_norm_gets_the_statistics_of_all_samples():
    model, data = randomise(chain()).double(), data_for(8, samples=10, dtype=torch.float64)
    recalibrate(model, data, batch_size=4)
    y = model[0](data[0]).movedim(1, 0).flatten(1)
    assert torch.allclose(model[1].running_mean, y.mean(1))
    assert torch.allclose(model[1].running_var, y.var(1, unbiased=False))


def test_the_order_of_batches_and_labels_do_not_matter():
    model, (images, labels) = randomise(chain()).double(), data_for(8, 12, dtype=torch.float64)
    twin = copy.deepcopy(model)
    parts = torch.arange(12).split(4)
    recalibrate(model, DataLoader(TensorDataset(images, labels), batch_size=4))
    order = torch.cat(parts[::-1])
    recalibrate(
        twin, DataLoader(TensorDataset(images[order], torch.zeros(12).long()), batch_size=4)
    )
    for name, tensor in state(model).items():
        assert torch.allclose(tensor, twin.state_dict()[name], rtol=1e-12), name


@pytest.mark.parametrize("build", [chain, Residual, Concat, depthwise], ids=lambda b: b.__name__)
@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_batches_do_not_matter(build, batch_size):
    """Samples sorted by class, nine apart: batches are as unlike the whole as can be."""
    labels = torch.arange(3).repeat_interleave(6)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(18, 3, 8, 8, generator=generator, dtype=torch.float64)
    images = images + 9.0 * labels[:, None, None, None]
    model = randomise(build()).double()
    twin = copy.deepcopy(model)
    recalibrate(model, (images, labels), batch_size=batch_size)
    found = model(images)
    twin.train()
    torch.testing.assert_close(found, twin(images), rtol=1e-9, atol=1e-12)


class NormTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        x = self.norm(self.a(x)).relu()
        return self.fc(self.norm(self.b(x)).relu().mean((2, 3)))


def test_batches_do_not_matter_to_a_norm_that_is_used_twice():
    found = []
    for batch_size in (1, 4, 12):
        torch.manual_seed(0)
        model, data = randomise(NormTwice()).double(), data_for(8, 12, dtype=torch.float64)
        recalibrate(model, data, batch_size=batch_size)
        found.append(model(data[0]))
    torch.testing.assert_close(found[0], found[2], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found[1], found[2], rtol=1e-10, atol=1e-12)


def test_one_value_has_no_variance():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).eval()
    before = state(model)
    with pytest.raises(DataError, match="one sample cannot tell"):
        recalibrate(model, data_for(1, samples=1))
    assert not model[2].training
    assert all(torch.equal(before[name], tensor) for name, tensor in state(model).items())


def test_without_batch_norms_nothing_happens():
    model, data = depthwise()[:2].eval(), data_for(8)
    before = state(model)
    recalibrate(model, data)
    assert all(torch.equal(before[name], tensor) for name, tensor in state(model).items())
    plain = nn.Sequential(nn.Flatten(), nn.Linear(3, 9), nn.ReLU(), nn.Linear(9, 3)).eval()
    with pytest.warns(UserWarning, match="no batch norm"):
        prune(
            plain, data_for(1), "weight", keep=0.5, repair="recalibrate", schedule=Schedule(steps=1)
        )


# Compensation.


def constant(model, layer, channels, value=2.0):
    """Let units give the same value everywhere, for any input."""
    with torch.no_grad():
        layer.weight[channels] = 0
        layer.bias[channels] = value
    return model


class Unpadded(nn.Module):
    """A unit read by a convolution with and one without a bias, and by a linear layer."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3)
        self.biased, self.bare = nn.Conv2d(6, 4, 3), nn.Conv2d(6, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.fc1, self.fc2 = nn.Linear(6 * 9, 5), nn.Linear(5 + 8, 3)

    def forward(self, x):
        x = self.first(x).relu()
        a, b = self.biased(x).relu(), self.norm(self.bare(x)).relu()
        c = self.fc1(F.avg_pool2d(x, 2).flatten(1))
        return self.fc2(torch.cat([c, a.mean((2, 3)), b.mean((2, 3))], 1))


def test_constant_units_are_replaced_exactly():
    model, data = randomise(Unpadded()), data_for(8)
    constant(model, model.first, [1, 4])
    expected = model(data[0])
    removals = [Removal("first", (1, 4))]
    assert compensate(model, data[0][:2], removals, data) == []
    operate(model, data[0][:2], removals)
    assert model.first.out_channels == 4
    assert torch.allclose(model(data[0]), expected, atol=1e-5)


def outputs(model, names, images):
    """Outputs of layers."""
    found = {}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: found.update({name: output})
        )
        for name in names
    ]
    model(images)
    for handle in handles:
        handle.remove()
    return found


def grouped():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3, padding=1, stride=2, groups=2),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 49, 3),
    )


@pytest.mark.parametrize(
    ("build", "removals", "readers"),
    [
        (chain, [Removal("0", (0, 3))], ["3"]),
        (chain, [Removal("3", (2,))], ["8"]),
        (grouped, [Removal("0", (1, 5))], ["2"]),
        (grouped, [Removal("2", (0, 3))], ["4"]),
        (grouped, [Removal("4", (1,))], ["7"]),
        (Residual, [Removal("inner", (1, 2))], ["outer"]),
        (Residual, [Removal("stem", (0,))], ["inner", "head"]),
        (depthwise, [Removal("0", (2, 3))], ["5"]),
        (Concat, [Removal("a", (0, 1)), Removal("b", (4,))], ["c"]),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_readers_keep_their_mean(build, removals, readers):
    """The property that defines it, whatever lies between: padding, strides, groups, norms."""
    model, data = randomise(build()).double(), data_for(8, samples=9, dtype=torch.float64)

    def means():
        found = outputs(model, readers, data[0])
        return {name: y.mean([d for d in range(y.dim()) if d != 1]) for name, y in found.items()}

    before = means()
    assert compensate(model, data[0][:2], removals, data, batch_size=4) == []
    if build is Residual and removals[0].layer == "stem":
        # The first reader's change reaches the second: both were measured on the whole network.
        readers = readers[:1]
    operate(model, data[0][:2], removals)
    after = means()
    for name in readers:
        gone = next((r.channels for r in removals if r.layer == name), ())
        keep = [i for i in range(len(before[name])) if i not in gone]
        assert torch.allclose(after[name], before[name][keep], atol=1e-10), name


class Bare(nn.Module):
    """Readers without a bias: before a norm, before a ReLU, and with a norm that others share."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3)
        self.a, self.norm = nn.Conv2d(6, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.b = nn.Conv2d(6, 4, 1, bias=False)
        self.c, self.d = nn.Conv2d(6, 4, 1, bias=False), nn.Conv2d(6, 4, 1, bias=False)
        self.shared, self.fc = nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x):
        x = self.first(x).relu()
        x = self.norm(self.a(x)) + self.b(x).relu() + self.shared(self.c(x) + self.d(x))
        return self.fc(x.relu().mean((2, 3)))


def test_a_norm_behind_a_reader_without_bias_takes_it():
    model, data = randomise(Bare()), data_for(8)
    with torch.no_grad():
        mean = model.first(data[0]).relu().mean((0, 2, 3))[1]
        expected = model.norm.running_mean - mean * model.a.weight[:, 1, 0, 0]
    before = state(model)
    left_out = compensate(model, data[0][:2], [Removal("first", (1,))], data)
    assert sorted(left_out) == ["b", "c", "d"]
    assert torch.allclose(model.norm.running_mean, expected, atol=1e-6)
    changed = {n for n, t in state(model).items() if not torch.equal(t, before[n])}
    assert changed == {"norm.running_mean"}
    assert model.a.bias is None  # replaying a plan on a fresh network gives the same parameters


@pytest.mark.slow
@pytest.mark.parametrize(
    "repairs",
    [{"repair": "compensate"}, {"repair": "recalibrate"}, {"repair": "rebuild"}],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_repaired_networks_are_saved_and_loaded(repairs, tmp_path):
    torch.manual_seed(0)
    model, data = randomise(zoo.resnet20()), data_for(16)
    before = state(model)
    pruned = prune(model, data, "weight", **bundled(keep=0.7, steps=2, **repairs))
    plain = prune(model, data, "weight", keep=0.7, repair=None, schedule=Schedule(steps=2))
    assert not torch.equal(pruned.model(data[0]), plain.model(data[0]))
    pruned.save(tmp_path / "smaller")
    loaded = load(tmp_path / "smaller", zoo.resnet20())
    assert torch.equal(loaded(data[0]), pruned.model(data[0]))
    assert all(torch.equal(before[name], tensor) for name, tensor in state(model).items())


@pytest.mark.slow
def test_repairs_bring_back_accuracy(shared):
    model = zoo.resnet20().eval()
    load_weights(model, shared / "data/weights/resnet20_cifar10_jpeg.safetensors")
    train, test = (
        open_data(shared / "data/cifar10", zoo.resnet20.preprocessing, split=split)
        for split in ("train", "test")
    )

    def tensors(data):
        samples = [data[i] for i in range(len(data))]
        return torch.stack([x for x, _ in samples]), torch.tensor([int(y) for _, y in samples])

    few, seen = tensors(references(train, 5, 0)), tensors(references(test, 15, 0))
    found = {
        repair: accuracy(
            prune(
                model, few, "weight", **bundled(keep=0.85, steps=1, batch_size=50, **options)
            ).model,
            seen,
        )
        for repair, options in {
            "none": {"repair": None},
            "recalibrate": {"repair": "recalibrate"},
            "compensate": {"repair": "compensate"},
        }.items()
    }
    assert found["recalibrate"] > found["none"] + 0.03, found
    assert found["compensate"] > found["none"] + 0.03, found


def test_a_padded_convolution_is_corrected_by_the_mean_over_positions():
    """A unit that is 1 everywhere: too much at the border, too little inside."""
    model = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 3, padding=1), nn.Flatten(), nn.Linear(25, 2)
    ).eval()
    constant(model, model[0], [1], value=1.0)
    nn.init.constant_(model[1].weight, 1.0)
    images = torch.randn(3, 1, 5, 5)
    with torch.no_grad():
        before = model[:2](images)
        compensate(model, images[:2], [Removal("0", (1,))], (images, torch.zeros(3).long()))
        operate(model, images[:2], [Removal("0", (1,))])
        error = (model[:2](images) - before).mean((0, 1))
    taps = F.conv2d(torch.ones(1, 1, 5, 5), torch.ones(1, 1, 3, 3), padding=1)[0, 0]  # 4, 6, 9
    assert torch.allclose(error, taps.mean() - taps, atol=1e-5)
