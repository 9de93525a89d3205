"""Without biases, what arrives at the input is what was sent, or the loss is reported."""

from dataclasses import replace

import pytest
import torch
from networks import Functional, Modular, calibrated, network, without_biases
from torch import Tensor, nn

from niwaki.errors import PropagationError
from niwaki.propagation import (
    AlphaBeta,
    Assign,
    Flat,
    Gamma,
    Propagated,
    Ratio,
    ZPlus,
    epsilon_plus,
    propagate,
)


def build(name: str, calibrate: bool) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    written = {"functional": Functional, "modular": Modular}
    model = written[name]().double().eval() if name in written else network(name)
    without_biases(model)
    torch.manual_seed(1)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    return calibrated(model, x) if calibrate else model, x


SLOW = pytest.mark.long
CONSERVES = [
    pytest.param("vgg11_bn", False, marks=SLOW),  # more than a hundred million weights
    pytest.param("resnet18", False, marks=SLOW),
    ("resnet18", True),
    ("densenet121", True),
    ("squeezenet1_1", False),
    pytest.param("googlenet", True, marks=SLOW),
    ("functional", False),
    ("functional", True),
]
LOSES = [  # tiny outputs, or squeeze-and-excite gates and hard swishes that shift every signal
    ("googlenet", False),
    pytest.param("mobilenet_v3_small", False, marks=SLOW),
    ("mobilenet_v3_small", True),
    pytest.param("efficientnet_b0", True, marks=SLOW),
]


def name_of(case: object) -> str:
    return {True: "calibrated", False: "as-initialised"}.get(case, str(case))  # type: ignore[call-overload]


def lost(result: Propagated) -> float:
    """Sum over what all operations say that they lost."""
    return sum(float(torch.as_tensor(op.ledger.lost).sum()) for op in result.operations)


@pytest.mark.parametrize(("name", "calibrate"), CONSERVES, ids=name_of)
def test_relevance_sums_to_the_start(name: str, calibrate: bool) -> None:
    model, x = build(name, calibrate)
    result = propagate(model, x, epsilon_plus(), lambda output: output)
    size = float(result.output.abs().sum())
    missing = float(result.output.sum() - result.relevance.sum())
    assert abs(missing) <= 1e-3 * size
    # What is missing is what the operations say that they lost, to the last digits.
    assert missing == pytest.approx(lost(result), abs=1e-11)


@pytest.mark.parametrize(("name", "calibrate"), LOSES, ids=name_of)
def test_a_loss_is_reported(name: str, calibrate: bool) -> None:
    model, x = build(name, calibrate)
    with pytest.raises(PropagationError, match=r"\d+\.\d% of the relevance is lost") as error:
        propagate(model, x, epsilon_plus(), lambda output: output)
    result = propagate(model, x, epsilon_plus(), lambda output: output, max_loss=None)
    missing = result.output.sum(1) - result.relevance.flatten(1).sum(1)
    share = float((missing.abs() / result.output.abs().sum(1)).max())  # of the worst sample
    assert share > 1e-3
    # What is told adds absolute values, so that losses of both signs do not cancel.
    assert float(str(error.value).split("%")[0]) / 100 > 0.999 * share


def test_functions_and_modules_give_the_same() -> None:
    modules, x = build("modular", True)
    functions, _ = build("functional", False)
    functions.load_state_dict(modules.state_dict())
    for composite in (epsilon_plus(), epsilon_plus(sums=ZPlus()), epsilon_plus(sums=Ratio())):
        one, other = (
            propagate(model, x, composite, lambda output: output) for model in (modules, functions)
        )
        assert torch.equal(one.output, other.output)
        torch.testing.assert_close(one.relevance, other.relevance, rtol=1e-12, atol=1e-14)


def test_alpha_beta_reports_what_nothing_inhibits() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Linear(2, 1, bias=False)).double().eval()
    model[1].weight.data.fill_(1.0)  # nothing inhibits: the activating part is doubled
    x = torch.ones(1, 2, dtype=torch.float64)
    composite = epsilon_plus().with_rows(Assign(AlphaBeta(2, 1), kind="linear"))
    with pytest.raises(PropagationError, match=r"100\.0% of the relevance"):
        propagate(model, x, composite, torch.ones_like)
    result = propagate(model, x, composite, torch.ones_like, max_loss=None)
    assert float(result.relevance.sum()) == pytest.approx(2.0, abs=1e-5)
    assert lost(result) == pytest.approx(-1.0, abs=1e-5)


class DeadEnds(nn.Module):
    """Two hidden units that a bias alone switches on, which count with opposite signs."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.first = nn.Linear(2, 3)
        self.last = nn.Linear(3, 1, bias=False)
        self.first.weight.data = torch.tensor([[1.0, 0.0], [-1.0, -1.0], [-1.0, -1.0]])
        self.first.bias.data = torch.tensor([0.0, 10.0, 10.0])
        self.last.weight.data = torch.tensor([[1.0, size / 8, -size / 8]])
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.first(x).relu())
        return out


def test_losses_of_both_signs_do_not_cancel() -> None:
    x = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    first = Assign(ZPlus(bias=False), kind="linear", layer="first")
    for composite in (
        epsilon_plus().with_rows(first),
        epsilon_plus().with_rows(replace(first, rule=AlphaBeta(1, 0, bias=False))),
    ):
        with pytest.raises(PropagationError, match=r"^90\.9% .* most of it in linear \(first\)"):
            propagate(DeadEnds(5.0), x, composite, lambda output: output)
        result = propagate(DeadEnds(5.0), x, composite, lambda output: output, max_loss=None)
        assert lost(result) == pytest.approx(0, abs=1e-4)
        propagate(DeadEnds(0.0), x, composite, lambda output: output)


def test_losses_of_other_samples_do_not_cancel() -> None:
    """A sample whose loss is above zero and one whose loss is below it."""
    model = DeadEnds(0.0)
    model.last.weight.data = torch.tensor([[1.0, 5.0, 0.0]]).double()
    x = torch.tensor([[1.0, 1.0], [-90.0, 99.0]], dtype=torch.float64)
    composite = epsilon_plus().with_rows(Assign(ZPlus(bias=False), kind="linear", layer="first"))
    with pytest.raises(PropagationError, match=r"97\.6% of the relevance"):
        propagate(model, x, composite, lambda output: output)


def test_gamma_reports_units_that_are_exactly_zero() -> None:
    """No sign, no share: a flat rule behind hands relevance to a silent unit."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)).double().eval()
    model[0].weight.data = torch.tensor([[1.0, 1.0], [0.0, 0.0]]).double()
    x = torch.ones(1, 2, dtype=torch.float64)
    composite = epsilon_plus().with_rows(
        Assign(Gamma(), layer="0", kind="linear"), Assign(Flat(), layer="1", kind="linear")
    )
    with pytest.raises(PropagationError, match=r"^50\.0% .* most of it in linear \(0\)"):
        propagate(model, x, composite, lambda output: output)
