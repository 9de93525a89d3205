"""What cannot be pruned, each with a clear error, and what looks as if it could not."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from bundles import bundled
from pruning_networks import PartlyFunctional, chain, data_for, lost, randomise
from torch import nn

from niwaki.errors import DataError, KeptWarning, ModelError, NiwakiError, NothingToPruneError
from niwaki.pruning import Limits, Removal, Schedule, operate, prune

WRONG = [
    *[({"keep": keep}, ValueError, "between 0 and 1") for keep in (0, 1, -1, 1.5, float("nan"))],
    ({"criterion": "lpr"}, ValueError, "did you mean lrp"),
    ({"of": "flops"}, ValueError, "'units', 'params', 'macs'"),
    ({"ignore": ["conv7"]}, ValueError, "no convolution or linear layer 'conv7'"),
    ({"ignore": ["2"]}, ValueError, "no convolution or linear layer '2'"),
    ({"steps": 0}, ValueError, "steps = 0"),
    ({"steps": 2, "per_step": 0.1}, ValueError, "not both"),
    ({"per_step": 0}, ValueError, "per_step = 0"),
    ({"per_step": 1.5}, ValueError, "per_step = 1.5"),
    ({"min_units": 0}, ValueError, "min_units = 0"),
    ({"keep": 0.0001}, NiwakiError, "cannot be reached: with 1 unit"),
    ({"keep": 0.5, "min_units": 5}, NiwakiError, "cannot be reached"),
    ({"min_units": 8}, NothingToPruneError, "nothing to prune"),
    ({"seeed": 1}, TypeError, "seeed"),
    ({"batch_size": 0}, ValueError, "batch_size"),
]


@pytest.mark.parametrize(("options", "error", "message"), WRONG, ids=lambda v: str(v)[:40])
def test_what_cannot_be_asked_for(options, error, message):
    options = {"criterion": "random", "keep": 0.5, "of": "macs", "steps": None, **options}
    with pytest.raises(error, match=message):
        prune(randomise(chain()), data_for(8), **bundled(**options))


class FunctionalOnly(nn.Module):
    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(5, 3, 3, 3))
        self.matrix = nn.Parameter(torch.randn(3, 5))

    def forward(self, x):
        return F.linear(F.relu(F.conv2d(x, self.kernel)).mean((2, 3)), self.matrix)


@pytest.mark.parametrize(
    "build",
    [lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), FunctionalOnly],
    ids=["single linear", "functional"],
)
def test_networks_with_nothing_to_prune(build):
    with pytest.raises(NothingToPruneError):
        prune(build().eval(), data_for(8), "weight", keep=0.5)


def test_functional_layers_count_and_stay():
    model, data = randomise(PartlyFunctional()), data_for(8)
    pruned = prune(model, data, "taylor", keep=0.8, of="units", schedule=Schedule(steps=1))
    assert pruned.trajectory[0].units == 11
    assert pruned.trajectory[1].units == 8
    assert pruned.plan.removed() == {"conv": 3}


def spoil_training(model):
    model[4].train()


def spoil_nan(model):
    model[3].bias.data[1] = float("nan")


def spoil_mask(model):
    nn.utils.prune.l1_unstructured(model[3], "weight", 0.3)


def spoil_mask_then_run(model):
    spoil_mask(model)
    with torch.no_grad():
        model(data_for(8)[0])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_training, "'4' is in training mode"),
        (spoil_nan, r"3\.bias has NaN"),
        (spoil_mask, r"'3' is made anew in each pass .*prune\.remove"),
        (spoil_mask_then_run, r"'3' is made anew in each pass .*prune\.remove"),
    ],
)
def test_networks_that_cannot_be_pruned_as_they_are(spoil, message):
    model = randomise(chain())
    spoil(model)
    with pytest.raises(ModelError, match=message):
        prune(model, data_for(8), "weight", keep=0.5)


def test_a_mask_made_permanent_is_no_obstacle():
    model = randomise(chain())
    spoil_mask(model)
    nn.utils.prune.remove(model[3], "weight")
    assert prune(model, data_for(8), "weight", keep=0.5).trajectory.kept("macs")[-1] <= 0.5


class RawSkip(nn.Module):
    """Adds the image to a layer's output, which ties its channels to those of the image."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 6, 3)
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(self.b(x + self.a(x).relu()).relu().mean((2, 3)))


def test_a_layer_tied_to_the_image_stays():
    model, data = randomise(RawSkip()), data_for(8)
    with pytest.warns(KeptWarning, match="a: all units stay: add in the forward pass"):
        pruned = prune(model, data, "weight", keep=0.5, of="units", schedule=Schedule(steps=1))
    assert pruned.plan.removed() == {"b": 5}
    again = prune(
        model,
        data,
        "weight",
        keep=0.5,
        of="units",
        schedule=Schedule(steps=1),
        limits=Limits(ignore=["a"]),
    )
    assert again.plan == pruned.plan


class Scaled(nn.Module):
    """A bare parameter for each channel, as in ConvNeXt's layer scale."""

    def __init__(self):
        super().__init__()
        self.a, self.gain = nn.Conv2d(3, 6, 3), nn.Parameter(torch.rand(6, 1, 1))
        self.b, self.fc = nn.Conv2d(6, 5, 1), nn.Linear(5, 3)

    def forward(self, x):
        return self.fc(self.b(self.a(x) * self.gain).relu().mean((2, 3)))


@pytest.mark.parametrize("of", ["units", "params", "macs"])
def test_bare_parameters_go_with_their_channels(of):
    pruned = prune(
        randomise(Scaled()), data_for(8), "weight", keep=0.6, of=of, schedule=Schedule(steps=2)
    )
    assert pruned.trajectory.kept(of)[-1] <= 0.6
    assert len(pruned.model.gain) == pruned.model.a.out_channels < 6


class Twice(nn.Module):
    """The same layer used twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(self.b(self.b(self.a(x).relu()).relu()).relu().mean((2, 3)))


@pytest.mark.parametrize("of", ["units", "params", "macs"])
def test_a_layer_used_twice_is_pruned_once(of):
    pruned = prune(
        randomise(Twice()), data_for(8), "weight", keep=0.6, of=of, schedule=Schedule(steps=2)
    )
    assert 0.4 < pruned.trajectory.kept(of)[-1] <= 0.6
    assert pruned.model.b.in_channels == pruned.model.b.out_channels == pruned.model.a.out_channels


@pytest.mark.long
def test_a_channel_shuffle_is_followed():
    torch.manual_seed(0)
    model, data = randomise(torchvision.models.shufflenet_v2_x0_5()), data_for(64, samples=2)
    with pytest.warns(KeptWarning, match=r"stage3\.0\.branch2\.5.*: .* units stay"):
        pruned = prune(
            model, data, "weight", keep=0.7, of="macs", repair=None, schedule=Schedule(steps=1)
        )
    assert pruned.trajectory.kept("macs")[-1] <= 0.7
    assert pruned.plan.removed() == lost(model, pruned.model)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((torch.zeros(0, 3, 8, 8), torch.zeros(0, dtype=torch.long)), "no data"),
        ((torch.zeros(2, 3, 8, 8), torch.tensor([0, 3])), "label 3"),
        ((torch.full((2, 3, 8, 8), float("inf")), torch.tensor([0, 1])), "infinite"),
    ],
    ids=["empty", "label", "infinite"],
)
def test_data_that_cannot_be_used(data, message):
    with pytest.raises(DataError, match=message):
        prune(randomise(chain()), data, "lrp", keep=0.5)


def test_a_grouped_transposed_convolution_loses_the_same_places_in_each_group():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2),
        nn.ReLU(),
        nn.Conv2d(6, 10, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(10, 3),
    ).eval()
    images = torch.randn(4, 3, 8, 8)
    x = model[:4](images).clone()
    x[:, [1, 4]] = 0
    expected = model[4:](x)
    operate(model, images, [Removal("2", (4,))])
    assert (model[2].out_channels, model[2].weight.shape) == (4, (8, 2, 2, 2))
    torch.testing.assert_close(model(images), expected)
