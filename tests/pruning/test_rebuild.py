"""Layers fitted to the unpruned network: against dense least squares made by hand."""

import copy
import warnings

import pytest
import torch
from bundles import bundled
from pruning_networks import data_for
from structured_networks import WHOLE
from timm.layers import BatchNormAct2d
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.ops import StochasticDepth

import niwaki
from niwaki.errors import DataError, FewSamplesWarning, ModelError
from niwaki.pruning import Plan, Removal, rebuild, replay

PULL = 10.0


class Two(nn.Module):
    """A convolution, an activation, and a reader of any kind."""

    def __init__(self, reader, *, dimensions=2, flat=False, norm=None, before=None):
        super().__init__()
        make = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
        self.first = make(2, 6, 3, padding=1)
        self.before = before or nn.Identity()
        self.flat = nn.Flatten() if flat else nn.Identity()
        self.reader = reader
        self.norm = norm or nn.Identity()

    def forward(self, x):
        return self.norm(self.reader(self.flat(self.before(torch.relu(self.first(x))))))


def measured(norm):
    """A batch norm with statistics and parameters of its own."""
    with torch.no_grad():
        for tensor in (norm.weight, norm.running_var):
            tensor.uniform_(0.5, 2)
        for tensor in (norm.bias, norm.running_mean):
            tensor.normal_()
    return norm


def grouped_twice(transposed=False):
    """Channels 0-2 and 3-5 go to a group each; one of either goes."""
    make = nn.ConvTranspose2d if transposed else nn.Conv2d
    return make(6, 4, 3, padding=1, groups=2)


READERS = {
    "plain": lambda: Two(nn.Conv2d(6, 4, 3, padding=1)),
    "without padding": lambda: Two(nn.Conv2d(6, 4, 3)),
    "strided": lambda: Two(nn.Conv2d(6, 4, 3, stride=2, padding=1)),
    "dilated": lambda: Two(nn.Conv2d(6, 4, 3, dilation=2, padding=2)),
    "uneven": lambda: Two(nn.Conv2d(6, 4, (3, 2), stride=(1, 2), padding=(2, 0))),
    "same": lambda: Two(nn.Conv2d(6, 4, (3, 5), padding="same")),
    "reflected": lambda: Two(nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect")),
    "one by one": lambda: Two(nn.Conv2d(6, 4, 1)),
    "grouped": lambda: Two(grouped_twice()),
    "transposed": lambda: Two(nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1)),
    "transposed, dilated": lambda: Two(nn.ConvTranspose2d(6, 4, 2, dilation=2, padding=3)),
    "transposed, grouped": lambda: Two(grouped_twice(transposed=True)),
    "linear": lambda: Two(nn.Linear(6 * 36, 4), flat=True),
    "in one dimension": lambda: Two(nn.Conv1d(6, 4, 3, padding=1), dimensions=1),
    "in three dimensions": lambda: Two(nn.Conv3d(6, 4, 3, padding=1), dimensions=3),
    "transposed in one": lambda: Two(nn.ConvTranspose1d(6, 4, 3, stride=3), dimensions=1),
    "without bias": lambda: Two(nn.Conv2d(6, 4, 3, bias=False)),
    "norm behind": lambda: Two(
        nn.Conv2d(6, 4, 3, bias=False), norm=measured(nn.BatchNorm2d(4))
    ),
    "bias and norm": lambda: Two(nn.Conv2d(6, 4, 3), norm=measured(nn.BatchNorm2d(4))),
    "norm before": lambda: Two(nn.Conv2d(6, 4, 3), before=measured(nn.BatchNorm2d(6))),
}  # fmt: skip


def example(model, images=12):
    dimensions = model.first.weight.dim() - 2
    return torch.randn(images, 2, *(6,) * dimensions, dtype=torch.float64)


def cut(model, x, channels=(1, 4), layer="first"):
    plan = Plan().with_step([Removal(layer, channels)])
    smaller = copy.deepcopy(model)
    replay(smaller, x[:2], plan)
    return smaller, plan


def readings(model, x, layer):
    """What a layer reads and gives."""
    seen = []
    handle = model.get_submodule(layer).register_forward_hook(
        lambda _, a, out: seen.append((a[0], out))
    )
    with torch.no_grad():
        model(x)
    handle.remove()
    return seen


def columns(layer, inputs):
    """How each output depends on each weight, by one weight at a time: (outputs, rows, weights)."""
    found = []
    probe = copy.deepcopy(layer)
    with torch.no_grad():
        if probe.bias is not None:
            probe.bias.zero_()
        for index in range(layer.weight.numel()):
            probe.weight.zero_()
            probe.weight.view(-1)[index] = 1
            out = probe(inputs)
            found.append(out.movedim(-1 if isinstance(layer, nn.Linear) else 1, 0).flatten(1))
    return torch.stack(found, -1)


def by_hand(layer, inputs, targets, *, intercept, pull=PULL):
    """Solve for the weights of each output as one dense system; return weight and offsets."""
    design = columns(layer, inputs)
    goal = targets.movedim(-1 if isinstance(layer, nn.Linear) else 1, 0).flatten(1)
    weight, offsets = layer.weight.detach().clone(), []
    for rows, wanted in zip(design, goal, strict=True):
        used = (rows != 0).any(0).nonzero()[:, 0]
        rows = rows[:, used]
        mean = rows.mean(0) if intercept else torch.zeros(len(used), dtype=torch.float64)
        shift = wanted.mean() if intercept else 0.0
        centred = rows - mean
        features = layer.weight.numel() // len(goal)
        strength = pull / len(inputs) * centred.square().sum() / features
        start = layer.weight.detach().view(-1)[used]
        left = torch.cat([centred, strength.sqrt() * torch.eye(len(used), dtype=torch.float64)])
        right = torch.cat([wanted - shift, strength.sqrt() * start])
        solution = torch.linalg.lstsq(left, right[:, None], driver="gelsd").solution[:, 0]
        weight.view(-1)[used] = solution
        offsets.append(shift - mean @ solution)
    return weight, torch.tensor(offsets) if intercept else None


@pytest.mark.parametrize("kind", READERS)
def test_a_layer_becomes_the_dense_solution(kind):
    torch.manual_seed(0)
    model = READERS[kind]().double().eval()
    x = example(model)
    smaller, plan = cut(model, x)
    ((inputs, _),) = readings(smaller, x, "reader")
    ((_, targets),) = readings(model, x, "reader")
    reader = smaller.reader
    norm = isinstance(model.norm, nn.BatchNorm2d)
    intercept = reader.bias is not None or norm
    weight, offset = by_hand(reader, inputs, targets, intercept=intercept)
    said = rebuild(smaller, model, (x, torch.zeros(len(x))), plan, pull=PULL, mirror=False)
    torch.testing.assert_close(reader.weight.detach(), weight, rtol=0, atol=1e-8)
    if reader.bias is not None:
        torch.testing.assert_close(reader.bias.detach(), offset, rtol=0, atol=1e-8)
    elif norm:
        moved = model.norm.running_mean - smaller.norm.running_mean
        torch.testing.assert_close(moved, offset, rtol=0, atol=1e-8)
    assert list(said.errors) == ["reader"]
    before, after = said.errors["reader"]
    assert after < before


def test_depthwise_layers_aim_at_their_own_channels():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 1), nn.ReLU(),
        nn.Conv2d(5, 5, 3, padding=1, groups=5), nn.Tanh(), nn.Flatten(), nn.Linear(5 * 16, 3),
    ).double().eval()  # fmt: skip
    x = torch.randn(12, 2, 6, 6, dtype=torch.float64)
    plan = Plan().with_step([Removal("0", (2,)), Removal("2", (1, 3)), Removal("4", (1, 3))])
    smaller = copy.deepcopy(model)
    replay(smaller, x[:2], plan)
    whole = readings(model, x, "4")[0][1]
    rebuild(smaller, model, (x, torch.zeros(12)), plan, mirror=False)
    fitted = copy.deepcopy(smaller[4])
    inputs = readings(smaller, x, "4")[0][0]
    smaller[4].weight.data = model[4].weight.data[[0, 2, 4]].clone()
    weight, bias = by_hand(smaller[4], inputs, whole[:, [0, 2, 4]], intercept=True)
    torch.testing.assert_close(fitted.weight.detach(), weight, rtol=0, atol=1e-8)
    torch.testing.assert_close(fitted.bias.detach(), bias, rtol=0, atol=1e-8)


class Block(nn.Module):
    """A residual block whose shortcut is a layer of its own, or none."""

    def __init__(self, downsample=False):
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.narrow = nn.Conv2d(6, 5, 3, padding=1)
        self.wide = nn.Conv2d(5, 6, 3, padding=1, bias=False)
        self.norm = measured(nn.BatchNorm2d(6))
        self.skip = nn.Conv2d(6, 6, 1) if downsample else nn.Identity()
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        skip = self.skip(x)
        x = self.norm(self.wide(torch.relu(self.narrow(x)))) + skip
        return self.head(torch.tanh(x).mean((2, 3)))


def test_the_branch_makes_up_for_what_the_shortcut_misses():
    torch.manual_seed(0)
    model = Block(downsample=True).double().eval()
    x = torch.randn(12, 2, 6, 6, dtype=torch.float64)
    smaller, plan = cut(model, x, (1, 4), "stem")
    start = smaller.wide.weight.detach().clone()
    sums = []
    for network in (model, smaller):
        if network is smaller:
            rebuild(smaller, model, (x, torch.zeros(12)), plan, mirror=False)
        sums.append(readings(network, x, "norm")[0][1] + readings(network, x, "skip")[0][1])
    found = smaller.wide.weight.detach().clone(), smaller.norm.running_mean.clone()
    inputs = readings(smaller, x, "wide")[0][0]
    scale = model.norm.weight / (model.norm.running_var + model.norm.eps).sqrt()
    goal = sums[0] - readings(smaller, x, "skip")[0][1] - model.norm.bias.view(1, -1, 1, 1)
    goal = (goal / scale.view(1, -1, 1, 1) + model.norm.running_mean.view(1, -1, 1, 1)).detach()
    smaller.wide.weight.data = start
    weight, offset = by_hand(smaller.wide, inputs, goal, intercept=True)
    torch.testing.assert_close(found[0], weight, rtol=0, atol=1e-8)
    torch.testing.assert_close(model.norm.running_mean - found[1], offset, rtol=0, atol=1e-8)


class Joined(nn.Module):
    """A concatenation, several readers of one unit, and a layer that is called twice."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(2, 4, 3, padding=1)
        self.reader, self.other = nn.Conv2d(9, 6, 3, padding=1), nn.Conv2d(5, 6, 1)
        self.twice = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        one, two = torch.relu(self.one(x)), torch.relu(self.two(x))
        x = torch.tanh(self.reader(torch.cat([one, two], 1))) * torch.sigmoid(self.other(one))
        x = torch.tanh(self.twice(torch.tanh(self.twice(x))))
        return self.head(x.mean((2, 3)))


def test_concatenations_and_several_readers():
    torch.manual_seed(0)
    model = Joined().double().eval()
    x = torch.randn(12, 2, 6, 6, dtype=torch.float64)
    smaller, plan = cut(model, x, (0, 3), "one")
    starts = {name: copy.deepcopy(smaller.get_submodule(name)) for name in ("reader", "other")}
    said = rebuild(smaller, model, (x, torch.zeros(12)), plan, mirror=False)
    assert list(said.errors) == ["reader", "other", "twice", "head"]
    for name, start in starts.items():
        ((inputs, _),), ((_, goal),) = readings(smaller, x, name), readings(model, x, name)
        weight, bias = by_hand(start, inputs, goal, intercept=True)
        fitted = smaller.get_submodule(name)
        torch.testing.assert_close(fitted.weight.detach(), weight, rtol=0, atol=1e-8)
        torch.testing.assert_close(fitted.bias.detach(), bias, rtol=0, atol=1e-8)


def test_a_layer_that_is_called_twice_is_fitted_over_both_calls():
    torch.manual_seed(0)
    model = Joined().double().eval()
    x = torch.randn(12, 2, 6, 6, dtype=torch.float64)
    smaller, plan = cut(model, x, (0, 3), "one")
    start, later = copy.deepcopy(smaller.twice), readings(smaller, x, "twice")[1][0]
    rebuild(smaller, model, (x, torch.zeros(12)), plan, mirror=False)
    first = readings(smaller, x, "twice")[0][0]
    goals = [out for _, out in readings(model, x, "twice")]
    inputs = torch.cat([first, later])
    weight, bias = by_hand(start, inputs, torch.cat(goals), intercept=True)
    # Both calls are of the same twelve images, which the rule counts once for each call.
    torch.testing.assert_close(smaller.twice.weight.detach(), weight, rtol=0, atol=1e-8)
    torch.testing.assert_close(smaller.twice.bias.detach(), bias, rtol=0, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_what_others_can_take_over_is_not_lost(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Flatten(), nn.Linear(6 * 16, 3),
    ).eval()  # fmt: skip
    with torch.no_grad():  # units 5 to 7 are multiples of others, also behind the ReLU
        for unit, of, factor in ((5, 0, 2.0), (6, 3, 0.5), (7, 0, 1.5)):
            model[0].weight[unit] = factor * model[0].weight[of]
            model[0].bias[unit] = factor * model[0].bias[of]
    model = model.to(dtype)
    x = torch.randn(40, 2, 8, 8, dtype=dtype)
    smaller, plan = cut(model, x, (5, 6, 7), "0")
    new = torch.randn(9, 2, 8, 8, dtype=dtype)
    with torch.no_grad():
        assert not torch.allclose(smaller(new), model(new), atol=1e-2)
        rebuild(smaller, model, (x, torch.zeros(40)), plan)
        tolerance = 1e-6 if dtype == torch.float64 else 1e-5
        torch.testing.assert_close(smaller(new), model(new), rtol=0, atol=tolerance)


def network(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, bias=False), measured(nn.BatchNorm2d(8)),
        nn.ReLU(), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    return model.eval()


def data(images=30, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, 2, 6, 6, generator=generator), torch.arange(images) % 4


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_batches_and_memory_change_nothing():
    model, (x, y) = network(), data()
    smaller, plan = cut(model, x, (0, 5, 6), "3")
    found = []
    for given, memory in (
        ((x, y), None),
        (DataLoader(TensorDataset(x, y), batch_size=1), None),
        (DataLoader(TensorDataset(x, y), batch_size=7), None),
        ((x, y), "1MB"),
    ):
        again = copy.deepcopy(smaller)
        rebuild(again, model, given, plan, max_memory=memory)
        found.append(state(again))
    for other in found[1:]:
        for name, value in found[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-6, atol=1e-6)


def test_values_on_disk_are_the_same(monkeypatch):
    monkeypatch.setattr("niwaki.pruning.repair._rebuild.parse_bytes", lambda size: 1)
    model, (x, y) = network(), data()
    smaller, plan = cut(model, x, (0, 5, 6), "3")
    other = copy.deepcopy(smaller)
    rebuild(smaller, model, (x, y), plan)
    rebuild(other, model, (x, y), plan, max_memory="1MB")
    for name, value in state(smaller).items():
        assert torch.equal(other.state_dict()[name], value)


def test_many_places_are_looked_at_in_turns():
    """Beyond a bound places are left out; the fit is still close to that over all places."""
    model, (x, y) = network(), (torch.randn(200, 2, 24, 24), torch.arange(200) % 4)
    model[4], model[10] = nn.Tanh(), nn.Linear(8 * 100, 4)
    smaller, plan = cut(model, x, (0, 5, 6), "0")
    said = rebuild(smaller, model, (x, y), plan, mirror=False)
    ((inputs, got),), ((_, goal),) = readings(smaller, x, "3"), readings(model, x, "3")
    start = cut(model, x, (0, 5, 6), "0")[0][3]
    with torch.no_grad():
        before = (start(inputs) - goal).square().mean()
    after = (got - goal).square().mean()
    assert after < 0.7 * before
    assert after / goal.var((0, 2, 3)).mean() == pytest.approx(said.errors["3"][1], rel=0.1)


def test_the_given_networks_stay_and_errors_shrink():
    model, (x, y) = network(), data()
    before = state(model)
    smaller, plan = cut(model, x, (0, 5, 6), "0")
    said = rebuild(smaller, model, (x, y), plan)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert list(said.errors) == ["3", "6", "10"]
    assert all(after <= first for first, after in said.errors.values())
    assert said.left_out == ()
    assert "3 " in str(said)
    again = copy.deepcopy(smaller)
    rebuild(again, model, (x, y), plan)
    assert sum(rebuilt[1] for rebuilt in said.errors.values()) > 0
    with torch.no_grad():
        assert (smaller(x) - model(x)).abs().mean() < (
            cut(model, x, (0, 5, 6), "0")[0](x) - model(x)
        ).abs().mean()


def test_an_untouched_network_is_left_alone():
    model, (x, y) = network(), data()
    same = copy.deepcopy(model)
    said = rebuild(same, model, (x, y))
    assert said.errors == {}
    assert all(
        torch.equal(a, b) for a, b in zip(same.parameters(), model.parameters(), strict=True)
    )


def test_masks_free_some_weights_only():
    torch.manual_seed(0)
    model = Two(nn.Conv2d(6, 4, 3)).double().eval()
    x = example(model)
    smaller = copy.deepcopy(model)
    mask = torch.rand(smaller.reader.weight.shape) > 0.4
    smaller.reader.weight.data *= mask
    start = copy.deepcopy(smaller.reader)
    rebuild(smaller, model, (x, torch.zeros(12)), masks={"reader": mask}, mirror=False)
    ((inputs, _),), ((_, goal),) = readings(smaller, x, "reader"), readings(model, x, "reader")
    design, targets = columns(start, inputs), goal.movedim(1, 0).flatten(1)
    for output in range(4):
        all_rows = design[output].unflatten(1, (4, -1))[:, output]
        full = all_rows - all_rows.mean(0)
        strength = PULL / 12 * full.square().sum(0).mean()
        free = mask[output].flatten()
        rows = full[:, free]
        w0 = start.weight.detach()[output].flatten()[free]
        left = torch.cat([rows, strength.sqrt() * torch.eye(int(free.sum()), dtype=torch.float64)])
        right = torch.cat([targets[output] - targets[output].mean(), strength.sqrt() * w0])
        expected = torch.linalg.lstsq(left, right[:, None], driver="gelsd").solution[:, 0]
        found = smaller.reader.weight.detach()[output].flatten()
        torch.testing.assert_close(found[free], expected, rtol=0, atol=1e-8)
        assert bool((found[~free] == 0).all())


def test_few_samples_are_told():
    model, (x, y) = network(), data(3)
    smaller, plan = cut(model, x, (1,), "0")
    with pytest.warns(FewSamplesWarning, match=r"3 reference sample\(s\)"):
        rebuild(smaller, model, (x, y), plan)


def test_constant_values_leave_the_weights(recwarn):
    model, (_, y) = network(), data()
    x = torch.zeros(30, 2, 6, 6)
    model[0].padding = (0, 0)
    model[3].padding = (0, 0)
    model[6] = nn.Conv2d(8, 8, 1, bias=False)
    smaller, plan = cut(model, x, (1,), "0")
    rebuild(smaller, model, (x, y), plan)
    with torch.no_grad():
        torch.testing.assert_close(smaller(x), model(x), rtol=0, atol=1e-4)
    kept = [i for i in range(8) if i != 1]
    torch.testing.assert_close(smaller[3].weight.detach(), model[3].weight.detach()[:, kept])


def test_wrong_values_are_told_and_nothing_is_changed():
    model, (x, y) = network(), data()
    model[0].weight.data *= 1e4
    smaller, plan = cut(model, x, (1,), "0")
    before = state(smaller)
    x[3, 0, 2, 2] = 3e38
    with pytest.raises(DataError, match=r"'3' reads or should give is NaN or infinite"):
        rebuild(smaller, model, (x, y), plan)
    assert all(torch.equal(value, before[name]) for name, value in smaller.state_dict().items())


def test_a_plan_of_another_network_is_told():
    model, (x, y) = network(), data()
    smaller, plan = cut(model, x, (1,), "0")
    with pytest.raises(ModelError, match="do not belong together"):
        rebuild(smaller, model, (x, y), plan.with_step([Removal("3", (0,))]))


class Branching(nn.Module):
    """What it does depends on its input, so that it cannot be listed."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 6, 3), nn.Linear(6 * 4, 4)

    def forward(self, x):
        x = torch.relu(self.b(torch.relu(self.a(x))))
        if bool(x.sum() > 1e9):
            x = x + 1
        return self.c(x.flatten(1))


@pytest.mark.filterwarnings("ignore::niwaki.errors.ChoiceWarning")
def test_a_network_that_cannot_be_listed_is_told_or_pruned_otherwise():
    torch.manual_seed(0)
    model, (x, y) = Branching().eval(), data()
    smaller, plan = cut(model, x, (1,), "a")
    with pytest.raises(ModelError, match="cannot be rebuilt, because its operations"):
        rebuild(smaller, model, (x, y), plan)
    with pytest.warns(niwaki.errors.FallbackWarning, match="cannot be rebuilt"):
        pruned = niwaki.prune(
            model,
            (x, y),
            "weight",
            keep=0.7,
            repair="rebuild",
            schedule=niwaki.pruning.Schedule(steps=1),
        )
    assert pruned.settings["repair"] is None


@pytest.mark.parametrize("steps", [1, 3])
def test_pruning_with_repair_is_pruning_and_rebuilding(steps):
    model, (x, y) = network(), data()
    before = state(model)
    bare = niwaki.prune(
        model,
        (x, y),
        "weight",
        keep=0.5,
        repair=None,
        schedule=niwaki.pruning.Schedule(steps=steps),
    )
    mended = niwaki.prune(
        model,
        (x, y),
        "weight",
        keep=0.5,
        repair="rebuild",
        schedule=niwaki.pruning.Schedule(steps=steps),
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        errors = [(p.model(x) - model(x)).square().mean() for p in (bare, mended)]
    assert errors[1] < 0.5 * errors[0]
    if steps == 1:
        rebuild(bare.model, model, (x, y), bare.plan)
        for one, other in zip(bare.model.parameters(), mended.model.parameters(), strict=True):
            torch.testing.assert_close(one, other)


def test_later_steps_aim_at_the_unpruned_network():
    """A running mean that took over an offset is no error of the next step."""
    model, (x, y) = network(), data()
    smaller, plan = cut(model, x, (1,), "0")
    rebuild(smaller, model, (x, y), plan)
    moved = smaller[7].running_mean.clone()
    assert not torch.allclose(moved, model[7].running_mean)
    said = rebuild(smaller, model, (x, y), plan)
    before, after = said.errors["6"]
    assert before < 0.5
    assert after <= before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rebuild(smaller, model, (x, y), plan)


def test_single_weights_are_rebuilt_and_a_run_goes_on(tmp_path):
    model, (x, y) = network(), data()
    options = {"keep": 0.3, "steps": 3}
    bare = niwaki.pruning.prune_weights(
        model, (x, y), "magnitude", **bundled(**options, function="prune_weights")
    )
    mended = niwaki.pruning.prune_weights(
        model, (x, y), "magnitude", **bundled(repair="rebuild", **options, function="prune_weights")
    )
    with torch.no_grad():
        errors = [(p.model(x) - model(x)).square().mean() for p in (bare, mended)]
    assert errors[1] < 0.5 * errors[0]
    for layer, mask in mended.masks().items():
        assert bool((mended.model.get_submodule(layer).weight[~mask] == 0).all())

    def stop(step):
        if step.step == 2:
            raise KeyboardInterrupt

    options |= {"repair": "rebuild", "folder": tmp_path / "run"}
    with pytest.raises(KeyboardInterrupt):
        niwaki.pruning.prune_weights(
            model,
            (x, y),
            "magnitude",
            **bundled(callback=stop, **options, function="prune_weights"),
        )
    again = niwaki.pruning.prune_weights(
        model, (x, y), "magnitude", **bundled(**options, function="prune_weights")
    )
    for name, value in mended.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value)


def rebuilt_and_bare(build):
    """How far a pruned network is from the whole one, as a share of the outputs' variance."""
    torch.manual_seed(0)
    model = build().eval()
    x, y = data_for(24)
    misses = []
    for repair in ("rebuild", None):
        pruned = niwaki.prune(
            model,
            (x, y),
            "taylor",
            keep=0.7,
            of="units",
            repair=repair,
            schedule=niwaki.pruning.Schedule(steps=1),
        )
        with torch.no_grad():
            whole = model(x)
            miss = (pruned.model(x) - whole).square().mean() / whole.var(0).mean()
        misses.append(float(miss))
    return misses


LISTED = sorted(
    {*WHOLE}
    - {
        "selective kernel",
        "split attention",
        "blur pool",
        "blur pool, made",
        "c2f",
        "squeezing",
        "gate: repeated",
    }
)


@pytest.mark.parametrize("name", LISTED)
def test_networks_that_move_channels_about_are_rebuilt(name):
    mended, bare = rebuilt_and_bare(WHOLE[name])
    assert mended < max(bare, 1e-6)


@pytest.mark.slow
def test_most_of_what_is_missed_comes_back():
    pairs = [rebuilt_and_bare(WHOLE[name]) for name in LISTED]
    shares = sorted(mended / bare for mended, bare in pairs if bare > 1e-6)
    assert shares[len(shares) // 2] < 0.3


class Drops(Block):
    """The block, with a layer before the sum that does nothing outside of training."""

    def __init__(self, between):
        super().__init__()
        self.between = between

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = self.between(self.norm(self.wide(torch.relu(self.narrow(x))))) + self.skip(x)
        return self.head(torch.tanh(x).mean((2, 3)))


@pytest.mark.parametrize(
    "between", [nn.Dropout(0.5), StochasticDepth(0.5, "row"), nn.Identity()], ids=repr
)
def test_what_only_training_uses_does_not_hide_the_sum(between):
    fitted = []
    for build in (Block, lambda: Drops(between)):
        torch.manual_seed(0)
        model = build().eval()
        x = torch.randn(12, 2, 6, 6)
        smaller, plan = cut(model, x, (1, 4), "stem")
        rebuild(smaller, model, (x, torch.zeros(12)), plan)
        fitted.append(smaller.wide.weight.detach())
    torch.testing.assert_close(*fitted)


@pytest.mark.parametrize("last", [True, False], ids=["then the sum", "then an activation"])
def test_norms_that_end_in_an_activation_are_what_they_are_written_out(last):
    """timm's norms have an activation of their own, which may stand before a sum."""
    fitted = []
    for written_out in (True, False):
        torch.manual_seed(0)
        model = Block().eval()
        activation = nn.Identity if last else nn.ReLU
        joined = BatchNormAct2d(6, act_layer=activation).eval()
        joined.load_state_dict(model.norm.state_dict())
        joined.eps = model.norm.eps
        model.norm = nn.Sequential(model.norm, activation()) if written_out else joined
        x = torch.randn(12, 2, 6, 6)
        smaller, plan = cut(model, x, (1, 4), "stem")
        rebuild(smaller, model, (x, torch.zeros(12)), plan)
        fitted.append(smaller.wide.weight.detach())
    torch.testing.assert_close(*fitted)


def test_of_very_many_samples_a_part_serves(monkeypatch):
    monkeypatch.setattr("niwaki.pruning.repair._rows._MOST", 20)
    model, (x, y) = network(), data(70)
    smaller, plan = cut(model, x, (0, 5, 6), "3")
    found = []
    for given in ((x, y), DataLoader(TensorDataset(x, y), batch_size=9)):
        again = copy.deepcopy(smaller)
        rebuild(again, model, given, plan)
        found.append(state(again))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-6, atol=1e-6)
    first = copy.deepcopy(smaller)
    rebuild(first, model, (x[:20], y[:20]), plan, mirror=False)
    assert not torch.allclose(first[6].weight, found[0]["6.weight"])


def test_without_a_pull_it_is_plain_least_squares():
    torch.manual_seed(0)
    model = Two(nn.Conv2d(6, 4, 3)).double().eval()
    x = example(model, 40)
    smaller, plan = cut(model, x)
    ((inputs, _),), ((_, goal),) = readings(smaller, x, "reader"), readings(model, x, "reader")
    weight, _ = by_hand(smaller.reader, inputs, goal, intercept=True, pull=0.0)
    rebuild(smaller, model, (x, torch.zeros(40)), plan, pull=0, mirror=False)
    torch.testing.assert_close(smaller.reader.weight.detach(), weight, rtol=0, atol=1e-6)


def test_a_few_samples_that_repeat_are_not_met_by_chance():
    """There are more rows than features, but few that differ: the pull holds all the same."""
    torch.manual_seed(0)
    model = Two(nn.Linear(6 * 36, 4), flat=True).double().eval()
    one, other = example(model, 4).repeat(3, 1, 1, 1), example(model, 13)
    x = torch.cat([one, other[:4].repeat(4, 1, 1, 1)[:13]]).repeat(10, 1, 1, 1)
    smaller, plan = cut(model, x)
    assert len(x) == 250 > smaller.reader.in_features
    ((inputs, _),), ((_, goal),) = readings(smaller, x, "reader"), readings(model, x, "reader")
    weight, _ = by_hand(smaller.reader, inputs, goal, intercept=True)
    rebuild(smaller, model, (x, torch.zeros(250)), plan, mirror=False)
    torch.testing.assert_close(smaller.reader.weight.detach(), weight, rtol=0, atol=1e-8)


class Tied(nn.Module):
    """Two layers of one weight."""

    def __init__(self):
        super().__init__()
        self.first, self.one = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 5, 1)
        self.a, self.b = nn.Conv2d(5, 5, 3, padding=1), nn.Conv2d(5, 5, 3, padding=1)
        self.b.weight = self.a.weight
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        x = torch.relu(self.one(torch.relu(self.first(x))))
        return self.head(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))


def test_layers_that_share_a_weight_are_left():
    torch.manual_seed(0)
    model, (x, y) = Tied().eval(), data()
    smaller, plan = cut(model, x, (1, 4), "first")
    shared = model.a.weight.detach().clone()
    said = rebuild(smaller, model, (x, y), plan)
    assert said.left_out == ("a", "b")
    assert list(said.errors) == ["one", "head"]
    assert smaller.a.weight is smaller.b.weight
    assert torch.equal(smaller.a.weight, shared)


@pytest.mark.parametrize(
    ("masks", "says"),
    [
        ({"6 ": torch.ones(8, 8, 3, 3)}, "there is no such layer"),
        ({"6": torch.ones(8, 8)}, r"a mask of shape \(8, 8\) for '6': has \(8, 8, 3, 3\)"),
    ],
    ids=["name", "shape"],
)
def test_masks_that_fit_nothing_are_refused(masks, says):
    model, given = network(), data()
    with pytest.raises(ModelError, match=says):
        rebuild(copy.deepcopy(model), model, given, masks=masks)


def test_networks_that_do_not_belong_together_are_refused():
    model, given = network(), data()
    with pytest.raises(ModelError, match="do not belong together"):
        rebuild(nn.Sequential(*list(model)[:5], nn.Flatten(), nn.Linear(288, 4)), model, given)
    computed = copy.deepcopy(model)
    nn.utils.parametrizations.weight_norm(computed[3])
    with pytest.raises(ModelError, match="computed anew in each pass"):
        rebuild(computed, model, given)


def test_mirror_images_serve_as_well():
    model, (x, y) = network(), data()
    smaller, plan = cut(model, x, (0, 5, 6), "3")
    by_hand_too = torch.stack([x, x.flip(-1)], 1).flatten(0, 1)
    pairs = torch.arange(60) % 4
    found = []
    for given, mirror in (((x, y), True), ((by_hand_too, pairs), False), ((x, y), False)):
        again = copy.deepcopy(smaller)
        rebuild(again, model, given, plan, mirror=mirror)
        found.append(again[6].weight.detach())
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2])
