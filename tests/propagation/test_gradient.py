"""Under the composite `gradient`, everything is torch's gradient, at the input and at layers."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from networks import Functional, network
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from niwaki.attribution import explain
from niwaki.propagation import Assign, Epsilon, Maps, epsilon_plus, gradient, propagate

LAST = gradient().with_rows(Assign(Epsilon(), kind="linear", layer="nowhere", place="last"))


def torchs(model: nn.Module, x: Tensor, start: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(model(x + 0), x, start)[0]


def agree(model: nn.Module, x: Tensor, *, exact: bool = True) -> None:
    model = model.double().eval()
    start = torch.randn(model(x.clone()).shape, dtype=torch.float64)
    expected = torchs(model, x, start)
    result = propagate(model, x, gradient(), lambda _: start).relevance
    assert torch.equal(result, expected)
    late = propagate(model, x, LAST, lambda _: start).relevance
    torch.testing.assert_close(late, expected)


@pytest.mark.parametrize("name", ["resnet18", "functional"])
def test_input_gradient(name: str) -> None:
    torch.manual_seed(0)
    model = network(name) if name == "resnet18" else Functional()
    agree(model, torch.randn(2, 3, 32, 32, dtype=torch.float64))


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": torch.exp,
    "normalised": lambda x: x / x.norm(),
    "attention": lambda x: F.softmax(x @ x.transpose(1, 2), -1) @ x,
    "dynamic-weights": lambda x: F.linear(x, x[0]),
    "product": lambda x: x * torch.tanh(x),
    "scale": lambda x: 2 * x - x / 3 + 1,
    "reversed": lambda x: 1 - 2 * x,
    "batch-statistics": lambda x: F.batch_norm(x, None, None, training=True),
    "layer-norm": lambda x: F.layer_norm(x, (4,)),
    "maximum": lambda x: torch.maximum(x, torch.zeros(())),
    "in-place": lambda x: x.mul_(2).add_(x.flip(1)).relu_(),
    "written-into": lambda x: torch.zeros_like(x).add_(x).mul_(torch.sigmoid(x)),
    "set": lambda x: x.clone().index_fill_(1, torch.tensor([0]), 0.0),
}


@pytest.mark.filterwarnings("ignore::niwaki.errors.BatchDependenceWarning")
@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions(function: str) -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return FUNCTIONS[function](x)

    torch.manual_seed(1)
    agree(Net(), torch.randn(3, 5, 4, dtype=torch.float64))


def test_maps_are_gradients_at_normed_outputs() -> None:
    torch.manual_seed(0)
    model = network("resnet18")
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    maps = Maps()
    propagate(model, x, gradient(), torch.ones_like, [maps])
    kept: dict[str, Tensor] = {}
    norm_of = {"conv1": "bn1", "layer3.0.conv2": "layer3.0.bn2"}
    for layer, norm in norm_of.items():
        module = model.get_submodule(norm)
        module.register_forward_hook(lambda m, i, o, layer=layer: kept.setdefault(layer, o).clone())
    output = model(x)
    grads = torch.autograd.grad(output.sum(), [kept[layer] for layer in norm_of])
    for layer, grad in zip(norm_of, grads, strict=True):
        torch.testing.assert_close(maps.relevances[layer], grad, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("composite", [gradient(), epsilon_plus()], ids=lambda c: c.name)
@pytest.mark.parametrize("name", ["resnet18", "functional"])
def test_observers_see_the_same_without_the_input(name: str, composite: object) -> None:
    torch.manual_seed(0)
    model = network(name) if name == "resnet18" else Functional().double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    seen = []
    for to_input in (True, False):
        maps = Maps()
        result = propagate(
            model, x, composite, torch.ones_like, [maps], to_input=to_input, max_loss=None
        )
        assert (result.relevance is not None) == to_input
        seen.append(maps.relevances)
    assert seen[0].keys() == seen[1].keys()
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert set(seen[0]) == set(layers)
    for layer, relevance in seen[0].items():
        assert torch.equal(relevance, seen[1][layer])


def shared() -> nn.Module:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.ReLU(inplace=True), layer)


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    return model


def weight_normed() -> nn.Module:
    return nn.Sequential(
        parametrizations.weight_norm(nn.Linear(4, 4)),
        nn.ReLU(),
        parametrizations.spectral_norm(nn.Linear(4, 4)),
    )


def pruned() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    for layer in (model[0], model[2]):
        prune.random_unstructured(layer, "weight", 0.4)
    return model


def frozen() -> nn.Module:
    return weight_normed().requires_grad_(False)


LAYERS_OF = {
    shared: {"0"},
    tied: {"0"},
    weight_normed: {"0", "2"},
    pruned: {"0", "2"},
    frozen: {"0", "2"},
}


@pytest.mark.parametrize("build", LAYERS_OF, ids=lambda f: f.__name__)
def test_weights_that_are_not_plain_parameters(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = build().double().eval()
    x = torch.randn(3, 4, dtype=torch.float64)
    agree(model, x)
    maps = Maps()
    for _ in range(3):
        propagate(model, x, epsilon_plus(), torch.ones_like, [maps], max_loss=None)
    assert set(maps.relevances) == LAYERS_OF[build]


def test_a_layer_used_twice_gets_both_relevances() -> None:
    torch.manual_seed(0)
    model = shared().double().eval()
    x = torch.randn(3, 4, dtype=torch.float64)
    maps = Maps()
    propagate(model, x, gradient(), torch.ones_like, [maps])
    first = model[0](x).detach().requires_grad_()
    (grad,) = torch.autograd.grad(model[2](first.relu()).sum(), first)
    torch.testing.assert_close(maps.relevances["0"], torch.ones(3, 4).double() + grad)


def in_place_on_slices(z: Tensor) -> Tensor:
    z = z.clone()
    z[:, :2] += z[:, 1:]
    z[:, :1] *= 3
    z[:, 2].sub_(1)
    z[:, :, ::2].relu_()
    return z


def in_place_on_a_view(z: Tensor) -> Tensor:
    z = torch.cat([z], 1)
    part = z[:, 1:]
    part.mul_(z[:, :1].clone())
    return z


def fourier(z: Tensor) -> Tensor:
    spectrum = torch.fft.rfft2(z)
    gate = torch.linspace(0, 1, spectrum.shape[-1], dtype=z.dtype)
    return torch.fft.irfft2(spectrum * gate, s=z.shape[-2:])


def spectrum(z: Tensor) -> Tensor:
    found = torch.fft.fft2(z, norm="ortho")
    return found.abs() + torch.view_as_real(found).sum(-1) + found.imag


class Middle(nn.Module):
    """A convolution, a function of one's own, and a linear layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Linear(192, 4)
        self.function = function
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.function(self.conv(x)).flatten(1))
        return out


def as_autograd_has_it(model: nn.Module) -> None:
    torch.manual_seed(1)
    leaf = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    torch.testing.assert_close(explain(model, leaf.detach(), 1, "gradient"), expected)


@pytest.mark.parametrize(
    "function", [in_place_on_slices, in_place_on_a_view, fourier, spectrum, torch.linalg.svdvals]
)
def test_operations_that_no_rule_knows(function: Callable[[Tensor], Tensor]) -> None:
    model = Middle(function)
    if function is torch.linalg.svdvals:
        model.head = nn.Linear(24, 4).double().eval()
    as_autograd_has_it(model)


@pytest.mark.parametrize("root", [False, True])
def test_models_with_hooks(root: bool) -> None:
    model = Middle(nn.Identity())
    hooked = model if root else model.conv
    hooked.register_full_backward_hook(lambda module, sent, got: None)
    hooked.register_full_backward_pre_hook(lambda module, sent: None)
    hooked.register_forward_hook(lambda module, given, output: output * 2)
    hooked.register_forward_pre_hook(lambda module, given: (given[0] * 3,))
    as_autograd_has_it(model)


@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
def test_weights_that_hooks_and_parametrizations_make() -> None:
    for wrap in (
        nn.utils.parametrizations.spectral_norm,
        nn.utils.parametrizations.weight_norm,
        torch.nn.utils.spectral_norm,
    ):
        model = Middle(nn.Identity())
        model.conv = wrap(model.conv).double().eval()
        as_autograd_has_it(model)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
def test_a_scripted_part() -> None:
    model = Middle(nn.Identity())
    model.head = torch.jit.script(model.head)
    as_autograd_has_it(model)
