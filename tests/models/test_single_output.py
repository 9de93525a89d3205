"""Networks with one output column: a logit for the second of two classes, or a regression."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import niwaki
from niwaki import auditing, car, criteria, evaluation, filters
from niwaki.data import Described, Preprocessing
from niwaki.errors import DataError, ModelError
from niwaki.propagation import per_class
from niwaki.pruning import FineTune, fine_tune, prune_weights


class Network(nn.Module):
    """Two convolutions and a linear layer with one output, of shape (N, 1) or (N,)."""

    def __init__(self, *, flat: bool = False, ending: nn.Module | None = None) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3)
        self.second = nn.Conv2d(6, 5, 3)
        self.head = nn.Linear(5, 1)
        self.flat, self.ending = flat, ending

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.second(F.relu(self.first(x)))).mean((2, 3))
        x = self.head(x)
        x = x.squeeze(-1) if self.flat else x
        return x if self.ending is None else self.ending(x)


def network(**options: object) -> Network:
    """One that says either class to about half of the images."""
    model = Network(**options).eval()  # type: ignore[arg-type]
    plain = Network().eval()
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert model.head.bias is not None
        model.head.weight.mul_(10)
        model.head.bias.mul_(0)
        plain.load_state_dict(model.state_dict())
        model.head.bias.sub_(plain(images()).quantile(0.48))
    return model


def images() -> Tensor:
    return torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def labels(model: nn.Module) -> Tensor:
    """What the network says, with a few mistakes."""
    truth = (model(images()).detach().view(-1) > 0).long()
    truth[::5] = 1 - truth[::5]
    return truth


def by_hand(model: Network) -> nn.Module:
    """The same network with an output for each class, (-z/2, z/2)."""
    twin = copy.deepcopy(model)
    twin.flat = False
    twin.head = nn.Linear(5, 2).eval()
    with torch.no_grad():
        weight, bias = model.head.weight, model.head.bias
        twin.head.weight.copy_(torch.cat([-weight, weight]) / 2)
        twin.head.bias.copy_(torch.cat([-bias, bias]) / 2)
    return twin


@pytest.fixture(params=[False, True], ids=["column", "flat"])
def model(request: pytest.FixtureRequest) -> Network:
    return network(flat=request.param)


def test_the_accuracy_is_that_of_the_sign(model: Network) -> None:
    truth = labels(model)
    right = ((model(images()).view(-1) > 0).long() == truth).double().mean()
    assert 0.5 < float(right) < 1
    assert evaluation.accuracy(model, (images(), truth)) == pytest.approx(float(right))
    assert evaluation.accuracy(model, (images(), truth.float()[:, None])) == pytest.approx(
        float(right)
    )


@pytest.mark.parametrize("name", [n for n in criteria.names() if n not in ("random", "bn_scale")])
def test_every_criterion_scores_as_with_two_outputs(name: str) -> None:
    model = network()
    data = images(), labels(model)
    found = criteria.score(model, data, name)
    expected = criteria.score(by_hand(model), data, name)
    for layer, values in expected.items():
        torch.testing.assert_close(found[layer], values, rtol=1e-4, atol=1e-7)
    if name in ("taylor", "gradient", "hessian"):
        assert all(bool((found[layer] > 0).any()) for layer in found)


def test_the_loss_is_the_binary_cross_entropy(model: Network) -> None:
    truth = labels(model)
    before = (model.first, model.second)
    hooks, outputs = [], []
    for layer in before:
        hooks.append(layer.register_forward_hook(lambda *a: outputs.append(a[2])))
    loss = F.binary_cross_entropy_with_logits(
        model(images()).view(-1), truth.float(), reduction="sum"
    )
    slopes = torch.autograd.grad(loss, outputs)
    for hook in hooks:
        hook.remove()
    found = criteria.score(model, (images(), truth), "gradient", normalise="none")
    for layer, slope in zip(("first", "second"), slopes, strict=True):
        expected = slope.double().mean((0, 2, 3)).abs()
        torch.testing.assert_close(found[layer], expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("name", ["taylor", "gradient", "lrp"])
@pytest.mark.parametrize("reduce", ["absolute", "absolute_of_sum"])
def test_weights_score_as_with_two_outputs(name: str, reduce: str) -> None:
    model = network()
    data = images()[:8], labels(model)[:8]
    found = criteria.score_weights(model, data, name, reduce=reduce)
    expected = criteria.score_weights(by_hand(model), data, name, reduce=reduce)
    for layer in ("first", "second"):
        torch.testing.assert_close(found[layer], expected[layer], rtol=1e-4, atol=1e-7)
    assert found["head"].shape == model.head.weight.shape
    if name == "lrp" and reduce == "absolute":
        total = expected["head"].sum(0, keepdim=True)
        torch.testing.assert_close(found["head"], total, rtol=1e-4, atol=1e-7)
    if name == "taylor" and reduce == "absolute_of_sum":
        inputs, truth = data
        loss = F.binary_cross_entropy_with_logits(model(inputs)[:, 0], truth.float())
        (slope,) = torch.autograd.grad(loss, model.head.weight)
        by_autograd = (slope * model.head.weight).abs().detach().double()
        torch.testing.assert_close(found["head"].double(), by_autograd, rtol=1e-4, atol=1e-9)


def test_pruning_keeps_the_single_output_and_measures_it(model: Network) -> None:
    data = images(), labels(model)
    options = {"keep": 0.5, "repair": "rebuild", "test": data}
    pruned = niwaki.prune(model, data, **options)
    assert pruned.model(images()).shape == model(images()).shape
    first, last = pruned.trajectory.steps[0], pruned.trajectory.steps[-1]
    assert first.accuracy == pytest.approx(evaluation.accuracy(model, data))
    assert last.accuracy == pytest.approx(evaluation.accuracy(pruned.model, data))
    twin = niwaki.prune(by_hand(model), data, **options)
    assert pruned.plan == twin.plan


def test_single_weights_are_pruned(model: Network) -> None:
    data = images()[:6], labels(model)[:6]
    found = prune_weights(model, data, keep=0.5, test=data)
    assert found.model(images()).shape == model(images()).shape


def test_the_accuracy_reduction_is_that_with_two_outputs(model: Network) -> None:
    data = images(), labels(model)
    found, expected = car.index(model, data), car.index(by_hand(model), data)
    assert found.baseline.right == expected.baseline.right
    for layer in expected:
        assert found[layer].broken.equal(expected[layer].broken)
        assert found[layer].mended.equal(expected[layer].mended)
        torch.testing.assert_close(found[layer].loss_change, expected[layer].loss_change)


def test_a_greedy_search_ends_with_a_single_output(model: Network) -> None:
    data = images(), labels(model)
    found = car.greedy(model, data, car.Stop(remove=3))
    expected = car.greedy(by_hand(model), data, car.Stop(remove=3))
    assert found.plan == expected.plan
    assert found.model(images()).shape == model(images()).shape


def test_perturbation_curves_follow_the_class(model: Network) -> None:
    data = images(), labels(model)
    options = {"perturbation": evaluation.Perturbation((2, 2)), "target": "true"}
    for score in ("probability", "output"):
        found, expected = (
            evaluation.perturbation_curves(m, data, "lrp.epsilon_plus", score=score, **options)
            for m in (model, by_hand(model))
        )
        for order, scores in expected["lrp.epsilon_plus"].scores.items():
            torch.testing.assert_close(found["lrp.epsilon_plus"].scores[order], scores)
            assert scores.std(1).min() > 0
    logit = model(images()).view(-1).detach().double()
    first = evaluation.perturbation_curves(model, data, "gradient", **options)["gradient"].scores[
        "most"
    ][:, 0]
    own = torch.where(data[1] == 1, logit.sigmoid(), (-logit).sigmoid())
    torch.testing.assert_close(first, own, rtol=1e-5, atol=1e-7)


def test_filters_are_profiled_for_two_classes(model: Network) -> None:
    data = images(), labels(model)
    found, expected = (filters.profile(m, data) for m in (model, by_hand(model)))
    assert found.samples == expected.samples
    assert sum(found.samples) == 24
    for name, layer in expected.items():
        for what, value in vars(layer).items():
            if isinstance(value, Tensor):
                torch.testing.assert_close(vars(found[name])[what], value, equal_nan=True)


def test_an_audit_and_a_collection_see_two_classes(model: Network, tmp_path: Path) -> None:
    plain = Preprocessing(8, mean=(0.0,) * 3, std=(1.0,) * 3)
    data = Described(TensorDataset(images(), labels(model)), preprocessing=plain)
    found = auditing.gather(model, data)
    logit = model(images()).view(-1).detach().double().numpy()
    np.testing.assert_allclose(found.outputs @ [-1, 1], logit, rtol=1e-5, atol=1e-6)
    assert found.right.mean() == evaluation.accuracy(model, (images(), labels(model)))
    kept = auditing.collect(model, data, tmp_path / "maps")
    np.testing.assert_allclose(kept.read("prediction")[:, 1], logit / 2, rtol=1e-5, atol=1e-6)


def test_fine_tuning_learns_by_the_binary_cross_entropy(model: Network) -> None:
    inputs = images()
    truth = (inputs.mean((1, 2, 3)) > 0).long()
    before = F.binary_cross_entropy_with_logits(model(inputs).view(-1), truth.float())
    fine_tune(model, (inputs, truth), FineTune(epochs=20, lr=0.05, batch_size=8))
    after = F.binary_cross_entropy_with_logits(model(inputs).view(-1), truth.float())
    assert after.item() < 0.7 * before.item()


@pytest.mark.parametrize("target", [None, 0])
def test_the_output_itself_can_be_explained(model: Network, target: int | None) -> None:
    found = niwaki.explain(model, images(), target, method="input_t_gradient")
    x = images().requires_grad_()
    (slope,) = torch.autograd.grad(model(x).sum(), x)
    torch.testing.assert_close(found, (x * slope).detach())
    with pytest.raises(DataError, match="one output"):
        niwaki.explain(model, images(), 1, method="gradient")


def test_both_classes_can_be_explained(model: Network) -> None:
    judged = per_class(model, images())
    first = niwaki.explain(judged, images(), 0, method="lrp.epsilon_plus", max_loss=None)
    expected = niwaki.explain(by_hand(model), images(), 0, method="lrp.epsilon_plus", max_loss=None)
    torch.testing.assert_close(first, expected)


def test_the_copy_draws_no_random_numbers(model: Network) -> None:
    before = torch.get_rng_state()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    per_class(model, images())
    assert torch.get_rng_state().equal(before)
    assert all(model.state_dict()[name].equal(value) for name, value in state.items())


def test_a_convolution_may_be_the_last_layer() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).eval()
    judged = per_class(model, images())
    out = model(images())
    torch.testing.assert_close(judged(images()), torch.cat([-out, out], 1) / 2)


@pytest.mark.parametrize(
    "job",
    [
        lambda m, d: evaluation.accuracy(m, d),
        lambda m, d: niwaki.prune(m, d, keep=0.5),
        lambda m, d: criteria.score(m, d, "taylor"),
        lambda m, d: car.index(m, d),
        lambda m, d: evaluation.perturbation_curves(
            m, d, "gradient", evaluation.Perturbation((2, 2))
        ),
        lambda m, d: fine_tune(m, d, FineTune(epochs=1)),
    ],
)
@pytest.mark.filterwarnings("ignore::niwaki.errors.SoftmaxOutputWarning")
def test_a_probability_is_no_logit(job: Callable[..., object]) -> None:
    model = network(ending=nn.Sigmoid())
    with pytest.raises(ModelError, match=r"one output"):
        job(model, (images(), torch.arange(24) % 2))


def test_a_regression_is_refused_with_the_way_out() -> None:
    with pytest.raises(DataError, match="regression"):
        niwaki.prune(network(), (images(), torch.randn(24)), keep=0.5)
    with pytest.raises(DataError, match="two classes"):
        niwaki.prune(network(), (images(), torch.arange(24)), keep=0.5)
