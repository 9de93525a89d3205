"""Operations that mix channels, behind units that are dead on the first images."""

import copy

import pytest
import torch
import torch.nn.functional as F
from car_networks import judged, noise, randomise
from torch import nn

from niwaki.car import Stop, greedy, index
from niwaki.car._images import judge


class Mixed(nn.Module):
    """Two convolutions with something between them."""

    def __init__(self, mix):
        super().__init__()
        self.mix = mix
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 5, 3, padding=1)
        self.fc = nn.Linear(5, 3)

    def forward(self, x):
        x = self.mix(self.a(x).relu())
        return self.fc(self.b(x).relu().mean((2, 3)))


def layer_norm(x):
    return F.layer_norm(x.movedim(1, -1), (x.shape[1],)).movedim(-1, 1)


def response_norm(x):
    gain = x.norm(dim=(2, 3), keepdim=True)
    return x + x * gain / (gain.mean(1, keepdim=True) + 1e-6)


def neighbours(x):
    kernel = torch.tensor([[[0.5, 1.0, -0.5]]])
    gate = F.conv1d(x.mean((2, 3)).unsqueeze(1), kernel, padding=1).squeeze(1)
    return x * gate[..., None, None].sigmoid()


def where_largest(x):
    return x * (x.argmax(1, keepdim=True) == torch.arange(x.shape[1]).view(1, -1, 1, 1))


def told_by_the_batch(x):
    return x * 2 if float(x.detach().mean()) > 0.25 else x - x.amax(1, keepdim=True)


MIXES = {
    "normalize": lambda x: F.normalize(x, dim=1),
    "softmax": lambda x: x.softmax(1),
    "layer norm": layer_norm,
    "group norm": lambda x: F.group_norm(x, 1),
    "local response norm": lambda x: F.local_response_norm(x, 3),
    "instance norm": lambda x: F.instance_norm(x),
    "centred": lambda x: x - x.mean(1, keepdim=True),
    "standardised": lambda x: x / (x.std(1, keepdim=True) + 1e-3),
    "global response norm": response_norm,
    "cosine": lambda x: x * F.cosine_similarity(x, torch.ones_like(x), dim=1).unsqueeze(1),
    "below the largest": lambda x: x - x.amax(1, keepdim=True),
    "where largest": where_largest,
    "sorted": lambda x: x.sort(1).values,
    "cumulated": lambda x: x.cumsum(1),
    "attention to neighbours": neighbours,
    "told by the batch": told_by_the_batch,
    "images together": lambda x: x - x.mean(0, keepdim=True),
}


# What treats all channels alike, so that a channel less is the same operation on fewer.
EQUALS = (
    "normalize", "softmax", "layer norm", "centred", "standardised", "global response norm",
    "cosine", "below the largest",
)  # fmt: skip


def dead_at_first(mix, samples=40):
    """A network whose unit 0 is dead on the first ten images, and images of both kinds."""
    model = randomise(Mixed(mix))
    images = noise(samples, 8)
    with torch.no_grad():
        model.a.weight[0] = 0
        model.a.weight[0, 0, 1, 1] = 3
        model.a.bias[0] = -9
        images[10:, 0] += 3.5
    return model, *judged(model, images)


def cut_by_hand(model, unit):
    smaller = copy.deepcopy(model)
    kept = torch.arange(6) != unit
    smaller.a.weight = nn.Parameter(smaller.a.weight[kept])
    smaller.a.bias = nn.Parameter(smaller.a.bias[kept])
    smaller.b.weight = nn.Parameter(smaller.b.weight[:, kept])
    smaller.a.out_channels = smaller.b.in_channels = 5
    return smaller


def masked_by_hand(model, unit):
    silent = copy.deepcopy(model)
    with torch.no_grad():
        silent.a.weight[unit] = silent.a.bias[unit] = 0
    return silent


def lost(model, images, labels):
    with torch.no_grad():
        return int((~judge(model(images), labels).right).sum())


@pytest.mark.filterwarnings("ignore::niwaki.errors.BatchDependenceWarning")
@pytest.mark.parametrize("name", MIXES)
def test_each_unit(name):
    """A physically pruned network is cut by hand, a masked one has a filter of zeros."""
    model, images, labels = dead_at_first(MIXES[name])
    found = index(model, (images, labels))
    layer = found["a"]
    by_hand = dict.fromkeys(("removed", "spliced", "cut"), cut_by_hand)
    by_hand["masked"] = masked_by_hand
    before = lost(model, images, labels)
    truth = [
        lost(by_hand[path](model, unit), images, labels) - before
        for unit, path in enumerate(layer.paths)
    ]
    assert layer.lost.tolist() == truth
    assert len(found["b"]) == 5
    if name in EQUALS:
        assert layer.path in ("removed", "cut")


def test_the_search_follows_the_index():
    model, images, labels = dead_at_first(MIXES["normalize"])
    found = index(model, (images, labels))
    gone = greedy(model, (images, labels), Stop(remove=1)).settings["removals"][0]
    ranking = [pair for pair in found.ranking() if found[pair[0]].path not in ("cut", "masked")]
    assert (gone["layer"], gone["unit"]) == ranking[0]
