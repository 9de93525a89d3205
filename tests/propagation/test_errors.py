"""What cannot be explained is refused with its name, its place and a way out that works."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from niwaki.errors import (
    DataError,
    ModelError,
    PropagationError,
    SoftmaxOutputError,
    SoftmaxOutputWarning,
)
from niwaki.propagation import (
    Assign,
    Composite,
    Gradient,
    Pass,
    ZPlus,
    epsilon_plus,
    gradient,
    propagate,
)


class Net(nn.Module):
    """A convolution, the function under test, and a linear layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.function = function
        self.head = nn.Linear(3, 2)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self.conv(x)).mean((2, 3)))


X = torch.randn(2, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def run(model: nn.Module, composite: Composite | None = None, x: Tensor = X) -> Tensor:
    composite = composite or epsilon_plus()
    relevance = propagate(model, x, composite, torch.ones_like, max_loss=None).relevance
    assert relevance is not None
    return relevance


UNKNOWN: dict[str, tuple[Callable[[Tensor], Tensor], str, list[str]]] = {
    # The function, the operation that is named, and the rules that serve it.
    "exp": (torch.exp, "exp", ["Pass", "Gradient"]),
    "exp_": (lambda x: x.exp_(), "exp", ["Pass", "Gradient"]),
    "cumulative-sum": (lambda x: torch.cumsum(x, 1), "cumsum", ["Pass", "Gradient"]),
    "clamp-by-tensor": (
        lambda x: torch.maximum(x, torch.zeros(()).double()),
        "maximum",
        ["Pass", "Gradient"],
    ),
    "product": (lambda x: x * torch.tanh(x), "mul", ["Gradient"]),
    "attention": (lambda x: x @ x, "matmul", ["Gradient"]),
    "dynamic-weights": (lambda x: F.linear(x, x[0, 0]), "linear", ["Gradient"]),
    "quotient": (lambda x: x / (1 + torch.sigmoid(x)), "div", ["Gradient"]),
    "batch-statistics": (
        lambda x: F.batch_norm(x, None, None, training=True),
        "batch_norm",
        ["Gradient"],
    ),
    "softmax-inside": (lambda x: F.softmax(x, 1), "softmax", ["Pass", "Gradient"]),
    "softmax-inside-viewed": (
        lambda x: 2 * F.softmax(x, 1).flatten(2).unflatten(2, (4, 4)),
        "softmax",
        ["Pass", "Gradient"],
    ),
}


@pytest.mark.filterwarnings("ignore::niwaki.errors.BatchDependenceWarning")
@pytest.mark.parametrize("case", UNKNOWN)
def test_unknown_operations(case: str) -> None:
    function, operation, ways_out = UNKNOWN[case]
    model = Net(function)
    with pytest.raises(PropagationError) as error:
        run(model)
    message = str(error.value)
    assert f"{operation!r} (after conv)" in message
    assert [w for w in ("Pass", "Gradient") if f"Assign({w}()" in message] == ways_out
    for way_out in ways_out:
        rule = {"Pass": Pass, "Gradient": Gradient}[way_out]()
        row = Assign(rule, operation=operation)
        if operation == "linear":
            row = Assign(rule, operation=operation, layer="after conv")
        run(model, epsilon_plus().with_rows(row))
    x = X.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(x).sum(), x)
    assert torch.equal(run(model, gradient()), expected)


@pytest.mark.filterwarnings("ignore::niwaki.errors.BatchDependenceWarning")
def test_norm_of_the_signal_names_the_first_unknown_operation() -> None:
    with pytest.raises(PropagationError, match=r"'norm' \(after conv\)"):
        run(Net(lambda x: x / x.norm()))


def test_questions_about_the_signal_are_no_operations() -> None:
    def asks(x: Tensor) -> Tensor:
        assert x.shape == x.size()
        assert x.dim() == x.ndim
        threshold = x.detach().abs().max()
        return x * (x > -threshold) + float(x.detach().sum()) * 0

    catch_all = Composite("Pass", (*epsilon_plus().rows[:-1], epsilon_plus().rows[-1]))
    run(Net(asks), catch_all)


def test_a_shape_that_is_asked_for_does_not_keep_a_norm_from_being_absorbed() -> None:
    def forward(model: Net, x: Tensor, ask: bool) -> Tensor:
        if ask:
            assert x.shape
        y = model.norm(x)
        return y + 0 * x.shape[0]

    torch.manual_seed(0)
    results = []
    model = Net(lambda x: x)
    nn.init.normal_(model.norm.bias)
    for ask in (False, True):
        model.function = lambda x, ask=ask: forward(model, x, ask)
        results.append(run(model))
    assert torch.equal(*results)


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "sigmoid"])
@pytest.mark.parametrize("viewed", [False, True])
def test_softmax_at_the_end(name: str, viewed: bool) -> None:
    class Ending(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            y = torch.sigmoid(y) if name == "sigmoid" else getattr(F, name)(y, -1)
            return y.view(-1, 2, 1).squeeze(-1) if viewed else y

    model = Ending(torch.relu)
    with pytest.raises(SoftmaxOutputError, match=rf"{name} \(after head\)"):
        run(model)
    with pytest.warns(SoftmaxOutputWarning, match=name):
        run(model, gradient())


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        return 3 * ctx.saved_tensors[0] ** 2 * grad


class DoubleInPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x)
        x.mul_(2)
        return x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


@pytest.mark.parametrize("function", [Cube, DoubleInPlace], ids=lambda f: f.__name__)
@pytest.mark.parametrize("last", [False, True])
def test_functions_of_the_models_own(function: type[torch.autograd.Function], last: bool) -> None:
    model = Net(function.apply)
    if last:
        model = nn.Sequential(Net(torch.relu), model_of(function.apply)).eval()
    with pytest.raises(PropagationError, match="cannot be watched"):
        run(model)


def model_of(function: Callable[[Tensor], Tensor]) -> nn.Module:
    class Module(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    return Module()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
def test_scripted_modules() -> None:
    model = Net(torch.relu)
    model.head = torch.jit.script(model.head)
    with pytest.raises(PropagationError, match="cannot be watched"):
        run(model)


def no_grad(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return torch.no_grad()(function)


@pytest.mark.parametrize("composite", [epsilon_plus(), gradient()], ids=lambda c: c.name)
def test_no_grad(composite: Composite) -> None:
    whole = Net(torch.relu)
    whole.forward = no_grad(whole.forward)
    part = Net(torch.relu)
    part.conv.forward = no_grad(part.conv.forward)
    for model in (whole, part):
        with pytest.raises(PropagationError, match=r"no_grad"):
            run(model, composite)
    with pytest.raises(PropagationError, match="does not depend on the input"):
        run(Net(torch.Tensor.detach), composite)
    with torch.no_grad():  # the caller's own is none of the model's business
        run(Net(torch.relu), composite)


def test_models_that_are_not_ready() -> None:
    model = Net(torch.relu)
    model.norm.train()
    with pytest.raises(ModelError, match=r"training mode.*norm"):
        run(model)
    model.eval()
    with pytest.raises(DataError, match="NaN"):
        run(model, x=torch.full_like(X, float("nan")))
    with pytest.raises(DataError, match="floating point"):
        run(model, x=X.long())
    nn.init.constant_(model.head.weight, float("nan"))
    with pytest.raises(ModelError, match=r"'head\.weight'"):
        run(model)


def test_outputs_and_starts_that_do_not_fit() -> None:
    with pytest.raises(ModelError, match="returns a tuple"):
        run(model_of(lambda x: (x, x)).eval())
    with pytest.raises(ValueError, match=r"shape \(1,\)"):
        propagate(Net(torch.relu), X, epsilon_plus(), lambda _: torch.ones(1))


@pytest.mark.parametrize("dropout", [F.dropout, F.alpha_dropout, F.dropout2d])
def test_active_dropout(dropout: Callable[..., Tensor]) -> None:
    training = {"training": True} if dropout is F.alpha_dropout else {}
    with pytest.raises(ModelError, match=rf"'{dropout.__name__}'.*self\.training"):
        run(Net(lambda x: dropout(x, 0.5, **training)))
    with pytest.raises(PropagationError, match=r"self\.training"):
        run(Net(lambda x: dropout(x, 0.0, **training)))
    run(Net(lambda x: dropout(x, 0.5, training=False)))
    run(Net(lambda x: torch.dropout(x, 0.5, train=False)))


def test_an_output_overwritten_behind_its_norm() -> None:
    model = Net(lambda x: model.norm(x) + x.sinh_())
    with pytest.raises(PropagationError, match="'sinh' overwrites the output of conv"):
        run(model, epsilon_plus().with_rows(Assign(Gradient(), operation="sinh")))
    run(model, epsilon_plus().with_rows(Assign(Pass(), operation="sinh")))


def test_rules_that_do_not_fit_the_operation() -> None:
    for kind in ("move", "scale", "product"):
        row = Assign(ZPlus(), kind=kind)
        model = Net(lambda x: F.max_pool2d(2 * x * torch.sigmoid(x), 2).flatten(2)[..., None])
        with pytest.raises(PropagationError, match="is of the kind"):
            run(model, epsilon_plus().with_rows(row))
