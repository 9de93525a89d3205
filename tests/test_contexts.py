"""A caller's torch.autocast or torch.inference_mode changes no number."""

import contextlib

import pytest
import torch
from torch import nn

import niwaki
from niwaki import attribution, car, criteria, evaluation, filters, pruning
from niwaki.contexts import undisturbed

CONTEXTS = {
    "inference mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu"),
    "both": lambda: _both(),
    "no gradients": torch.no_grad,
}


@contextlib.contextmanager
def _both():
    with torch.inference_mode(), torch.autocast("cpu", torch.float16):
        yield


def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    ).eval()
    with torch.no_grad():
        model[1].running_mean.normal_(0, 0.1)
    return model


def data():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(12, 2, 8, 8, generator=generator), torch.arange(12) % 3


def numbers(found):
    """All numbers of a result as tensors, in order."""
    if isinstance(found, nn.Module):
        return list(found.state_dict().values())
    if isinstance(found, torch.Tensor):
        return [found]
    if isinstance(found, dict):
        return [t for value in found.values() for t in numbers(value)]
    if isinstance(found, list | tuple):
        return [t for value in found for t in numbers(value)]
    return [torch.tensor(float(found), dtype=torch.float64)]


def repaired(repair):
    return lambda model: pruning.prune(model, data(), "weight", keep=0.6, repair=repair).model


def recalibrated(model):
    copy = niwaki.pruning.prune(model, data(), "weight", keep=0.99, repair=None).model
    pruning.recalibrate(copy, data())
    return copy


def profiled(model):
    return list(filters.profile(model, data()).by_layer.values())


def tuned(model):
    settings = pruning.FineTune(epochs=1, lr=0.01, seed=0)
    return pruning.prune(model, data(), keep=0.6, tune=settings).model


CALLS = {
    **{
        f"explain {name}": lambda model, name=name: niwaki.explain(model, data()[0], method=name)
        for name in (
            "gradient",
            "lrp.epsilon_plus",
            "deep_taylor",
            "integrated_gradients",
            "smoothgrad",
            "grad_cam",
            "occlusion",
        )
    },
    "attribute": lambda model: attribution.create("integrated_gradients", model).attribute(
        data()[0]
    ),
    **{
        f"score {name}": lambda model, name=name: criteria.score(model, data(), name).by_layer
        for name in ("lrp", "taylor", "gradient", "activation", "car", "lrp.rebuilt")
    },
    "score weights": lambda model: criteria.score_weights(model, data(), "taylor").by_layer,
    "prune, rebuilt": repaired("rebuild"),
    "prune, jointly": repaired("rebuild_jointly"),
    "prune, compensated": repaired("compensate"),
    "prune, fine-tuned": tuned,
    "recalibrate": recalibrated,
    "prune weights": lambda model: pruning.prune_weights(model, data(), "lrp", keep=0.5).model,
    "car": lambda model: [layer.car for layer in car.index(model, data()).by_layer.values()],
    "accuracy": lambda model: evaluation.accuracy(model, data()),
    "confusion": lambda model: evaluation.confusion(model, data()),
    "curves": lambda model: [
        list(curve.scores.values())
        for curve in evaluation.perturbation_curves(model, data(), ["gradient"]).values()
    ],
    "profile": lambda model: profiled(model)[1].class_relevance,
    "pictures": lambda model: [
        part.by_relevance.heatmaps
        for part in filters.pictures(model, data(), profiled(model)[0], steps=2)
    ],
}


@pytest.mark.filterwarnings("ignore::niwaki.errors.CompletenessWarning")
@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("call", CALLS)
def test_a_context_changes_no_number(call, context):
    expected = numbers(CALLS[call](network()))
    model = network()
    with CONTEXTS[context]():
        modes = torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
        found = CALLS[call](model)
        assert modes == (torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"))
    assert expected
    for one, other in zip(expected, numbers(found), strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_the_callers_contexts_are_back_after_an_error():
    @undisturbed
    def fails():
        assert not torch.is_inference_mode_enabled()
        assert not torch.is_autocast_enabled("cpu")
        raise KeyError("an error")

    with _both():
        with pytest.raises(KeyError):
            fails()
        assert torch.is_inference_mode_enabled()
        assert torch.is_autocast_enabled("cpu")
        assert torch.get_autocast_dtype("cpu") == torch.float16


def test_gradients_stay_off_where_inference_mode_had_them_off():
    seen = undisturbed(torch.is_grad_enabled)
    with torch.inference_mode():
        assert not seen()
    assert seen()


def test_a_generator_leaves_them_for_each_value():
    @undisturbed
    def steps():
        for _ in range(2):
            yield torch.is_autocast_enabled("cpu")

    with torch.autocast("cpu"):
        for inside in steps():
            assert not inside
            assert torch.is_autocast_enabled("cpu")
