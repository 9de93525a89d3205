"""Units that others can stand in for: against dense least squares with each candidate left out."""

import copy
from itertools import product

import pytest
import torch
from bundles import bundled
from pruning_networks import Residual, chain, data_for, depthwise, randomise
from structured_networks import WHOLE
from test_rebuild import READERS, columns, example, readings
from torch import nn

import niwaki
from niwaki.criteria import Combination, RebuiltError, create, names, score
from niwaki.errors import DataError, FallbackWarning, NiwakiError
from niwaki.models.zoo import ResNet
from niwaki.pruning import couple, prune
from niwaki.pruning.units import _within_layers
from niwaki.pruning.units._within_layers import RIDGE, Reader, eliminate, rechosen


def fitted(gram, weight, left, size):
    """Fit a layer to what it gave, reading only some features; return weights and rise."""
    kept = gram[left][:, left] + size * torch.eye(len(left), dtype=gram.dtype)
    cross = weight @ (gram + size * torch.eye(len(gram), dtype=gram.dtype))[:, left]
    found = torch.zeros_like(weight)
    found[:, left] = torch.linalg.solve(kept, cross.T).T
    gone = weight - found
    whole = gram + size * torch.eye(len(gram), dtype=gram.dtype)
    return found, float(((gone @ whole) * gone).sum()) / 2


def dense(rows, weight, left, ridge):
    """The same by one dense system: rows beside a ridge, solved by orthogonal factors."""
    features = rows.shape[1]
    system = torch.cat([rows, ridge**0.5 * torch.eye(features, dtype=rows.dtype)])
    goal = system @ weight.T
    solution = torch.linalg.lstsq(system[:, left], goal, driver="gelsd").solution
    missed = goal - system[:, left] @ solution
    return float(missed.square().sum()) / 2


def by_hand(layers, units, count):
    """Remove each candidate, solve anew, take the least; rows, weight and blocks of each layer."""
    gone, steps = [], []
    for _ in range(count):
        harm = torch.full((units,), float("inf"), dtype=torch.float64)
        for unit in set(range(units)) - set(gone):
            harm[unit] = 0.0
            for rows, weight, blocks in layers:
                ridge = RIDGE * rows.square().sum(0).mean()
                energy = (rows @ weight.T).square().sum()
                lost = blocks[[*gone, unit]].flatten().tolist()
                left = sorted(set(range(rows.shape[1])) - set(lost))
                rise = dense(rows, weight, left, ridge)
                before = sorted(set(range(rows.shape[1])) - set(blocks[gone].flatten().tolist()))
                rise -= dense(rows, weight, before, ridge) if gone else 0.0
                harm[unit] += rise / energy
        gone.append(int(harm.argmin()))
        steps.append(harm)
    return gone, steps


def random_layer(seed, units, each, outputs, rows=50, more=3):
    generator = torch.Generator().manual_seed(seed)
    features = units * each + more  # some belong to nobody here
    values = torch.randn(rows, features, generator=generator).double()
    values[:, 1] += values[:, each] * 2
    order = torch.randperm(features, generator=generator)[: units * each].view(units, each)
    return values, torch.randn(outputs, features, generator=generator).double(), order


@pytest.mark.parametrize(
    ("seed", "each", "layers"), [(s, e, n) for s, e, n in product(range(3), (1, 4), (1, 2))]
)
def test_elimination_is_that_of_dense_least_squares(seed, each, layers):
    units = 6
    known = [random_layer(10 * seed + k, units, each, 4 + k) for k in range(layers)]
    pairs = [(Reader((x.T @ x)[None], w[None]), b[None]) for x, w, b in known]
    expected, steps = by_hand(known, units, 4)
    for unit, harm in zip(expected, steps, strict=True):
        found = torch.stack([reader.harm(blocks) for reader, blocks in pairs]).sum(0)
        there = harm.isfinite()
        torch.testing.assert_close(found[there], harm[there], rtol=1e-8, atol=1e-10)
        for reader, blocks in pairs:
            reader.remove(blocks[:, unit])
    again = [(Reader((x.T @ x)[None], w[None]), b[None]) for x, w, b in known]
    assert eliminate(again, 4) == expected


def test_weights_and_inverse_are_those_of_the_smaller_problem():
    x, weight, blocks = random_layer(1, 5, 2, 3)
    gram = x.T @ x
    reader = Reader(gram[None], weight[None])
    for unit in (3, 0):
        reader.remove(blocks[None, unit])
    gone = blocks[[3, 0]].flatten().tolist()
    left = sorted(set(range(len(gram))) - set(gone))
    size = RIDGE * gram.diagonal().mean()
    expected, _ = fitted(gram, weight, left, size)
    torch.testing.assert_close(reader.weight[0], expected)
    smaller = torch.linalg.inv(gram[left][:, left] + size * torch.eye(len(left)).double())
    torch.testing.assert_close(reader.inverse[0][left][:, left], smaller)


def groups_of(model, x):
    layers = [layer.name for layer in niwaki.criteria.hidden_layers(model, x[:1])]
    return couple(model, x[:2], layers)


@pytest.mark.parametrize("kind", READERS)
def test_layers_of_every_kind(kind):
    torch.manual_seed(0)
    model = READERS[kind]().double().eval()
    x = example(model)
    groups = groups_of(model, x)
    place = next(i for i, group in enumerate(groups) if group.root == "first")
    group, reader = groups[place], model.reader
    count = len(group) // 2
    taken = [range(count) if i == place else [] for i in range(len(groups))]
    found = rechosen(model, groups, taken, (x, torch.zeros(len(x), dtype=torch.long)))
    ((inputs, _),) = readings(model, x, "reader")
    design = columns(reader, inputs)  # (outputs, rows, weights)
    # Each output by a dense system of its own over the weights that it reads.
    flat = reader.weight.detach().view(-1)
    numbers = torch.arange(len(flat)).view_as(reader.weight)
    transposed = isinstance(reader, nn.modules.conv._ConvTransposeNd)
    linear = isinstance(reader, nn.Linear)
    inside = 1 if linear or reader.groups == 1 else reader.groups
    (member,) = [m for m in group.members if m.layer == "reader" and not m.output]
    owned = []
    for channels in member.channels:
        of_unit = []
        for channel in channels:
            if transposed:
                of_unit.append(numbers[channel].flatten())
            elif inside == 1:
                of_unit.append(numbers[:, channel].flatten())
            else:
                width = numbers.shape[1]
                rows = numbers.chunk(inside)[channel // width]
                of_unit.append(rows[:, channel % width].flatten())
        owned.append(set(torch.cat(of_unit).tolist()))
    energy = sum(float((rows @ flat).square().sum()) for rows in design)
    gone: list[int] = []
    grams = {}
    for number, rows in enumerate(design):
        used = (rows != 0).any(0).nonzero()[:, 0].tolist()
        per_group = reader.weight.numel() // len(design)
        # The weights of the group that an output belongs to, also those that read padding alone.
        grams[number] = (used, RIDGE * float(rows.square().sum()) / per_group)
    while len(gone) < count:
        harm = {}
        for unit in set(range(len(owned))) - set(gone):
            lost = set().union(*(owned[u] for u in [*gone, unit]))
            harm[unit] = 0.0
            for number, rows in enumerate(design):
                used, ridge = grams[number]
                there, weight = rows[:, used], flat[used][None]
                left = [k for k, w in enumerate(used) if w not in lost]
                harm[unit] += dense(there, weight, left, ridge) / energy
        gone.append(min(sorted(harm), key=harm.__getitem__))
    assert sorted(found[place]) == sorted(gone)


class Wide(nn.Module):
    """Six filters of which one is a sum of two others, read by one or by several layers."""

    def __init__(self, several):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3)
        self.one, self.two = nn.Conv2d(6, 4, 3), nn.Conv2d(6, 3, 1)
        self.several = several
        self.head = nn.Linear(7 if several else 4, 3)

    def forward(self, x):
        x = self.first(x)
        found = [self.one(x).relu().mean((2, 3))]
        if self.several:
            found.append(self.two(x).relu().mean((2, 3)))
        return self.head(torch.cat(found, 1))


@pytest.mark.parametrize("several", [False, True])
def test_a_linear_combination_of_others_goes_first_and_nothing_is_lost(several):
    torch.manual_seed(3)
    model = Wide(several).double().eval()
    with torch.no_grad():
        for tensor in (model.first.weight, model.first.bias):
            tensor[4] = 2 * tensor[0] - 3 * tensor[1]
            tensor[4] *= 5  # a contribution that no score overlooks
    data = data_for(9, samples=30, dtype=torch.float64)
    groups = groups_of(model, data[0])
    found = rechosen(model, groups, [[0]] + [[]] * (len(groups) - 1), data)
    # 0, 1 and 4 stand for one another; any of them may go, and nothing is lost.
    assert found[0][0] in (0, 1, 4)
    only = ["one", "two", "head"]
    pruned = prune(
        model,
        data,
        "lrp.rebuilt",
        keep=0.95,
        of="units",
        schedule=niwaki.pruning.Schedule(steps=1),
        limits=niwaki.pruning.Limits(ignore=only),
    )
    (removal,) = pruned.plan.steps[0]
    assert removal.layer == "first"
    assert set(removal.channels) <= {0, 1, 4}
    assert len(removal.channels) == 1
    torch.testing.assert_close(pruned.model(data[0]), model(data[0]), rtol=1e-6, atol=1e-8)


def test_widths_are_those_of_the_base():
    model, data = randomise(ResNet(1, 3)), data_for(16, samples=12)
    for base in ("lrp", "taylor"):
        widths = []
        for criterion in (base, f"{base}.rebuilt"):
            pruned = prune(
                model,
                data,
                criterion,
                keep=0.6,
                repair=None,
                schedule=niwaki.pruning.Schedule(steps=1),
            )
            widths.append([tuple(p.shape) for p in pruned.model.parameters()])
        assert widths[0] == widths[1]


def plans(model, data, **options):
    options = {"keep": 0.5, "of": "units", "steps": 2, **options}
    return prune(model, data, "taylor.rebuilt", **bundled(**options)).plan


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::niwaki.errors.FallbackWarning")
@pytest.mark.parametrize("make", [Residual, chain, depthwise, *WHOLE.values()])
def test_neither_batches_nor_chance_change_anything_and_the_model_stays(make):
    torch.manual_seed(0)
    model = randomise(make()).double()
    data = data_for(16 if make not in (Residual, chain, depthwise) else 8, 12, dtype=torch.float64)
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    first = plans(model, data, batch_size=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(plans(model, data, batch_size=size) == first for size in (5, 12))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())


def test_layers_in_portions_give_the_same():
    model, data = randomise(ResNet(1, 3)), data_for(16, samples=12)
    groups = groups_of(model, data[0])
    taken = [list(range(len(group) // 2)) for group in groups]
    whole = rechosen(model, groups, taken, data)
    assert rechosen(model, groups, taken, data, max_memory="1MB") == whole
    assert [len(units) for units in whole] == [len(units) for units in taken]


def test_limits_and_protected_layers_are_respected():
    model, data = randomise(ResNet(1, 3)), data_for(16, samples=12)
    inner = [name for name, m in model.named_modules() if name.endswith("conv1")][-1]
    options = {"ignore": [inner], "round_to": 4, "min_units": 8, "ceilings": 0.5}
    pruned = prune(model, data, "lrp.rebuilt", **bundled(keep=0.7, steps=2, **options))
    whole = dict(model.named_modules())
    assert inner not in pruned.plan.removed()
    for name, module in pruned.model.named_modules():
        if isinstance(module, nn.Conv2d) and name in pruned.plan.removed():
            assert module.out_channels % 4 == 0
            assert module.out_channels >= max(8, whole[name].out_channels // 2)


@pytest.mark.parametrize(("repair", "name"), [("rebuild", "lrp.rebuilt"), (None, "lrp")])
def test_the_default_depends_on_the_repair(repair, name):
    model, data = randomise(chain()), data_for(8)
    usual = prune(model, data, keep=0.5, repair=repair, schedule=niwaki.pruning.Schedule(steps=2))
    named = prune(
        model, data, name, keep=0.5, repair=repair, schedule=niwaki.pruning.Schedule(steps=2)
    )
    assert usual.plan == named.plan
    assert usual.settings == named.settings
    assert usual.settings["criterion"] == repr(create(name))


class Counting(nn.Module):
    """A network whose operations cannot be listed."""

    def __init__(self):
        super().__init__()
        self.net = chain()

    def forward(self, x):
        return self.net(x[: len(x)])


def test_networks_that_cannot_be_rebuilt():
    model, data = randomise(Counting()), data_for(8)
    with pytest.warns(FallbackWarning, match="recalibrate"):
        usual = prune(model, data, keep=0.5, schedule=niwaki.pruning.Schedule(steps=2))
    assert usual.settings["criterion"] == repr(create("lrp"))
    # Asked for by name, units are chosen so, whatever the repair.
    groups = groups_of(model, data[0])
    assert rechosen(model, groups, [[0, 1]] * len(groups), data)


def test_single_weights_have_no_layers_to_choose_within():
    with pytest.raises(ValueError, match=r"lrp\.rebuilt.*of weights"):
        niwaki.pruning.prune_weights(randomise(chain()), data_for(8), "lrp.rebuilt")


def test_images_that_are_not_numbers_are_refused():
    model, (images, labels) = randomise(chain()), data_for(8)
    images = images.clone()
    images[2, 0, 0, 0] = float("nan")
    groups = groups_of(model, images)
    with pytest.raises(DataError, match="NaN or infinite"):
        rechosen(model, groups, [[0]] * len(groups), (images, labels))
    with pytest.raises(NiwakiError):
        prune(model, (images, labels), "weight.rebuilt", keep=0.5)


def test_the_name_and_its_options():
    assert "lrp.rebuilt" in names()
    made = create("lrp.rebuilt:reduce=signed")
    assert made.base.reduce == "signed"
    assert create("taylor.rebuilt").base.name == "taylor"
    assert create("lrp.epsilon_plus.rebuilt").name == "lrp.epsilon_plus.rebuilt"
    with pytest.raises(NiwakiError, match="nothing"):
        create("lrp.rebuilt:nothing=3")
    with pytest.raises(ValueError, match="nothing at all"):
        create("nothing at all.rebuilt")
    with pytest.raises(ValueError, match="already"):
        RebuiltError(RebuiltError())
    with pytest.raises(ValueError, match="no scores of its own"):
        create("lrp.rebuilt + weight")
    assert RebuiltError(Combination("lrp + weight")).name == "lrp + weight.rebuilt"


def test_scores_are_those_of_the_base():
    model, data = randomise(chain()), data_for(8)
    for base in ("lrp", "weight", "taylor"):
        one, other = score(model, data, base), score(model, data, f"{base}.rebuilt")
        assert all(torch.equal(one[layer], other[layer]) for layer in one)
        assert other.criterion == f"{base}.rebuilt"


def test_of_very_many_units_several_go_at_a_time(monkeypatch):
    """As many as it takes for the rounds, and the others are measured anew after each round."""
    torch.manual_seed(0)
    x, weight = torch.randn(200, 9, dtype=torch.float64), torch.randn(4, 9, dtype=torch.float64)
    blocks = torch.arange(9).view(1, 9, 1)
    monkeypatch.setattr(_within_layers, "_ROUNDS", 2)
    found = eliminate([(Reader((x.T @ x)[None], weight[None]), blocks)], 5)
    by_hand, left = [], list(range(9))
    for count in (3, 2):
        mean = RIDGE * x.square().sum(0).mean()
        gram = x.T @ x + mean * torch.eye(9, dtype=torch.float64)
        kept = gram[left][:, left]
        fitted = torch.linalg.solve(kept, gram[left] @ weight.T).T  # to what it gave before
        harm = fitted.square().sum(0) / torch.linalg.inv(kept).diagonal()
        gone = [left[i] for i in harm.argsort()[:count].tolist()]
        by_hand += gone
        left = [unit for unit in left if unit not in gone]
    assert found == by_hand
