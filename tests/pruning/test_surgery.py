"""Physical removal against a twin: the whole network, with the channels zeroed where they are read.

The twin is written here by hand for each network and knows nothing of dependency graphs.
"""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from pruning_networks import (
    SMALL,
    Concat,
    Grouped,
    GroupPerLayer,
    Residual,
    assert_same,
    chain,
    data_for,
    depthwise,
    drawn,
    lost,
    randomise,
    snapshot,
)
from torch import nn

from niwaki import pruning
from niwaki.criteria import Scores, score
from niwaki.errors import KeptWarning, ModelError
from niwaki.models import zoo
from niwaki.pruning import Plan, Removal, couple, operate, replay

# What is left is compared with what was there: nothing is rebuilt.
prune = partial(pruning.prune, repair=None)


def removed(model, data, name, channels):
    operate(model, data[0], [Removal(name, tuple(channels))])
    return model


def silence(x, channels):
    x = x.clone()
    x[:, list(channels)] = 0
    return x


def test_a_chain_with_norms():
    model, data = randomise(chain()), data_for(8)
    x = silence(model[:3](data[0]), [0, 4])
    x = silence(model[3:6](x), [2, 3, 7])
    expected = model[6:](x)
    operate(model, data[0], [Removal("0", (0, 4)), Removal("3", (2, 3, 7))])
    assert (model[0].out_channels, model[1].num_features, model[8].in_features) == (4, 4, 20)
    torch.testing.assert_close(model(data[0]), expected)


def test_a_residual_block_loses_the_channel_in_all_its_parts():
    model, data = randomise(Residual()), data_for(8)
    x = silence(model.norm(model.stem(data[0])).relu(), [1, 5])
    x = silence((x + model.outer(model.inner(x).relu())).relu(), [1, 5])
    expected = model.head(x.mean((2, 3)))
    removed(model, data, "stem", [1, 5])
    assert (model.outer.out_channels, model.inner.in_channels) == (4, 4)
    torch.testing.assert_close(model(data[0]), expected)


def test_a_depthwise_layer_loses_its_filter():
    model, data = randomise(depthwise()), data_for(8)
    expected = model[5:](silence(model[:5](data[0]), [0, 3]))
    removed(model, data, "0", [0, 3])
    assert (model[2].groups, model[2].out_channels) == (4, 4)
    torch.testing.assert_close(model(data[0]), expected)


def test_concatenated_layers_are_told_apart():
    model, data = randomise(Concat()), data_for(8)
    x = model.norm(torch.cat([model.a(data[0]), model.b(data[0])], 1)).relu()
    expected = model.fc(model.c(silence(x, [1, 4 + 0, 4 + 3])).relu().mean((2, 3)))
    operate(model, data[0], [Removal("a", (1,)), Removal("b", (0, 3))])
    assert model.c.in_channels == 6
    torch.testing.assert_close(model(data[0]), expected)


def test_readers_of_two_and_of_four_groups_lose_what_serves_both():
    model, data = randomise(Grouped()), data_for(8)
    groups = {group.root: group for group in couple(model, data[0], ["stem", "own", "two", "four"])}
    # Places 0 and 4 in groups of 8, and 0 in groups of 4, all go together.
    units = groups["own"].units
    assert units == tuple(tuple(range(i, 16, 4)) for i in range(4))
    x = model.own(model.stem(data[0]).relu()).relu()
    x = silence(x, units[2])
    expected = model.fc((model.two(x) + model.four(x)).relu().mean((2, 3)))
    removed(model, data, "own", units[2])
    torch.testing.assert_close(model(data[0]), expected)


def test_layers_that_each_feed_a_group_of_their_own_lose_the_same_places():
    model, data = randomise(GroupPerLayer()), data_for(8)
    groups = couple(model, data[0], ["a", "b", "grouped"])
    assert [group.root for group in groups] == ["a", "grouped"]
    x = silence(torch.cat([model.a(data[0]), model.b(data[0])], 1).relu(), [1, 4 + 1])
    expected = model.fc(model.grouped(x).relu().mean((2, 3)))
    operate(model, data[0], [Removal("b", (1,))])
    assert (model.a.out_channels, model.b.out_channels) == (3, 3)
    torch.testing.assert_close(model(data[0]), expected)


def test_option_a_shortcuts_follow():
    torch.manual_seed(0)
    model, data = randomise(zoo.resnet20()), data_for(16, samples=2)
    in_stage, later = [0, 5, 15], [2, 8, 20, 31]  # of the first stage, and of the second

    def run(x):
        x = silence(model.relu(model.bn1(model.conv1(x))), in_stage)
        for stage, gone in ((model.layer1, in_stage), (model.layer2, later), (model.layer3, [])):
            for block in stage:
                x = silence(block(x), gone)
        return model.linear(x.mean((2, 3)))

    expected = run(data[0])
    operate(
        model,
        data[0],
        [Removal("conv1", tuple(in_stage)), Removal("layer2.0.conv2", tuple(later))],
    )
    assert (model.layer1[2].conv2.out_channels, model.layer2[2].conv2.out_channels) == (13, 28)
    assert model.layer2[0].shortcut.in_channels == 13
    torch.testing.assert_close(model(data[0]), expected)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(drawn)
def test_drawn_networks_are_pruned_or_refused_but_never_wrong(model):
    # `operate` compares with its own silenced twin; that of dead filters needs none: a filter
    # whose reader has zero weights can go without any change.
    model, data = randomise(model).double(), data_for(5, dtype=torch.float64)
    groups = couple(model, data[0], list(score(model, data, "weight")))
    group = max(groups, key=len)
    if len(group) < 2:
        return
    for member in group.members:
        if not member.output:
            reader = model.get_submodule(member.layer)
            for channel in member.channels[0]:
                place = channel % reader.weight.shape[1] if reader.weight.dim() > 2 else channel
                reader.weight.data[:, place] = 0
    before = model(data[0])
    operate(model, data[0], [Removal(group.root, group.units[0])])
    torch.testing.assert_close(model(data[0]), before)


class Padded(nn.Module):
    """Option A as the classic code writes it, with a lambda or a pad in the forward pass."""

    def __init__(self, norm=nn.BatchNorm2d):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1), norm(4)
        self.conv1, self.norm1 = nn.Conv2d(4, 8, 3, 2, padding=1), norm(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1), norm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        x = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return self.head((x + short).relu().mean((2, 3)))


def group_norm(width):
    return nn.GroupNorm(1, width)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, group_norm], ids=["batch norm", "group norm"])
@pytest.mark.parametrize("channel", [0, 1, 6, 7])
def test_channels_beside_a_padding_stay(norm, channel):
    model, data = randomise(Padded(norm)), data_for(8)
    with pytest.raises(ModelError, match=r"add in the forward pass joins them .*ignore=\["):
        removed(model, data, "conv2", [channel])


@pytest.mark.parametrize("layer", ["stem", "conv2"])
@pytest.mark.parametrize("channel", [0, 3])
def test_channels_within_a_padding_go(layer, channel):
    model, data = randomise(Padded()), data_for(8)
    x = silence(model.norm(model.stem(data[0])).relu(), [channel])
    short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
    x = model.norm2(model.conv2(model.norm1(model.conv1(x)).relu()))
    expected = model.head(silence((x + short).relu(), [channel + 2]).mean((2, 3)))
    removed(model, data, layer, [channel + 2 * (layer == "conv2")])
    assert (model.stem.out_channels, model.conv2.out_channels) == (3, 7)
    torch.testing.assert_close(model(data[0]), expected)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, group_norm], ids=["batch norm", "group norm"])
@pytest.mark.parametrize("criterion", ["random", "taylor"])
def test_a_padding_network_is_pruned_and_says_what_stays(norm, criterion):
    model, data = randomise(Padded(norm)), data_for(8)
    with pytest.warns(KeptWarning, match=r"conv2: 4 of 8 units stay: add in the forward pass"):
        pruned = prune(
            model, data, criterion, keep=0.6, of="units", schedule=pruning.Schedule(steps=1)
        )
    assert pruned.plan.removed() == lost(model, pruned.model)
    assert pruned.model.conv2.out_channels >= 5


def test_a_padded_network_can_be_pruned_around_the_padding():
    model, data = randomise(Padded()), data_for(8)
    pruned = prune(
        model,
        data,
        "weight",
        keep=0.8,
        of="units",
        schedule=pruning.Schedule(steps=1),
        limits=pruning.Limits(ignore=["stem", "conv2"]),
    )
    gone = pruned.plan.steps[0][0]
    assert gone.layer == "conv1"
    x = model.norm(model.stem(data[0])).relu()
    short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
    x = silence(model.norm1(model.conv1(x)).relu(), gone.channels)
    expected = model.head((model.norm2(model.conv2(x)) + short).relu().mean((2, 3)))
    torch.testing.assert_close(pruned.model(data[0]), expected)


def test_a_result_that_is_not_a_number_is_no_agreement(monkeypatch):
    from niwaki.pruning.units import _cut

    def cut_and_spoil(model, followed, doomed):
        model[8].bias = nn.Parameter(torch.full((3,), float("nan")))

    monkeypatch.setattr(_cut, "cut", cut_and_spoil)
    model = randomise(chain())
    before = snapshot(model)
    with pytest.raises(ModelError, match="differs by nan"):
        removed(model, data_for(8), "0", [1])
    assert_same(before, snapshot(model))


@pytest.mark.parametrize("name", SMALL)
def test_a_plan_replays_on_a_fresh_network(name):
    model, data = randomise(SMALL[name]()), data_for(8)
    pruned = prune(model, data, "random", keep=0.6, of="params", schedule=pruning.Schedule(steps=2))
    torch.manual_seed(99)
    fresh = SMALL[name]().eval()
    replay(fresh, data[0], Plan.from_json(pruned.plan.to_json()))
    fresh.load_state_dict(pruned.model.state_dict())
    assert torch.equal(fresh(data[0]), pruned.model(data[0]))


class TestCoupledScores:
    """The score of a group is the sum over its members, channel by channel."""

    def group(self, model, root, scored, values):
        scores = Scores({n: torch.tensor(v, dtype=torch.float64) for n, v in values.items()})
        (group,) = (
            group
            for group in couple(model, data_for(8)[0], scored)
            if any(m.layer == root and m.output for m in group.members)
        )
        return group.scores(scores).tolist()

    def test_residual_block(self):
        values = {"stem": [1, 2, 3, 4, 5, 6], "outer": [10, 20, 30, 40, 50, 60], "inner": [7] * 5}
        found = self.group(randomise(Residual()), "stem", ["stem", "inner", "outer"], values)
        assert found == [11, 22, 33, 44, 55, 66]

    def test_depthwise(self):
        values = {"0": [1, 2, 3, 4, 5, 6], "2": [60, 50, 40, 30, 20, 10], "5": [9] * 4}
        found = self.group(randomise(depthwise()), "0", ["0", "2", "5"], values)
        assert found == [61, 52, 43, 34, 25, 16]

    def test_concat(self):
        values = {"a": [1, 2, 3, 4], "b": [5, 6, 7, 8, 9], "c": [100] * 4}
        for root in ("a", "b"):
            found = self.group(randomise(Concat()), root, ["a", "b", "c"], values)
            assert found == values[root]

    def test_flatten_before_linear(self):
        found = self.group(randomise(chain()), "3", ["0", "3"], {"0": [1] * 6, "3": range(8)})
        assert found == list(range(8))

    def test_grouped(self):
        values = {"stem": range(16), "own": [100 * i for i in range(16)], "two": [0] * 8}
        values["four"] = [0] * 8
        model = randomise(Grouped())
        found = self.group(model, "own", ["stem", "own", "two", "four"], values)
        assert found == [100 * sum(range(i, 16, 4)) for i in range(4)]

    def test_members_without_scores_count_nothing(self):
        values = {"stem": [1, 2, 3, 4, 5, 6]}
        found = self.group(randomise(Residual()), "stem", ["stem", "inner", "outer"], values)
        assert found == [1, 2, 3, 4, 5, 6]
