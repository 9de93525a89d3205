"""Networks beyond plain CNNs: layer norms, GELUs, gates, grouped convolutions, attention."""

import pytest
import torch
from networks import network, without_biases
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from niwaki.attribution import explain
from niwaki.errors import PropagationError
from niwaki.propagation import Assign, Epsilon, Pass, Rule, ZPlus, epsilon_plus, propagate


def images(size: int = 64) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 3, size, size, dtype=torch.float64)


@pytest.mark.parametrize("name", ["efficientnet_b0", "regnet_y_400mf", "mobilenet_v3_small"])
def test_epsilon_plus_runs(name: str) -> None:
    model, x = network(name), images(32)
    result = propagate(model, x, epsilon_plus(), lambda y: y, max_loss=None)
    assert bool(result.relevance.isfinite().all())
    assert float(result.relevance.abs().sum()) > 0
    torch.testing.assert_close(result.output, model(x).detach())


@pytest.mark.parametrize("rule", [Epsilon(1e-9), ZPlus(1e-9)], ids=["epsilon", "z-plus"])
def test_convnext_conserves_without_biases(rule: Rule) -> None:
    model, x = without_biases(network("convnext_tiny")), images(32)
    for name, parameter in model.named_parameters():
        if name.endswith("layer_scale"):
            parameter.data.fill_(0.5)  # as initialised, a millionth, the blocks say nothing
    composite = epsilon_plus(1e-9, 1e-9).with_rows(Assign(rule, kind="convolution"))
    result = propagate(model, x, composite, lambda y: y, max_loss=None)
    missing = result.output.sum(1) - result.relevance.flatten(1).sum(1)
    lost = sum(torch.as_tensor(op.ledger.lost) for op in result.operations)
    size = max(float(op) for op in result.output.abs().sum(1))
    share = float(missing.abs().max()) / size
    torch.testing.assert_close(missing, lost, rtol=1e-6, atol=1e-9)
    # A depthwise filter may have nothing above zero: z-plus loses what reaches it, and says so.
    assert share < 1e-3 or isinstance(rule, ZPlus)
    norms = [op for op in result.operations if op.kind == "norm"]
    assert len(norms) == 23
    assert all(op.rule == Pass() for op in norms)


@pytest.fixture(scope="module")
def transformer() -> nn.Module:
    torch.manual_seed(0)
    model = VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5)  # the class of vit_b_16
    nn.init.normal_(model.heads.head.weight)
    return model.double().eval()


def test_attention_has_no_relevance_and_says_so(transformer: nn.Module) -> None:
    message = r"no rule for the operation 'multi_head_attention_forward' \(after conv_proj\)"
    with pytest.raises(PropagationError, match=message):
        explain(transformer, images(32), method="EpsilonPlus")


def test_attention_has_gradients(transformer: nn.Module) -> None:
    x = images(32)
    leaf = x.clone().requires_grad_()
    expected = torch.autograd.grad(transformer(leaf)[:, 2].sum(), leaf)[0]
    torch.testing.assert_close(explain(transformer, x, 2, "gradient"), expected)
    way = explain(transformer, x, 2, "integrated_gradients", quadrature="gauss")
    with torch.no_grad():
        change = (transformer(x) - transformer(0 * x))[:, 2]
    torch.testing.assert_close(way.flatten(1).sum(1), change, rtol=1e-3, atol=1e-6)
