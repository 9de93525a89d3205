"""Numbers that are none: no derivative, half precision, recomputed activations, NaN."""

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from niwaki.attribution import explain
from niwaki.errors import DataError, PropagationError

METHODS = ["gradient", "deep_lift", "beta_smooth", "lrp.epsilon_plus", "lrp.z", "guided_backprop"]


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(256, 16), nn.ReLU(), nn.Linear(16, 3),
    ).eval()  # fmt: skip


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 3, 8, 8)


class Checkpointed(nn.Module):
    """Activations of its middle are computed anew in the pass back."""

    def __init__(self, reentrant: bool = False) -> None:
        super().__init__()
        self.net = plain()
        self.reentrant = reentrant
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.net[:2](x)
        x = checkpoint(self.net[2:6], x, use_reentrant=self.reentrant)
        x = checkpoint(self.net[6:], x, use_reentrant=self.reentrant)
        return x


@pytest.mark.parametrize("method", METHODS)
def test_checkpointing_changes_nothing(method: str, x: Tensor) -> None:
    expected = explain(plain(), x, 1, method, **loss(method))
    found = explain(Checkpointed(), x, 1, method, **loss(method))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def loss(method: str) -> dict[str, None]:
    return {"max_loss": None} if method.startswith("lrp") else {}


@pytest.mark.parametrize("method", METHODS)
def test_tensors_saved_elsewhere_change_nothing(method: str, x: Tensor) -> None:
    """Hooks on saved tensors that a model sets itself, and that the caller has set."""

    class Elsewhere(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autograd.graph.saved_tensors_hooks(lambda t: t + 1, lambda t: t):
                out: Tensor = net(x)
            return out

    net = plain()
    expected = explain(net, x, 1, method, **loss(method))
    found = explain(Elsewhere().eval(), x, 1, method, **loss(method))
    torch.testing.assert_close(found, expected)


def test_checkpointing_that_cannot_be_followed_is_named(x: Tensor) -> None:
    with pytest.raises(PropagationError, match="use_reentrant=False"):
        explain(Checkpointed(reentrant=True), x, 1, "gradient")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", METHODS)
def test_quantised_layers_are_refused(method: str, x: Tensor) -> None:
    quantise = torch.ao.quantization.quantize_dynamic
    model = quantise(plain(), {nn.Linear}, dtype=torch.qint8).eval()
    with pytest.raises(PropagationError, match="derivative"):
        explain(model, x, 1, method)


def test_a_quantised_branch_is_refused(x: Tensor) -> None:
    """Part of the signal goes on, so that the heatmap would not be zero, but wrong."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(192, 3)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                other = nn.Sequential(nn.Linear(192, 3))
                self.other = torch.ao.quantization.quantize_dynamic(
                    other, {nn.Linear}, dtype=torch.qint8
                )

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.one(x.flatten(1)) + self.other(x.flatten(1))
            return out

    with pytest.raises(PropagationError, match="without a derivative"):
        explain(Branches().eval(), x, 1, "gradient")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "method", ["deep_lift", "lrp.z", "lrp.w_square", "lrp.alpha_2_beta_1", "integrated_gradients"]
)
@pytest.mark.filterwarnings("ignore::niwaki.errors.CompletenessWarning")
def test_half_precision_is_near_single(method: str, dtype: torch.dtype, x: Tensor) -> None:
    expected = explain(plain(), x, 1, method, **loss(method))
    found = explain(plain().to(dtype), x.to(dtype), 1, method, **loss(method))
    assert found.dtype == dtype
    both = torch.stack([found.float().flatten(), expected.flatten()])
    assert float(torch.corrcoef(both)[0, 1]) > 0.99


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("method", ["gradient", "lrp.epsilon_plus", "occlusion", "smoothgrad"])
def test_targets_that_are_no_numbers_are_refused(method: str, value: float, x: Tensor) -> None:
    with pytest.raises(DataError, match="target holds NaN or infinite"):
        explain(plain(), x, torch.tensor([[1.0, value, 0.0]]), method)


def test_infinite_derivatives_are_refused() -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sqrt(x)

    assert torch.isfinite(explain(Root().eval(), torch.tensor([[0.1, 1.0]]), 0, "gradient")).all()
    with pytest.raises(PropagationError, match="NaN or infinite values"):
        explain(Root().eval(), torch.tensor([[0.0, 1.0]]), 0, "gradient")


def test_occlusion_under_autocast(x: Tensor) -> None:
    expected = explain(plain(), x, 1, "occlusion")
    with torch.autocast("cpu", torch.bfloat16):
        found = explain(plain(), x, 1, "occlusion")
    torch.testing.assert_close(found, expected)
