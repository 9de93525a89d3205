"""Methods, targets and start values, and that a network is read and never changed."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import niwaki
from niwaki.attribution import (
    Method,
    Propagating,
    create,
    describe,
    explain,
    fit_patterns,
    names,
    select,
)
from niwaki.errors import DataError, ModelError, PropagationError
from niwaki.models import zoo


class Functional(nn.Module):
    """Nothing but parameters and functions."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(5, 3, 3, 3) / 4)
        self.matrix = nn.Parameter(torch.randn(4, 5) / 2)
        self.ready = nn.Identity()

    def forward(self, x):
        x = self.ready(F.relu(F.conv2d(x, self.kernel)))
        return F.linear(F.adaptive_avg_pool2d(x, 1).flatten(1), self.matrix)


def plain():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 4, 4),
    )


def resnet():
    return zoo.ResNet(1, 4)


class Dense(nn.Module):
    """Batch norms before convolutions, concatenations, a transition: a small DenseNet."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(7), nn.BatchNorm2d(10)])
        self.convs = nn.ModuleList([nn.Conv2d(4, 3, 3, padding=1), nn.Conv2d(7, 3, 3, padding=1)])
        self.transition = nn.Conv2d(10, 5, 1)
        self.head = nn.Linear(5, 4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        for norm, conv in zip(self.norms, self.convs, strict=False):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        x = F.avg_pool2d(self.transition(F.relu(self.norms[2](x))), 2)
        return self.head(F.relu(x).mean((2, 3)))


NETWORKS = {"plain": plain, "resnet": resnet, "functional": Functional, "dense": Dense}
LATE = {
    "plain": "5",
    "resnet": "pool",
    "functional": "ready",
    "dense": "head",
}  # a module late in the forward


@pytest.fixture(params=NETWORKS)
def network(request):
    torch.manual_seed(0)
    model = NETWORKS[request.param]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    model.late = LATE[request.param]
    return model.double().eval()


@pytest.fixture
def images():
    return torch.randn(5, 3, 10, 10, generator=torch.Generator().manual_seed(1)).double()


def snapshot(model):
    hooks = [name for name in vars(nn.Module()) if name.endswith("hooks")]
    return {
        "state": {n: t.clone() for n, t in model.state_dict().items()},
        "gradients": {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None},
        "flags": [(n, id(p), p.requires_grad, p._version) for n, p in model.named_parameters()],
        "training": [m.training for m in model.modules()],
        "hooks": [[len(getattr(m, h)) for h in hooks] for m in model.modules()],
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "tensor hooks": [bool(p._backward_hooks) for p in model.parameters()],
    }


def assert_same(before, after):
    for what in before:
        if what not in ("state", "gradients"):
            assert before[what] == after[what], what
            continue
        assert before[what].keys() == after[what].keys()
        assert all(torch.equal(t, after[what][n]) for n, t in before[what].items()), what


def used(model, images):
    """A network with gradients, a frozen parameter and a hook of the user's."""
    model(images).sum().backward()
    next(model.parameters()).requires_grad_(False)
    model.register_forward_hook(lambda *_: None)
    return model


# These do not look at the network.
CONTROLS = {"input", "random"}
LOOKING = [name for name in names() if name not in CONTROLS]
# Relevance is in proportion to what it starts with; gates on the way back are not.
PROPORTIONAL = [
    name
    for name in names()
    if name.startswith("lrp") or name in ("gradient", "input_t_gradient", "EpsilonPlus")
]


def made(name, model, images, **options):
    if name.startswith("pattern."):
        options["patterns"] = fit_patterns(model, (images, torch.arange(5) % 4))
    method = create(name, model, **options)
    if isinstance(method, Propagating):
        method.max_loss = None  # random networks cancel; what gets lost is tested elsewhere
    return method


@pytest.fixture
def small():
    torch.manual_seed(0)
    return plain().double().eval()


@pytest.mark.filterwarnings("ignore::niwaki.errors.CompletenessWarning")
@pytest.mark.parametrize("name", names())
class TestEveryMethod:
    def test_leaves_the_network_and_the_inputs_as_they_were(self, name, network, images):
        used(network, images)
        method = made(name, network, images)
        before, inputs = snapshot(network), images.clone()
        heatmap = method.attribute(images)
        assert heatmap.shape == images.shape
        assert heatmap.dtype == images.dtype
        assert not heatmap.requires_grad
        assert bool(heatmap.isfinite().all())
        assert_same(before, snapshot(network))
        assert torch.equal(images, inputs)
        assert not images.requires_grad

    def test_leaves_it_so_when_a_module_fails(self, name, network, images):
        if name in CONTROLS:
            return
        used(network, images)
        method = made(name, network, images)

        def fail(x):
            raise RuntimeError("out of memory")

        late = network.get_submodule(network.late)
        late.forward = fail
        before = snapshot(network)
        with pytest.raises(RuntimeError, match="out of memory"):
            method.attribute(images)
        assert_same(before, snapshot(network))
        del late.forward
        assert method.attribute(images).shape == images.shape

    @pytest.mark.slow
    def test_a_batch_is_its_samples_and_comes_out_again(self, name, network, images):
        method = made(name, network, images)
        together = method.attribute(images, [0, 1, 2, 3, 0])
        assert torch.equal(method.attribute(images, [0, 1, 2, 3, 0]), together)
        for i in (0, 3):
            alone = method.attribute(images[i : i + 1], i)[0]
            torch.testing.assert_close(alone, together[i], rtol=1e-6, atol=1e-9)

    def test_single_precision(self, name, network, images):
        exact = made(name, network, images).attribute(images, 1)
        found = made(name, network.float(), images.float()).attribute(images.float(), 1)
        assert found.dtype == torch.float32
        assert bool(found.isfinite().all())
        torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-2 * exact.abs().max())

    def test_does_not_depend_on_gradient_modes(self, name, small, images):
        def heatmap(inputs):
            return made(name, small, images).attribute(inputs)

        expected = heatmap(images)
        with torch.no_grad():
            assert torch.equal(heatmap(images), expected)
        for parameter in small.parameters():
            parameter.requires_grad_(False)
        assert torch.equal(heatmap(images), expected)
        needy = images.clone().requires_grad_()
        assert torch.equal(heatmap(needy).detach(), expected)
        assert needy.grad is None

    def test_refuses_options_it_does_not_have(self, name, small):
        with pytest.raises(TypeError, match="epsilonn"):
            create(name, small, epsilonn=1)

    def test_is_described(self, name, small, images):
        assert len(describe(name)) > 15
        assert isinstance(made(name, small, images), Method)


@pytest.mark.parametrize("name", LOOKING)
def test_a_wrong_target_leaves_the_network_as_it_was(name, small, images):
    method = made(name, small, images)
    before = snapshot(small)
    with pytest.raises(DataError, match="class 4 does not exist"):
        method.attribute(images, 4)
    assert_same(before, snapshot(small))


@pytest.mark.parametrize(
    "name",
    LOOKING,
)
def test_training_mode_is_refused(name, small, images):
    method = made(name, small, images)
    small.train()
    with pytest.raises(ModelError, match="training mode"):
        method.attribute(images)


@pytest.mark.parametrize("name", PROPORTIONAL)
def test_relevance_starts_with_the_output_or_one(name, small, images):
    with torch.no_grad():
        value = small(images)[:, 1].view(-1, 1, 1, 1)
    one, output = (
        made(name, small, images, start=start).attribute(images, 1) for start in ("one", "output")
    )
    torch.testing.assert_close(output, one * value, rtol=1e-6, atol=1e-12)
    with pytest.raises(ValueError, match="start = 'two'"):
        create(name, small, start="two")


def by_autograd(model, images, weights):
    leaf = images.clone().requires_grad_()
    return torch.autograd.grad((model(leaf) * weights).sum(), leaf)[0]


TARGETS = {
    "largest": (None, lambda y: F.one_hot(y.argmax(1), 4)),
    "int": (2, lambda y: F.one_hot(torch.full((5,), 2), 4)),
    "list": ([3, 0, 1, 1, 2], lambda y: F.one_hot(torch.tensor([3, 0, 1, 1, 2]), 4)),
    "tuple": ((3, 0, 1, 1, 2), lambda y: F.one_hot(torch.tensor([3, 0, 1, 1, 2]), 4)),
    "integers": (
        torch.tensor([3, 0, 1, 1, 2], dtype=torch.int32),
        lambda y: F.one_hot(torch.tensor([3, 0, 1, 1, 2]), 4),
    ),
    "one integer": (torch.tensor(1), lambda y: F.one_hot(torch.full((5,), 1), 4)),
    "weights": (
        torch.tensor([1.0, -1.0, 0.5, 0.0]),
        lambda y: torch.tensor([1.0, -1.0, 0.5, 0.0]).expand(5, 4),
    ),
}


@pytest.mark.parametrize("kind", TARGETS)
def test_gradient_is_that_of_autograd(kind, network, images):
    target, weights = TARGETS[kind]
    expected = by_autograd(network, images, weights(network(images).detach()))
    found = explain(network, images, target, method="gradient")
    torch.testing.assert_close(found, expected)
    product = explain(network, images, target, method="input_t_gradient")
    torch.testing.assert_close(product, images * expected)


def test_the_package_explains_in_one_line(network, images):
    assert torch.equal(niwaki.explain(network, images), explain(network, images))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (4, "class 4 does not exist: the network has 4 outputs, 0 to 3"),
        (-1, "class -1 does not exist"),
        ([0, 1], r"\(2,\) targets for 5 samples"),
        ([0, 1, 2, 3, 9], "class 9"),
        (torch.zeros(5, 4, dtype=torch.long), r"\(5, 4\) targets"),
        (torch.zeros(5, 3), r"shape \(5, 3\) does not broadcast"),
        (torch.zeros(2, 5, 4), "does not broadcast"),
        ([0.5, 1.0, 0.0, 0.0, 1.0], "integer class numbers"),
        (0.5, "integer class numbers"),
        (torch.tensor([True] * 5), "integer class numbers"),
    ],
    ids=str,
)
def test_targets_that_do_not_fit(target, message):
    with pytest.raises(DataError, match=message):
        select(torch.rand(5, 4), target)


def test_the_largest_of_a_map_is_one_place():
    output = torch.zeros(2, 3, 4, 4)
    output[0, 2, 1, 3], output[1, 0, 0, 0] = 5, 1
    weights = select(output, None)
    assert weights.nonzero().tolist() == [[0, 2, 1, 3], [1, 0, 0, 0]]
    assert select(output, 1).sum() == 2 * 16


@pytest.mark.parametrize(
    ("name", "close"),
    [("lrp.epsilonplus", "lrp.epsilon_plus"), ("gradiant", "gradient"), ("zzz", "All: ")],
)
def test_an_unknown_name_shows_close_ones(name, close):
    with pytest.raises(ValueError, match=close):
        create(name, plain())


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        (torch.zeros(2, 3, 10, 10, dtype=torch.long), DataError, "floating point"),
        (torch.full((2, 3, 10, 10), float("nan")), DataError, "NaN"),
    ],
    ids=["integers", "NaN"],
)
def test_inputs_that_do_not_fit(inputs, error, message):
    with pytest.raises(error, match=message):
        explain(plain().eval(), inputs)


def test_an_operation_without_a_rule_is_named():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.LocalResponseNorm(2), nn.Flatten(), nn.Linear(256, 2)
    )
    images = torch.randn(2, 3, 10, 10)
    with pytest.raises(PropagationError, match="local_response_norm"):
        explain(model.eval(), images)
    assert explain(model, images, method="gradient").shape == images.shape
