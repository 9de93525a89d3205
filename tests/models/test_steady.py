"""A network whose answer for an image is not always the same is refused, or said to be so."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import niwaki
from niwaki import car, criteria, evaluation, filters, propagation, pruning
from niwaki.errors import BatchDependenceWarning, ModelError
from niwaki.models import check_steady


class Net(nn.Module):
    """A network with something between its two convolutions."""

    def __init__(self, middle=lambda x: x):
        super().__init__()
        self.conv, self.last = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 5, 3)
        self.head, self.middle = nn.Linear(5, 3), middle

    def forward(self, x):
        x = F.relu(self.last(self.middle(F.relu(self.conv(x)))))
        return self.head(x.mean((2, 3)))


class Counts(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.count += 1
        return super().forward(x)


class Follows(Net):
    def __init__(self):
        super().__init__(lambda x: x - self.mean[:, None, None])
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * F.relu(self.conv(x)).mean((0, 2, 3)).detach()
        return super().forward(x)


class Grows(Net):
    scale = 1.0

    def forward(self, x):
        self.scale *= 1.01
        return super().forward(x) * self.scale


def normalised(x):
    return x.sub_(0.3).mul_(1.5)


class Overwrites(Net):
    def forward(self, x):
        return super().forward(normalised(x))


class Copies(Net):
    def forward(self, x):
        return super().forward(normalised(x.clone()))


def stochastic_depth(x):
    return x * (torch.rand(len(x), 1, 1, 1) > 0.1)


def by_python(x):
    return x if random.random() < 0.7 else x * 0.5


def by_numpy(x):
    return x + float(np.random.rand())  # noqa: NPY002


OWN = torch.Generator()
UNSTEADY = {
    "dropout": (lambda: Net(lambda x: F.dropout(x, 0.2, training=True)), "'dropout'"),
    "depth": (lambda: Net(stochastic_depth), "'rand'"),
    "noise": (lambda: Net(lambda x: x + torch.randn_like(x)), "'randn_like'"),
    "Python's": (lambda: Net(by_python), "of Python or NumPy"),
    "NumPy's": (lambda: Net(by_numpy), "of Python or NumPy"),
    "a generator of its own": (
        lambda: Net(lambda x: x + torch.rand(1, generator=OWN)),
        "other outputs when it gets the same inputs again",
    ),
    "counts": (Counts, "'count'"),
    "follows": (Follows, "'mean'"),
    "grows": (Grows, "other outputs"),
}
DEPENDENT = {
    "batch statistics": lambda x: F.batch_norm(x, None, None, training=True),
    "centred": lambda x: x - x.mean(0, keepdim=True),
    "neighbours": lambda x: x + 0.2 * x.flip(0),
    "largest of all": lambda x: x / x.abs().amax(),
    "number": lambda x: x * (1 + 0.1 * len(x)),
}


def made(kind):
    torch.manual_seed(0)
    return kind().eval()


def data():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(12, 2, 8, 8, generator=generator), torch.arange(12) % 3


def profiled(model):
    return next(iter(filters.profile(model, data()).values())).class_relevance


CALLS = {
    **{
        name: lambda model, name=name: niwaki.explain(model, data()[0], 1, name)
        for name in (
            "gradient",
            "smoothgrad",
            "integrated_gradients",
            "grad_cam",
            "occlusion",
            "lrp.epsilon",
            "deep_lift",
        )
    },
    **{
        f"score {name}": lambda model, name=name: criteria.score(model, data(), name).flat()
        for name in ("lrp", "weight", "taylor", "activation")
    },
    "weights": lambda model: criteria.score_weights(model, data(), "taylor").flat(),
    "prune": lambda model: pruning.prune(model, data(), keep=0.6).model(data()[0]),
    "compensate": lambda model: pruning.prune(
        model, data(), "weight", keep=0.6, repair="compensate"
    ).model(data()[0]),
    "prune weights": lambda model: pruning.prune_weights(model, data(), keep=0.6).model(data()[0]),
    "distil": lambda model: pruning.prune(
        model, data(), "weight", keep=0.6, tune=pruning.FineTune(1, lr=0.1, distil=0.5)
    ).model(data()[0]),
    "car": lambda model: torch.cat(
        [layer.margin_change for layer in car.index(model, data()).values()]
    ),
    "greedy": lambda model: car.greedy(model, data(), car.Stop(remove=3)).model(data()[0]),
    "profile": profiled,
    "accuracy": lambda model: torch.tensor(evaluation.accuracy(model, data())),
    "confusion": lambda model: evaluation.confusion(model, data()).double(),
    "curves": lambda model: torch.cat(
        [
            score
            for curve in evaluation.perturbation_curves(model, data(), ["gradient"]).values()
            for score in curve.scores.values()
        ]
    ),
}


def generators():
    numpy = np.random.get_state()[1].tolist()  # noqa: NPY002
    return torch.get_rng_state().tolist(), random.getstate(), numpy


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", UNSTEADY)
def test_chance_and_memory_are_refused(kind, call):
    network, said = UNSTEADY[kind]
    model = made(network)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ModelError, match=said):
        CALLS[call](model)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("kind", UNSTEADY)
def test_no_random_number_is_missed(kind):
    network, said = UNSTEADY[kind]
    model, drawn = made(network), generators()
    with pytest.raises(ModelError, match=said):
        check_steady(model, data()[0])
    assert drawn == generators()


@pytest.mark.parametrize("call", ["gradient", "occlusion", "score taylor", "car", "accuracy"])
@pytest.mark.parametrize("kind", DEPENDENT)
def test_a_network_that_needs_the_batch_is_said_to(kind, call):
    model = made(lambda: Net(DEPENDENT[kind]))
    for _ in range(2):
        with pytest.warns(BatchDependenceWarning, match="what else is in the batch"):
            CALLS[call](model)


@pytest.mark.parametrize("call", CALLS)
def test_a_network_may_overwrite_its_inputs(call):
    found, expected = CALLS[call](made(Overwrites)), CALLS[call](made(Copies))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_data_are_not_overwritten():
    images, labels = data()
    pruning.prune(made(Overwrites), (images, labels), keep=0.6, test=(images, labels))
    niwaki.explain(made(Overwrites), images)
    evaluation.latency(made(Overwrites), images, repeats=1)
    assert torch.equal(images, data()[0])


def test_what_is_drawn_and_not_used_does_no_harm():
    model = made(lambda: Net(lambda x: x + 0 * torch.rand(1)))
    assert torch.isfinite(niwaki.explain(model, data()[0], 1, "gradient")).all()


def test_what_is_made_in_the_first_pass_alone_does_no_harm():
    class Keeps(Net):
        def forward(self, x):
            if not hasattr(self, "grid"):
                self.register_buffer("grid", torch.linspace(0, 1, x.shape[-1]))
            return super().forward(x + self.grid)

    model = made(Keeps)
    niwaki.explain(model, data()[0], 1, "gradient")
    assert torch.equal(model.grid, torch.linspace(0, 1, 8))


def test_a_hook_that_comes_later_is_seen():
    model = made(Net)
    propagation.trace(model, data()[0])
    model.conv.register_forward_hook(lambda *given: given[-1] + torch.randn_like(given[-1]))
    with pytest.raises(ModelError, match="'randn_like'"):
        niwaki.explain(model, data()[0])


class Noting(Net):
    """Keeps notes that change nothing."""

    kept, calls = None, 0

    def forward(self, x):
        self.kept, self.calls = super().forward(x), self.calls + 1
        return self.kept


class Switched(Noting):
    """Draws random numbers once something else is set."""

    noise = 0.0

    def forward(self, x):
        return super().forward(x) + self.noise * torch.randn(1)


def _setting(model):
    model.noise = 0.5


def _another_hook(model):
    handle = model.conv.register_forward_hook(lambda *given: given[-1])
    niwaki.explain(model, data()[0], 1, "gradient")
    handle.remove()
    model.conv.register_forward_hook(lambda *given: given[-1] + torch.rand_like(given[-1]))


def _other_code(model):
    before = model.forward
    model.forward = lambda x: before(x) * torch.rand(1)


def _another_part(model):
    model.last = nn.Sequential(model.last, nn.RReLU())
    model.last.eval()
    model.last[1].forward = torch.rand_like


@pytest.mark.parametrize("change", [_setting, _another_hook, _other_code, _another_part])
def test_what_changes_after_the_first_look_is_seen(change):
    model = made(Switched)
    niwaki.explain(model, data()[0], 1, "gradient")
    change(model)
    with pytest.raises(ModelError, match="draws random numbers"):
        niwaki.explain(model, data()[0], 1, "gradient")


@pytest.mark.parametrize("kind", [Net, Noting])
def test_a_second_look_costs_no_pass(kind):
    model, passes = made(kind), []
    model.register_forward_hook(lambda *_: passes.append(1))
    check_steady(model, data()[0])
    assert len(passes) <= 4
    passes.clear()
    check_steady(model, data()[0][:3])
    assert not passes
