"""Perturbation curves: against a loop over images, a closed form, and real images."""

import json
import math
from dataclasses import fields
from functools import partial

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from niwaki import models
from niwaki.attribution import Method, create
from niwaki.data import Preprocessing, open_data
from niwaki.errors import DataError, ModelError
from niwaki.evaluation import Perturbation, PerturbationCurves, perturbation_curves
from niwaki.evaluation._regions import Grid, ranks, replaced
from niwaki.models import zoo


def measured(model, data, methods, *, normalise=False, **options):
    """Measure curves; options of the perturbation and of the call stand side by side."""
    own = {f.name for f in fields(Perturbation)} & set(options)
    how = Perturbation(**{name: options.pop(name) for name in own})
    curves = perturbation_curves(model, data, methods, how, **options)
    return {n: c.normalised() for n, c in curves.items()} if normalise else curves


def small_network(size=(11, 14), classes=4, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(),
        nn.Linear(45, classes),
    ).eval()


def images(count=5, size=(11, 14), seed=1):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 2, *size, generator=generator)
    return inputs, torch.arange(count) % 4


def boxes(length, side):
    """Start and end of each region along one dimension, centred."""
    start = -((-length % side) // 2)
    return [(max(0, a), min(length, a + side)) for a in range(start, length, side)]


def loop(model, image, heatmap, region, steps, per_step, order, replacement, label):
    """One image, one region after the other, as in the paper."""
    cells = [
        (slice(*down), slice(*across))
        for down in boxes(image.shape[1], region[0])
        for across in boxes(image.shape[2], region[1])
    ]
    relevance = [float(heatmap[:, a, b].double().sum()) for a, b in cells]
    sign = -1 if order == "most" else 1
    todo = sorted(range(len(cells)), key=lambda i: sign * relevance[i])
    now, scores = image.clone(), []
    for step in range(steps + 1):
        with torch.no_grad():
            scores.append(float(model(now[None]).double().softmax(1)[0, label]))
        for i in todo[step * per_step : (step + 1) * per_step]:
            a, b = cells[i]
            if replacement == "zero":
                now[:, a, b] = 0
            elif replacement == "invert":
                now[:, a, b] = -now[:, a, b]
            else:
                now[:, a, b] = image[:, a, b].mean((1, 2), keepdim=True)
    return scores


@pytest.mark.parametrize("replacement", ["zero", "mean", "invert"])
@pytest.mark.parametrize("region", [(3, 4), (9, 9), (1, 5)])
def test_curves_are_those_of_a_loop(replacement, region):
    model, (inputs, labels) = small_network(), images()
    cells = math.ceil(11 / region[0]) * math.ceil(14 / region[1])
    per_step = 3 if cells > 4 else 1
    found = measured(
        model,
        (inputs, labels),
        "input_t_gradient",
        regions=region,
        regions_per_step=per_step,
        replacement=replacement,
        orders=("most", "least"),
        batch_size=2,
    )["input_t_gradient"]
    predicted = model(inputs).argmax(1)
    heatmaps = create("input_t_gradient", model).attribute(inputs, predicted)
    steps = math.ceil(cells / per_step)
    for order in ("most", "least"):
        expected = [
            loop(model, x, h, region, steps, per_step, order, replacement, c)
            for x, h, c in zip(inputs, heatmaps, predicted, strict=True)
        ]
        np.testing.assert_allclose(found.scores[order], expected, atol=1e-6)
    assert found.share[-1] == 1
    assert found.share[1] == per_step / cells


class Linear(nn.Module):
    """Scores are weighted sums of pixels: the effect of a region is known."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        return nn.functional.linear(x.flatten(1), self.weight)


def test_curve_of_a_linear_network_has_a_closed_form():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(6, 1, 8, 8, generator=generator)
    model = Linear(torch.randn(3, 64, generator=generator)).eval()
    curves = measured(
        model, (inputs, torch.zeros(6).long()), "input_t_gradient", regions=(2, 2), score="output"
    )["input_t_gradient"]
    outputs = model(inputs).detach()
    chosen = outputs.argmax(1)
    parts = (inputs.flatten(1) * model.weight.detach()[chosen]).view(6, 4, 2, 4, 2).sum((2, 4))
    for order, descending in (("most", True), ("least", False)):
        removed = parts.flatten(1).sort(1, descending=descending).values.double().cumsum(1)
        first = outputs.max(1).values.double()[:, None]
        expected = torch.cat([first, first - removed], 1)
        torch.testing.assert_close(curves.scores[order], expected, atol=1e-5, rtol=1e-5)
        area = (expected[:, 1:] + expected[:, :-1]).mean(1) / 2
        assert curves.area(order).mean == pytest.approx(float(area.mean()), abs=1e-5)
        assert curves.area(order).error == pytest.approx(float(area.std() / 6**0.5), abs=1e-5)
        aopc = (first - expected).mean(1).mean()
        assert curves.aopc(order).mean == pytest.approx(float(aopc), abs=1e-5)
    # No order falls faster than this one and none slower than its reverse.
    assert torch.all(curves.scores["most"] <= curves.scores["random"] + 1e-5)
    assert torch.all(curves.scores["least"] >= curves.scores["random"] - 1e-5)
    gap = curves.gap()
    assert gap.mean == pytest.approx(curves.area("least").mean - curves.area("most").mean)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 13), st.integers(1, 13), st.integers(1, 9), st.integers(1, 9))
def test_regions_cover_every_pixel_once(height, width, down, across):
    grid = Grid(height, width, (down, across))
    index = grid.index()
    assert index.unique().tolist() == list(range(grid.count))
    maps = torch.rand(2, height, width, dtype=torch.float64)
    sums = torch.stack([maps[:, index == region].sum(1) for region in range(grid.count)], 1)
    torch.testing.assert_close(grid.sums(maps), sums)
    means = torch.stack([maps[:, index == region].mean(1) for region in range(grid.count)], 1)
    torch.testing.assert_close(grid.means(maps), means)
    signed = maps[:, None] - 0.5
    absolute = grid.relevance(signed, "mean_absolute")
    torch.testing.assert_close(absolute, grid.means(signed[:, 0].abs()))


def test_ties_are_ordered_by_chance():
    chance = torch.rand(200, 6, generator=torch.Generator().manual_seed(0))
    relevance = torch.tensor([[5.0, 0, 0, 0, 0, 9.0]]).expand(200, 6)
    places = ranks(relevance, chance, descending=True).double()
    assert torch.equal(places[:, 5], torch.zeros(200).double())
    assert torch.equal(places[:, 0], torch.ones(200).double())
    assert torch.all((places[:, 1:5].mean(0) - 3.5).abs() < 0.3)
    assert torch.equal(places.sort(1).values[0], torch.arange(6).double())


def test_noise_is_standard_normal_times_three_tenths():
    inputs = torch.zeros(4, 3, 40, 40)
    noise = replaced(inputs, Grid(40, 40, (9, 9)), "gaussian", torch.Generator().manual_seed(0))
    assert noise.std() == pytest.approx(0.3, rel=0.02)
    assert noise.mean() == pytest.approx(0, abs=0.01)
    sorted_ = (noise.flatten().double() / 0.3).sort().values
    expected = torch.special.ndtr(sorted_)
    uniform = (torch.arange(len(sorted_)) + 0.5) / len(sorted_)
    assert (expected - uniform).abs().max() < 0.015  # Kolmogorov and Smirnov


@pytest.mark.parametrize("replacement", ["gaussian", "zero"])
def test_batches_do_not_matter_and_the_seed_does(replacement):
    model, (inputs, labels) = small_network(), images(7)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options = {"regions": (4, 4), "replacement": replacement, "target": "true"}
    runs = [
        measured(model, data, "gradient", seed=seed, batch_size=size, **options)
        for data, seed, size in (
            ((inputs, labels), 3, 7),
            ((inputs, labels), 3, 2),
            (DataLoader(TensorDataset(inputs, labels), batch_size=3), 3, 99),
            ((inputs, labels), 4, 7),
        )
    ]
    whole, *others = [run["gradient"].scores for run in runs]
    for order in whole:
        torch.testing.assert_close(whole[order], others[0][order], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(whole[order], others[1][order], atol=1e-6, rtol=1e-6)
    assert not torch.allclose(whole["random"], others[2]["random"])
    first = model(inputs).softmax(1).gather(1, labels[:, None])[:, 0].double()
    torch.testing.assert_close(whole["most"][:, 0], first.detach(), atol=1e-6, rtol=1e-6)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_curves_normalise_travel_and_print():
    model, data = small_network(), images(4)
    curves = measured(model, data, ["gradient", "lrp.epsilon"], regions=(4, 4), steps=2)
    found = curves["gradient"]
    assert found.share.tolist() == pytest.approx([0, 1 / 12, 2 / 12])
    again = PerturbationCurves.from_json(json.loads(json.dumps(found.to_json())))
    assert all(torch.equal(again.scores[name], found.scores[name]) for name in found.scores)
    assert again.settings == found.settings
    divided = found.normalised()
    torch.testing.assert_close(divided.scores["most"][:, 0], torch.ones(4).double())
    same = measured(model, data, "gradient", regions=(4, 4), steps=2, normalise=True)
    assert torch.equal(same["gradient"].scores["least"], divided.scores["least"])
    assert repr(found).startswith("PerturbationCurves(gradient, 4 images, 2 steps: most 0.")
    single = measured(model, images(1), "gradient", regions=(4, 4), steps=2)["gradient"]
    assert math.isnan(single.area("most").error)
    part = PerturbationCurves("x", found.share, {"most": found.scores["most"]})
    with pytest.raises(DataError, match="'random' was not measured"):
        part.area("random")


class NotANumber(Method):
    def attribute(self, inputs, target=None):
        return torch.full_like(inputs, torch.nan)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"steps": 99}, ValueError, "have 4 regions of 9 x 9, which are all replaced after 4"),
        ({"regions": (0, 3)}, ValueError, "regions = "),
        ({"regions_per_step": 0}, ValueError, "regions_per_step = 0"),
        ({"orders": ("most", "worst")}, ValueError, "most, least, random"),
        ({"orders": ()}, ValueError, "orders"),
        ({"replacement": "blur"}, ValueError, "'blur' is not one of 'zero', 'gaussian'"),
        ({"pooling": "max"}, ValueError, "'max' is neither 'sum'"),
        ({"score": "loss"}, ValueError, "'loss' is none of probability"),
        ({"target": 4}, DataError, "label 4"),
        ({"target": "label"}, DataError, "'true' or the number"),
        ({"methods": "lrp.epsilom"}, ValueError, "did you mean lrp.epsilon"),
        ({"methods": []}, ValueError, "no method"),
        ({"methods": {"nan": NotANumber}}, ValueError, "NaN"),
        ({"data": (torch.zeros(2, 5), torch.zeros(2).long())}, DataError, r"\(N, C, H, W\)"),
        ({"score": "output", "normalise": True}, ValueError, "not positive"),
    ],
)
def test_mistakes_are_named(change, error, message):
    torch.manual_seed(0)
    model = small_network()
    with torch.no_grad():
        model[-1].bias -= 100  # outputs below zero
    if "data" in change:
        model = nn.Linear(5, 3).eval()
    call = {"data": images(3), "methods": "gradient", **change}
    with pytest.raises(error, match=message):
        measured(model, call.pop("data"), call.pop("methods"), **call)


def test_a_network_in_training_mode_is_refused():
    with pytest.raises(ModelError, match="training mode"):
        measured(small_network().train(), images(), "gradient")


# Few steps leave a residual, which is warned of; the order of the regions is what is judged here.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::niwaki.errors.CompletenessWarning")
def test_real_heatmaps_beat_a_random_order(shared):
    model = zoo.vgglike().eval()
    models.load_weights(model, shared / "data" / "weights" / "vgglike_cifar10.safetensors")
    preprocessing = Preprocessing(32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    data = open_data(shared / "data" / "cifar10", preprocessing, split="test")
    picked = Subset(data, list(range(0, len(data), len(data) // 32))[:32])
    methods = {
        "lrp": partial(create, "lrp.epsilon_plus"),
        "integrated": partial(create, "integrated_gradients", steps=8, refinements=0),
        "noise": partial(create, "random"),
    }
    curves = measured(model, picked, methods, regions=(4, 4), steps=16)
    noise = curves.pop("noise").gap()
    assert abs(noise.mean) < 4 * noise.error
    for found in curves.values():
        assert found.gap().mean > 3 * found.gap().error, found
        assert found.area("most").mean < found.area("random").mean
    lrp = curves["lrp"]
    assert lrp.area("least").mean > lrp.area("random").mean


# Few steps leave a residual, which is warned of; the order of the regions is what is judged here.
@pytest.mark.filterwarnings("ignore::niwaki.errors.CompletenessWarning")
@pytest.mark.long
def test_lrp_and_integrated_gradients_beat_a_random_order_on_large_images(shared):
    model = torchvision.models.squeezenet1_1().eval()
    weights = shared / "data" / "weights" / "squeezenet1_1_imagenet.safetensors"
    models.load_weights(model, weights)
    preprocessing = Preprocessing(224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    data = open_data(shared / "data" / "imagenette", preprocessing, split="val")
    picked = Subset(data, [i * len(data) // 8 for i in range(8)])
    methods = {
        "lrp": partial(create, "lrp.epsilon_plus"),
        "integrated": partial(create, "integrated_gradients", steps=8, refinements=0),
    }
    options = {"regions": (28, 28), "steps": 4, "regions_per_step": 5}
    for found in measured(model, picked, methods, **options).values():
        assert found.gap().mean > 2 * found.gap().error, found
        assert found.area("most").mean < found.area("random").mean < found.area("least").mean
