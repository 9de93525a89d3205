"""Methods that Captum has too give what Captum gives."""

import captum.attr
import pytest
import torch
from torch import Tensor, nn

from niwaki.attribution import create, explain
from niwaki.attribution._grad_cam import GradCam

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:captum")  # it sets hooks


def smooth() -> nn.Module:
    """A network with saturating activations; no module serves twice, which Captum cannot take."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.Tanh(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.Sigmoid(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 10),
        nn.ELU(),
        nn.Linear(10, 4),
    )


def rectified() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(3, 1, 1),
        nn.Conv2d(8, 8, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 10),
        nn.ReLU(),
        nn.Linear(10, 4),
    )


NETWORKS = {"rectified": rectified, "smooth": smooth}
TARGETS = [3, 0, 2, 1]


def build(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = NETWORKS[name]()
    for parameter in model.parameters():
        parameter.data.mul_(2)  # away from the nearly linear
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.bias, 0, 0.3)
    return model.double().eval(), torch.randn(4, 3, 10, 10, dtype=torch.float64)


def close(found: Tensor, expected: Tensor) -> None:
    expected = expected.detach()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9 * float(expected.abs().max()))


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    return build(request.param)


def captums(name: str, model: nn.Module, x: Tensor, **options: object) -> Tensor:
    return getattr(captum.attr, name)(model).attribute(x.clone(), target=TARGETS, **options)


def test_gradients(network: tuple[nn.Module, Tensor]) -> None:
    model, x = network
    close(explain(model, x, TARGETS, "gradient"), captums("Saliency", model, x, abs=False))
    close(explain(model, x, TARGETS, "input_t_gradient"), captums("InputXGradient", model, x))


QUADRATURES = {
    "gauss": "gausslegendre",
    "left": "riemann_left",
    "right": "riemann_right",
    "midpoint": "riemann_middle",
}


@pytest.mark.parametrize("quadrature", QUADRATURES)
@pytest.mark.parametrize("baseline", [0.0, 0.4])
def test_integrated_gradients(
    network: tuple[nn.Module, Tensor], quadrature: str, baseline: float
) -> None:
    model, x = network
    options = {"n_steps": 50, "method": QUADRATURES[quadrature], "baselines": baseline}
    expected = captums("IntegratedGradients", model, x, **options)
    ours = {"quadrature": quadrature, "steps": 50, "baseline": baseline}
    found = explain(model, x, TARGETS, "integrated_gradients", **ours)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-7  # float32 weights


class Behind(nn.Sequential):
    """The network with a step that does nothing between each activation and a pool behind it.

    Captum modifies gradients by hooks on tensors; where a pool reads an activation's output
    itself, its rule comes too late and the activation's gets the plain gradient.
    """

    def __init__(self, model: nn.Sequential) -> None:
        pools = [[nn.AvgPool2d(1), m] if isinstance(m, nn.MaxPool2d) else [m] for m in model]
        super().__init__(*(m for group in pools for m in group))


def test_deep_lift(network: tuple[nn.Module, Tensor]) -> None:
    model, x = network
    if model[-1].in_features == 10 and isinstance(model[6], nn.MaxPool2d):
        model[6] = nn.Identity()  # overlapping windows: Captum keeps one winner where several won
    model = Behind(model).eval()
    close(explain(model, x, TARGETS, "deep_lift"), captums("DeepLift", model, x))
    reference = torch.randn(1, 3, 10, 10, dtype=torch.float64)
    expected = captums("DeepLift", model, x, baselines=reference.expand_as(x).clone())
    close(explain(model, x, TARGETS, "deep_lift", baseline=reference), expected)


def test_deep_lift_is_complete_where_captums_is_not(network: tuple[nn.Module, Tensor]) -> None:
    model, x = network  # its pools stand right behind activations
    reference = torch.randn(1, 3, 10, 10, dtype=torch.float64).expand_as(x).clone()
    theirs = captums("DeepLift", model, x, baselines=reference).detach()
    ours = explain(model, x, TARGETS, "deep_lift", baseline=reference)
    assert missing(model, x, ours, reference) < 1e-10
    assert missing(model, x, theirs, reference) > 1e-2


def test_guided_backprop_and_deconvnet() -> None:
    model, x = build("rectified")
    pairs = {"guided_backprop": "GuidedBackprop", "deconvnet": "Deconvolution"}
    for ours, theirs in pairs.items():
        found = explain(model, x, TARGETS, ours, start="one")
        close(found, captums(theirs, model, x))


@pytest.mark.parametrize(("window", "stride"), [(3, 2), (4, 4), (1, 1), ((2, 5), (1, 3))], ids=str)
def test_occlusion(window: int | tuple[int, int], stride: int | tuple[int, int]) -> None:
    model, x = build("rectified")
    sides, steps = ((v, v) if isinstance(v, int) else v for v in (window, stride))
    expected = captums(
        "Occlusion",
        model,
        x,
        sliding_window_shapes=(3, *sides),
        strides=(3, *steps),
        baselines=0.3,
        perturbations_per_eval=16,
    )
    found = explain(model, x, TARGETS, "occlusion", window=window, stride=stride, value=0.3)
    assert expected.dtype == torch.float32  # Captum adds up in single precision
    error = float((found - expected).abs().max() / expected.abs().max())
    assert error < 1e-6


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize(("layer", "read"), [("4", 4), ("0", 1), ("7", 7)])
def test_grad_cam(layer: str, read: int, positive: bool) -> None:
    model, x = build("rectified")  # ours reads a convolution behind its batch norm
    method = create("grad_cam", model, layer=layer, positive=positive)
    assert isinstance(method, GradCam)
    theirs = captum.attr.LayerGradCam(model, model[read])
    close(method.map(x, TARGETS), theirs.attribute(x, target=TARGETS, relu_attributions=positive))


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
def test_guided_grad_cam(interpolation: str) -> None:
    model, x = build("rectified")
    theirs = captum.attr.GuidedGradCam(model, model[4])
    expected = theirs.attribute(x, target=TARGETS, interpolate_mode=interpolation)
    options = {"layer": "4", "interpolation": interpolation}
    close(explain(model, x, TARGETS, "guided_grad_cam", **options), expected)


def missing(model: nn.Module, x: Tensor, heatmap: Tensor, baseline: Tensor) -> float:
    """Largest share of the change of the output that a heatmap does not account for."""
    with torch.no_grad():
        change = (model(x) - model(baseline))[range(4), TARGETS]
    return float(((heatmap.flatten(1).sum(1) - change).abs() / change.abs()).max())


def test_completeness(network: tuple[nn.Module, Tensor]) -> None:
    model, x = network
    baseline = torch.zeros_like(x)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        single = explain(model.to(dtype), x.to(dtype), TARGETS, "deep_lift")
        assert missing(model, x.to(dtype), single, baseline.to(dtype)) < tolerance


@pytest.mark.parametrize(
    ("name", "gauss", "left"), [("smooth", 1e-5, 0.2), ("rectified", 0.02, 0.02)]
)
@pytest.mark.filterwarnings("ignore::niwaki.errors.CompletenessWarning")
def test_completeness_of_integrated_gradients(name: str, gauss: float, left: float) -> None:
    model, x = build(name)
    shares = {
        quadrature: missing(
            model,
            x,
            explain(model, x, TARGETS, "integrated_gradients", quadrature=quadrature),
            torch.zeros_like(x),
        )
        for quadrature in QUADRATURES
    }
    # Measured with 64 steps. Smooth: gauss 3e-6, midpoint 7e-5, left 0.13. Piecewise linear, where
    # the slope jumps on the way: gauss 0.010, left 0.009, midpoint 0.002.
    assert shares["gauss"] < gauss
    assert shares["left"] < left
    assert shares["midpoint"] < 3e-3
    default = explain(model, x, TARGETS, "integrated_gradients")
    assert missing(model, x, default, torch.zeros_like(x)) < 1e-2
