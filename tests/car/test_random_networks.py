"""Networks at random, in double precision: the index equals physical removal to the last image."""

import copy

import pytest
import torch
from car_networks import brute_force, judged, masked, randomise, without
from hypothesis import HealthCheck, Phase, assume, example, given, settings
from hypothesis import strategies as st
from torch import nn

from niwaki.car import Stop, greedy, index
from niwaki.car._images import judge
from niwaki.pruning import Removal, operate

EXAMPLES = settings(
    max_examples=8,
    deadline=None,
    phases=[
        Phase.explicit,
        Phase.generate,
    ],  # smaller examples are worth minutes only to who looks for a fault
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


class Net(nn.Module):
    """A stem, then blocks that replace, add to or are put beside what comes in, then a head."""

    def __init__(self, shape):
        super().__init__()
        self.joins, self.blocks = [], nn.ModuleList()
        width, stem = shape["width"], shape["stem"]
        self.stem = nn.Conv2d(3, width, stem["kernel"], stem["stride"], stem["padding"])
        for block in shape["blocks"]:
            joins, groups = block["joins"], block["groups"]
            out = width if joins == "sum" else 4
            groups = groups if width % groups == out % groups == 0 else 1
            stride = block["stride"] if joins == "chain" else 1
            layers = [nn.Conv2d(width, out, 3, stride, 1, groups=groups, bias=not block["norm"])]
            layers += [nn.BatchNorm2d(out)] if block["norm"] else []
            self.blocks.append(nn.Sequential(*layers, nn.ReLU(inplace=True)))
            self.joins.append(joins)
            width = width + out if joins == "concat" else out
        # Joined and flattened with its positions: the surgery refuses that, and says so.
        side = 1 if "concat" in self.joins else shape["side"]
        self.pool = nn.AdaptiveMaxPool2d(side) if side > 1 else nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Linear(width * side**2, 5), nn.Linear(5, 3)

    def forward(self, x):
        x = self.stem(x).relu()
        for joins, block in zip(self.joins, self.blocks, strict=True):
            y = block(x)
            if joins != "chain":
                y = x + y if joins == "sum" else torch.cat([x, y], 1)
            x = y
        return self.fc2(self.fc1(self.pool(x).flatten(1)).relu())


SHAPES = st.fixed_dictionaries(
    {
        "width": st.sampled_from([4, 6]),
        "stem": st.fixed_dictionaries(
            {
                "kernel": st.integers(1, 4),
                "stride": st.integers(1, 2),
                "padding": st.integers(0, 2),
            }
        ),
        "blocks": st.lists(
            st.fixed_dictionaries(
                {
                    "joins": st.sampled_from(["chain", "sum", "concat"]),
                    "groups": st.sampled_from([1, 2, 4]),
                    "stride": st.integers(1, 2),
                    "norm": st.booleans(),
                }
            ),
            min_size=1,
            max_size=3,
        ),
        "side": st.sampled_from([1, 2]),
    }
)


# Concatenated, then added to: some layers read only some units of a group.
_BLOCK = {"groups": 1, "stride": 1, "norm": False}
DUAL = {
    "width": 4,
    "stem": {"kernel": 1, "stride": 1, "padding": 0},
    "blocks": [{**_BLOCK, "joins": "concat"}, {**_BLOCK, "joins": "sum"}],
    "side": 1,
}


def drawn(shape, seed, samples):
    """A network in double precision, and images that it gets right three times of four."""
    model = randomise(Net(shape).double(), seed)
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(samples, 3, 9, 9, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        assume(float(model(images).std(0).min()) > 1e-3)  # no output is dead
    images, labels = judged(model, images)
    with torch.no_grad():
        assume(not bool(judge(model(images), labels).near.any()))  # nor the same as another
    return model, images, labels


@EXAMPLES
@given(SHAPES, st.integers(0, 2**31), st.integers(6, 24), st.integers(1, 9), st.data())
def test_the_index_is_physical_removal(shape, seed, samples, batch_size, data):
    model, images, labels = drawn(shape, seed, samples)
    found = index(model, (images, labels), batch_size=batch_size)
    assert {layer.path for layer in found.values()} <= {"spliced", "removed", "masked"}
    units = [(name, unit) for name in found for unit in range(len(found[name]))]
    for name, unit in data.draw(st.lists(st.sampled_from(units), min_size=1, max_size=4)):
        layer = found[name]
        out = masked if layer.path == "masked" else without
        truth = brute_force(model, images, labels, name, layer.units[unit], out)
        for kind in ("broken", "mended"):
            off = (getattr(layer, kind)[unit] - truth[kind]).abs().sum()
            assert off <= truth["tied"], (name, unit, kind)  # nearly always 0
        for kind in ("loss_change", "margin_change"):
            value = float(getattr(layer, kind)[unit])
            assert value == pytest.approx(truth[kind], rel=1e-9, abs=1e-12), (name, unit, kind)


@settings(EXAMPLES, max_examples=5)  # each takes a search and two indices
@given(SHAPES, st.integers(0, 2**31), st.integers(8, 24))
@example(DUAL, 0, 12)
def test_the_search_removes_what_the_index_ranks_first(shape, seed, samples):
    model, images, labels = drawn(shape, seed, samples)
    rows = greedy(model, (images, labels), Stop(remove=2), batch_size=7).settings["removals"]
    network = copy.deepcopy(model)
    for row in rows:
        found = index(network, (images, labels))
        name, unit = next(
            pair for pair in found.ranking() if found[pair[0]].path not in ("cut", "masked")
        )
        channels = found[name].units[unit]
        assert (row["layer"], tuple(row["channels"])) == (name, channels)
        operate(network, images[:2], [Removal(name, channels)])
