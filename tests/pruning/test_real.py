"""Real networks and images: what pruning is for."""

import time
from functools import partial
from statistics import mean, median

import pytest
import torch
from bundles import bundled

from niwaki import pruning
from niwaki.attribution import explain
from niwaki.criteria import create, score
from niwaki.data import Preprocessing, batches, open_data, references
from niwaki.errors import FallbackWarning
from niwaki.evaluation import accuracy, cost
from niwaki.models import build, load_weights, preprocessing, zoo

# What is left is compared with what was there: nothing is rebuilt.
prune = partial(pruning.prune, repair=None)

IMAGENETTE = (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)


def tensors(data):
    parts = list(batches(data, 100))
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


@pytest.mark.long
def test_lrp_keeps_more_accuracy_than_chance(shared):
    model = zoo.resnet20().eval()
    load_weights(model, shared / "data/weights/resnet20_cifar10_jpeg.safetensors")
    train, test = (
        open_data(shared / "data/cifar10", zoo.resnet20.preprocessing, split=split)
        for split in ("train", "test")
    )
    reference = tensors(references(train, 10, seed=0))
    seen = tensors(references(test, 40, seed=0))
    options = {"keep": 0.8, "of": "macs", "steps": 2}
    lrp = prune(model, reference, "lrp", **bundled(**options))
    chance = [
        prune(model, reference, create("random", seed=seed), **bundled(**options))
        for seed in (0, 1)
    ]
    for pruned in (lrp, *chance):
        assert 0.78 < pruned.trajectory.kept("macs")[-1] <= 0.8
    whole = accuracy(model, seen)
    kept, lost = accuracy(lrp.model, seen), mean(accuracy(c.model, seen) for c in chance)
    assert whole > 0.84
    assert kept > lost + 0.1, (whole, kept, lost)


@pytest.mark.slow
def test_half_the_macs_take_less_time(shared):
    model = zoo.resnet56().eval()
    load_weights(model, shared / "data/weights/resnet56_cifar10.safetensors")
    images = torch.randn(32, 3, 32, 32)
    pruned = prune(
        model, (images[:4], torch.arange(4)), "weight", keep=0.5, schedule=pruning.Schedule(steps=1)
    ).model
    assert cost(pruned, images).macs <= 0.5 * cost(model, images).macs
    ratio = 1.0
    for _ in range(4):  # others may use the machine
        seconds = {model: [], pruned: []}
        with torch.no_grad():
            for network in (model, pruned) * 4:
                before = time.perf_counter()
                network(images)
                seconds[network].append(time.perf_counter() - before)
        ratio = min(ratio, median(seconds[pruned][1:]) / median(seconds[model][1:]))
        if ratio < 0.9:
            break
    assert ratio < 0.9


@pytest.fixture(scope="module")
def squeezenet(shared):
    weights = shared / "data/weights/squeezenet1_1_imagenet.safetensors"
    model = build("torchvision:squeezenet1_1", weights=weights)
    data = open_data(
        shared / "data/imagenette",
        preprocessing("torchvision:squeezenet1_1"),
        split="val",
        outputs=IMAGENETTE,
    )
    return model, tensors(references(data, 3, seed=0))


def test_squeezenet_is_explained(squeezenet):
    model, (images, labels) = squeezenet
    heatmaps = explain(model, images[::3], labels[::3], method="lrp.epsilon_plus")
    assert bool(heatmaps.isfinite().all())
    assert bool((heatmaps.abs().flatten(1).sum(1) > 0).all())


@pytest.mark.long
def test_squeezenet_is_pruned_and_still_sees(squeezenet):
    model, data = squeezenet
    pruned = prune(
        model,
        data,
        "lrp",
        keep=0.9,
        of="macs",
        schedule=pruning.Schedule(steps=2),
        run=pruning.Run(batch_size=15),
    )
    assert pruned.trajectory.kept("macs")[-1] <= 0.9
    assert pruned.model(data[0][:2]).shape == (2, 1000)
    among = [
        (m(data[0])[:, IMAGENETTE].argmax(1) == torch.arange(10).repeat_interleave(3))
        for m in (model, pruned.model)
    ]
    whole, rest = (float(right.float().mean()) for right in among)
    assert whole > 0.85
    assert rest > whole - 0.15


@pytest.mark.slow
def test_linear_bottlenecks_keep_their_first_layers(shared):
    """Where sums lose relevance, early layers would count for nothing and go first."""
    timm = pytest.importorskip("timm")
    safetensors = pytest.importorskip("safetensors.torch")
    state = safetensors.load_file(shared / "data/weights/efficientnet_lite0_imagenet.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        state[name] = state[name][list(IMAGENETTE)]
    model = timm.create_model("efficientnet_lite0", num_classes=10).eval()
    model.load_state_dict(state)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 1e-3
    known = Preprocessing(112, 128, mean=(0.498,) * 3, std=(0.502,) * 3)
    train = open_data(shared / "data/imagenette", known, split="train")
    data = tensors(references(train, 3, seed=0))
    with pytest.warns(FallbackWarning, match=r"lrp\.ratio_sums"):
        found = score(model, data)
    totals = [float(values.sum()) for values in found.values()]
    assert max(totals) < 100 * min(totals)  # it neither grows nor fades from layer to layer
    pruned = prune(model, data, "lrp.ratio_sums", keep=0.67, schedule=pruning.Schedule(steps=2))
    assert pruned.model.conv_stem.out_channels >= 16
