"""Layers fitted together with their reader: against a Jacobian, and what must not change."""

import copy

import pytest
import torch
from test_rebuild import READERS, cut, example
from torch import nn
from torch.func import functional_call, jacrev
from torch.utils.data import DataLoader, TensorDataset

import niwaki
from niwaki.errors import FallbackWarning, FewSamplesWarning
from niwaki.pruning import Plan, Removal, rebuild, replay
from niwaki.pruning.repair import _jointly
from niwaki.pruning.repair._kronecker import Kronecker
from niwaki.pruning.repair._linearised import Linearised
from niwaki.pruning.repair._rows import places_of


def fitted(kind, *, seed=0, **options):
    """A network, the cut one, and it after both ways to rebuild."""
    torch.manual_seed(seed)
    model = READERS[kind]().double().eval()
    x = example(model, 40)
    smaller, plan = cut(model, x)
    data = x, torch.zeros(len(x))
    done = []
    for jointly in (False, True):
        done.append(copy.deepcopy(smaller))
        report = rebuild(done[-1], model, data, plan, mirror=False, jointly=jointly, **options)
    return model, x, done, report


def missed(model, smaller, x):
    """Squared error of the outputs."""
    with torch.no_grad():
        return float((model(x) - smaller(x)).square().sum())


@pytest.mark.parametrize("kind", READERS)
def test_the_error_falls_further_and_both_layers_change(kind):
    model, x, (alone, jointly), report = fitted(kind)
    assert missed(model, jointly, x) < 0.999 * missed(model, alone, x)
    for name in ("first", "reader"):
        one, other = (net.get_submodule(name).weight for net in (alone, jointly))
        assert not torch.equal(one, other)
    before, after = report.errors["reader"]
    assert 0 < after < before


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "grouped", "transposed", "strided", "norm behind"])
def test_a_round_goes_along_the_dense_solution(kind, monkeypatch):
    monkeypatch.setattr(_jointly, "_ROUNDS", 1)
    monkeypatch.setattr(_jointly, "_STEPS", 300)
    model, x, (alone, jointly), _ = fitted(kind, pull=1e-9)
    with torch.no_grad():
        wanted = (model(x) - alone(x)).flatten()

    def outputs(theta):
        moved = {}
        for name, value in alone.state_dict().items():
            moved[name] = value + theta.get(name, 0)
        return functional_call(alone, moved, (x,)).flatten()

    free = ["first.weight", "first.bias", "reader.weight"]
    # A batch norm behind takes up what the reader's outputs are raised by.
    free.append("reader.bias" if kind != "norm behind" else "norm.bias")
    state = alone.state_dict()
    zero = {name: torch.zeros_like(state[name]) for name in free}
    jacobian = jacrev(outputs, chunk_size=100)(zero)
    dense = torch.cat([jacobian[name].flatten(1) for name in free], 1)
    best = dense @ torch.linalg.lstsq(dense, wanted[:, None], driver="gelsd").solution[:, 0]
    after = jointly.state_dict()
    step = {name: after[name] - state[name] for name in free}
    if kind == "norm behind":  # found in the running mean instead
        scale = alone.norm.weight.detach() / (alone.norm.running_var + alone.norm.eps).sqrt()
        step["norm.bias"] = (state["norm.running_mean"] - after["norm.running_mean"]) * scale
    moved = dense @ torch.cat([step[name].flatten() for name in free])
    share = float(moved @ best / (best @ best))
    assert min(abs(share - part) for part in (1, 0.5, 0.25, 0.125)) < 1e-3
    assert torch.allclose(moved, share * best, atol=1e-3 * float(best.abs().max()))


class Mixed(nn.Module):
    """Three channels become six and then four, without an activation: three of the six suffice."""

    def __init__(self):
        super().__init__()
        self.first, self.reader = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1)

    def forward(self, x):
        return self.reader(self.first(x))


def test_what_only_other_filters_can_tell_is_told_again():
    torch.manual_seed(0)
    model = Mixed().double().eval()
    with torch.no_grad():  # of the filters that stay, two are alike: three channels need three
        model.first.weight[4] = model.first.weight[3]
    x = torch.randn(40, 3, 5, 5, dtype=torch.float64)
    smaller, plan = cut(model, x, (0, 1, 2))
    alone, jointly = copy.deepcopy(smaller), copy.deepcopy(smaller)
    rebuild(alone, model, (x, torch.zeros(40)), plan)
    rebuild(jointly, model, (x, torch.zeros(40)), plan, jointly=True)
    assert missed(model, jointly, x) < 0.1 * missed(model, alone, x)


class Shared(nn.Module):
    """The first layer has two readers, the third and fourth feed the fifth alone."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 5, 1)
        self.left, self.right = nn.Conv2d(6, 5, 1), nn.Conv2d(5, 5, 3, padding=1)
        self.last = nn.Conv2d(10, 4, 1)

    def forward(self, x):
        x = torch.relu(self.one(x))
        two = torch.relu(self.two(x))
        both = torch.cat([torch.relu(self.left(x)), torch.relu(self.right(two))], 1)
        return self.last(both)


def test_only_layers_that_nothing_else_reads_give_way():
    torch.manual_seed(0)
    model = Shared().double().eval()
    x = torch.randn(40, 2, 6, 6, dtype=torch.float64)
    plan = Plan().with_step([Removal(name, (1,)) for name in ("one", "two", "left", "right")])
    smaller = copy.deepcopy(model)
    replay(smaller, x[:2], plan)
    alone, jointly = copy.deepcopy(smaller), copy.deepcopy(smaller)
    for net, both in ((alone, False), (jointly, True)):
        rebuild(net, model, (x, torch.zeros(40)), plan, jointly=both)
    assert torch.equal(jointly.one.weight, smaller.one.weight)  # read by two layers
    for name in ("two", "left", "right", "last"):
        assert not torch.equal(jointly.get_submodule(name).weight, alone.get_submodule(name).weight)
    assert missed(model, jointly, x) < missed(model, alone, x)


def test_it_is_the_same_again_and_in_other_batches():
    torch.manual_seed(0)
    model = READERS["norm behind"]().double().eval()
    x = example(model, 40)
    smaller, plan = cut(model, x)
    data = TensorDataset(x, torch.zeros(len(x)))
    kept, done = copy.deepcopy(model.state_dict()), []
    for batch in (40, 7, 7):
        done.append(copy.deepcopy(smaller))
        rebuild(done[-1], model, DataLoader(data, batch_size=batch), plan, jointly=True)
    for name, value in done[0].state_dict().items():
        assert all(torch.equal(value, other.state_dict()[name]) for other in done[1:])
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())


def test_weights_under_masks_stay_out_of_it():
    torch.manual_seed(0)
    model = READERS["plain"]().double().eval()
    x = example(model, 40)
    mask = torch.rand(model.reader.weight.shape) > 0.4
    done = []
    for jointly in (False, True):
        sparse = copy.deepcopy(model)
        with torch.no_grad():
            sparse.reader.weight.mul_(mask)
        data = x, torch.zeros(len(x))
        rebuild(sparse, model, data, masks={"reader": mask}, jointly=jointly)
        done.append(sparse.state_dict())
    assert all(torch.equal(value, done[1][name]) for name, value in done[0].items())


def test_what_is_exact_stays_exact():
    torch.manual_seed(0)
    model = READERS["plain"]().double().eval()
    with torch.no_grad():  # the filter that goes is twice another
        model.first.weight[4], model.first.bias[4] = (
            2 * model.first.weight[1],
            2 * model.first.bias[1],
        )
    x = example(model, 40)
    smaller, plan = cut(model, x, (4,))
    first = smaller.first.weight.clone()
    rebuild(smaller, model, (x, torch.zeros(40)), plan, jointly=True)
    assert torch.equal(smaller.first.weight, first)
    with torch.no_grad():
        assert torch.allclose(smaller(x), model(x), atol=1e-8)


@pytest.mark.slow
def test_pruning_with_it_says_so_and_resumes(tmp_path):
    torch.manual_seed(0)
    model = niwaki.models.build("niwaki.models.zoo:vgg_digits", weights="random").eval()
    data = torch.randn(20, 1, 8, 8), torch.arange(20) % 10
    run = niwaki.pruning.Run(folder=tmp_path / "run")
    options = {"keep": 0.6, "repair": "rebuild_jointly", "run": run}
    first, again = (niwaki.prune(model, data, **options) for _ in range(2))
    alone = niwaki.prune(model, data, keep=0.6, repair="rebuild")
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(first.model(x), again.model(x))
        assert not torch.allclose(first.model(x), alone.model(x))


def test_few_samples_are_told():
    torch.manual_seed(0)
    model = READERS["plain"]().double().eval()
    x = example(model, 3)
    smaller, plan = cut(model, x)
    with pytest.warns(FewSamplesWarning):
        rebuild(smaller, model, (x, torch.zeros(3)), plan, jointly=True)


class Gated(nn.Module):
    """Parts and shapes, which are no tensors, on the way."""

    def forward(self, x):
        one, other = x.chunk(2, 1)
        return torch.cat([one * other.sigmoid(), other], 1).view(x.shape[0], 8, -1, x.shape[3])


class Rounded(nn.Module):
    """Steps, which have no slope."""

    def forward(self, x):
        return torch.round(4 * x) / 4


BETWEEN = [
    nn.ReLU(inplace=True), nn.ReLU6(), nn.Hardswish(), nn.Hardsigmoid(), nn.Hardtanh(), nn.SiLU(),
    nn.Mish(), nn.GELU(), nn.Softplus(), nn.ELU(), nn.PReLU(), nn.LeakyReLU(), nn.Sigmoid(),
    nn.Threshold(0.1, 0.0), nn.MaxPool2d(2), nn.LPPool2d(2, 2), nn.AdaptiveMaxPool2d(3),
    nn.Upsample(scale_factor=2), nn.InstanceNorm2d(8), nn.GroupNorm(2, 8), nn.Dropout(), Rounded(),
    Gated(),
]  # fmt: skip


@pytest.mark.parametrize("between", BETWEEN, ids=str)
def test_any_operation_may_lie_between(between):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), between, nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    ).eval()  # fmt: skip
    x = torch.randn(20, 3, 12, 12)
    smaller, plan = copy.deepcopy(model), Plan(((Removal("0", (0, 3, 5)),),))
    replay(smaller, x[:2], plan)
    alone = copy.deepcopy(smaller)
    rebuild(alone, model, (x, torch.zeros(20)), plan)
    rebuild(smaller, model, (x, torch.zeros(20)), plan, jointly=True)
    assert missed(model, smaller, x) < 1.2 * missed(model, alone, x)
    assert all(bool(value.isfinite().all()) for value in smaller.state_dict().values())


@pytest.mark.parametrize("between", [nn.ReLU6(), nn.Hardsigmoid(), nn.Mish(), Rounded()], ids=str)
def test_outputs_move_as_small_steps_say(between):
    torch.manual_seed(0)
    x = torch.randn(20, 3).double()
    theta = {"a": torch.randn(4, 3).double(), "b": torch.randn(2, 4).double()}
    way = {name: torch.randn_like(value) for name, value in theta.items()}

    def function(weights):
        return between(x @ weights["a"].T) @ weights["b"].T

    small = 1e-7
    ahead, behind = (
        function({name: theta[name] + sign * small * way[name] for name in theta})
        for sign in (1, -1)
    )
    one = Linearised(function, theta)
    assert torch.allclose(one.moved(way), (ahead - behind) / (2 * small), atol=1e-5)
    signal = torch.randn_like(one.given)
    back = one.back(signal)
    by_back = sum(float((back[name] * way[name]).sum()) for name in theta)
    assert by_back == pytest.approx(float((one.moved(way) * signal).sum()), rel=1e-9)


class Attending(nn.Module):
    """Fused attention between linear layers, which torch differentiates once."""

    def __init__(self):
        super().__init__()
        self.first, self.query, self.reader = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        query = self.query(self.first(x).relu())[:, None]
        return self.reader(nn.functional.scaled_dot_product_attention(query, query, query)[:, 0])


def test_what_cannot_be_linearised_is_fitted_by_itself_and_named():
    torch.manual_seed(0)
    model, x = Attending().eval(), torch.randn(20, 5, 6)
    smaller, plan = copy.deepcopy(model), Plan(((Removal("first", (0, 3)),),))
    replay(smaller, x[:2], plan)
    bare = copy.deepcopy(smaller)
    with pytest.warns(FallbackWarning, match="'reader' is fitted by itself.*attention"):
        report = rebuild(smaller, model, (x, torch.zeros(20)), plan, jointly=True)
    before, after = report.errors["reader"]
    assert after < before
    assert missed(model, smaller, x) < missed(model, bare, x)


@pytest.mark.parametrize("below", [1e-5, 1e-3, 1.0])
def test_rounding_may_leave_a_gram_matrix_indefinite(below):
    torch.manual_seed(0)
    layer = nn.Linear(5, 3)
    read = torch.randn(40, 2) @ torch.randn(2, 5)
    read = torch.cat([read, torch.ones(40, 1)], 1).double()
    gram = (read.T @ read / 40)[None] - below * torch.eye(6).double()
    counts, pulls = torch.ones(1, 3).double(), {"a.weight": 0.0, "a.offset": 0.0}
    nearer = Kronecker.of({"a": layer}, {"a": gram}, {"a": counts}, pulls)
    slope = {"a.weight": torch.randn(3, 5).double(), "a.offset": torch.randn(3).double()}
    found = nearer(slope)
    assert sum(float((found[name] * slope[name]).sum()) for name in slope) > 0
    assert all(bool(value.isfinite().all()) for value in found.values())


class Folding(nn.Module):
    """Reads the number of samples from the input, and folds by it later."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 6, 3)
        self.reader = nn.Linear(24, 4)

    def forward(self, x):
        samples = x.shape[0]
        x = self.second(self.first(x).relu()).relu()
        return self.reader(x.view(samples, 24))


def test_of_large_images_some_samples_do(monkeypatch):
    """Where each sample is there five times, every fifth tells as much as all."""
    monkeypatch.setattr(_jointly, "_ROUNDS", 1)
    monkeypatch.setattr(_jointly, "_STEPS", 300)
    torch.manual_seed(0)
    model = READERS["plain"]().double().eval()
    x = example(model, 40)
    smaller, plan = cut(model, x)
    few, many, all_of_them = (copy.deepcopy(smaller) for _ in range(3))
    options = {"pull": 1e-9, "mirror": False, "jointly": True}
    rebuild(few, model, (x, torch.zeros(40)), plan, **options)
    repeated = x.repeat_interleave(5, 0), torch.zeros(200)
    rebuild(all_of_them, model, repeated, plan, **options)
    used = []
    monkeypatch.setattr(_jointly, "Linearised", counting(used))
    monkeypatch.setattr(_jointly, "_KEPT", 200 * 8 * 144)
    rebuild(many, model, repeated, plan, **options)
    assert sum(used) == 40
    # Where weights may be chosen freely, they may differ, and with them the gates of the ReLU.
    alone = copy.deepcopy(smaller)
    rebuild(alone, model, repeated, plan, pull=1e-9, mirror=False)
    gain = missed(model, alone, x) - missed(model, few, x)
    for net in (all_of_them, many):
        assert missed(model, alone, x) - missed(model, net, x) == pytest.approx(gain, rel=0.05)


def counting(used):
    """Linearise, and note how many samples that was for."""

    def made(function, theta):
        one = Linearised(function, theta)
        used.append(len(one.given) // 36)  # positions
        return one

    return made


def test_a_network_that_folds_by_the_number_of_samples_needs_them_all(monkeypatch):
    torch.manual_seed(0)
    model, x = Folding().eval(), torch.randn(30, 2, 6, 6)
    smaller, plan = copy.deepcopy(model), Plan(((Removal("first", (0, 3)),),))
    replay(smaller, x[:2], plan)
    alone, jointly = copy.deepcopy(smaller), copy.deepcopy(smaller)
    data = x, torch.zeros(30)
    rebuild(alone, model, data, plan)
    rebuild(jointly, model, data, plan, jointly=True)
    assert missed(model, jointly, x) < 0.99 * missed(model, alone, x)
    monkeypatch.setattr(_jointly, "_KEPT", 1000)
    with pytest.warns(FallbackWarning, match="'reader' is fitted by itself.*number of samples"):
        rebuild(smaller, model, data, plan, jointly=True)
    assert torch.equal(smaller(x), alone(x))


def test_depthwise_layers_need_fewer_positions():
    shape = torch.Size((25, 64, 40, 40))
    dense, depthwise = nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1, groups=64)
    assert places_of(dense, shape, 200).each == 20 * 576 // 200 + 1
    assert places_of(depthwise, shape, 200).each == 1000 // 200
    assert places_of(depthwise, shape, 1).each == 1000
    assert places_of(depthwise, torch.Size((25, 64, 2, 2)), 200).each == 4
