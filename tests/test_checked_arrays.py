"""Arrays of another shape, other values or another kind are refused before anything is computed."""

import inspect
import re

import numpy as np
import pytest
import torch

import niwaki
from niwaki import auditing, datasets, evaluation, filters
from niwaki.arrays import LABELS, MAPS, Shaped, shaped
from niwaki.errors import DataError

RNG = np.random.default_rng(0)
MAP, MASK = RNG.random((6, 8, 8)), RNG.random((6, 8, 8)) > 0.5
TWO = np.arange(6) % 2
PIXELS = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
FEATURES = RNG.normal(size=(24, 5))
CLASSES, CENTRES = np.arange(24) % 2, np.arange(24) // 12
#: A call of each function that is right, apart from its networks.
CALLS = {
    auditing.auc: {"outputs": RNG.normal(size=(6, 2)), "labels": TWO},
    auditing.bootstrap: {"values": np.arange(6.0)},
    auditing.cell_scores: {
        "relevance": MAP,
        "instances": RNG.integers(0, 4, (6, 8, 8)),
        "positive": RNG.random((6, 3)) > 0.5,
    },
    auditing.mass_accuracy: {"relevance": MAP, "masks": MASK},
    auditing.rank_accuracy: {"relevance": MAP, "masks": MASK},
    auditing.stains: {"pixels": PIXELS},
    auditing.shift_test: {"maps": MAP, "zone": MASK.astype(float), "rng": RNG},
    auditing.sign_test: {"differences": np.arange(6.0), "rng": RNG},
    auditing.group_test: {"values": np.arange(6.0), "members": TWO > 0, "rng": RNG},
    auditing.robustness_index: {"features": FEATURES, "labels": CLASSES, "centres": CENTRES},
    auditing.filled: {"pixels": PIXELS, "masks": MASK},
    auditing.foreign: {"pixels": PIXELS, "labels": TWO, "label": 1},
    auditing.spectral: {"features": FEATURES},
    datasets.plant: {
        "pixels": RNG.integers(0, 255, (6, 64, 64, 3)).astype(np.uint8),
        "labels": TWO,
        "artefact": "square",
        "on": 1,
        "share": 0.5,
    },
    evaluation.near_chance: {"predicted": TWO, "labels": TWO},
    filters.class_selectivity: {"means": torch.rand(4, 3)},
    filters.orientation: {"weights": torch.rand(4, 3, 5, 5)},
    filters.diversity: {"correlated": torch.eye(4)},
    filters.twins: {"correlated": torch.eye(4)},
}
# They take what others of their room have made, or a network and what `niwaki.data` checks.
ELSEWHERE = {
    "compare_regions",
    "concept_of",
    "right_reasons",
    "specificity",
    "prune_artefact",
    "project_out",
    "artefact_direction",
    "discs",
    "coloured",
}


def parameters(wanted=lambda call, name, form: True):
    return [
        pytest.param(call, name, id=f"{call.__name__}-{name}")
        for call, given in CALLS.items()
        for name, form in call.__niwaki_arrays__.items()
        if name in given and wanted(call, name, form)
    ]


def shares_its_first_axis(call, name, form):
    others = [
        axis
        for other, there in call.__niwaki_arrays__.items()
        if other != name and other in CALLS[call]
        for axis in there.axes.replace("|", " ").split()
    ]
    return form.axes.split()[0] in others or "|" in form.axes


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_right_calls_are_answered(call):
    call(**CALLS[call])


@pytest.mark.parametrize(("call", "name"), parameters())
def test_another_number_of_axes_is_refused(call, name):
    given = dict(CALLS[call])
    given[name] = given[name][None, None]
    with pytest.raises(DataError, match=f"{name} is of shape"):
        call(**given)


@pytest.mark.parametrize(("call", "name"), parameters(shares_its_first_axis))
def test_fewer_samples_than_the_others_have_are_refused(call, name):
    given = dict(CALLS[call])
    given[name] = given[name][:-1]
    with pytest.raises(DataError, match="both must have the same"):
        call(**given)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")], ids=["nan", "inf"])
@pytest.mark.parametrize(
    ("call", "name"),
    parameters(lambda call, name, form: form.kind == "number" and not form.missing),
)
def test_what_is_no_number_is_refused(call, name, wrong):
    given = dict(CALLS[call])
    value = given[name]
    value = value.clone() if isinstance(value, torch.Tensor) else value.astype(float)
    value[(0,) * value.ndim] = wrong
    given[name] = value
    with pytest.raises(DataError, match=f"{name} has .*infinite values, 1 of|images are float"):
        call(**given)


@pytest.mark.parametrize(
    ("call", "name"), parameters(lambda call, name, form: form.kind in ("truth", "whole"))
)
def test_numbers_are_no_mask_and_fractions_no_labels(call, name):
    given = dict(CALLS[call])
    given[name] = np.asarray(given[name]) * 2.0
    with pytest.raises(DataError, match=f"{name} is of type float64"):
        call(**given)


def test_every_public_function_that_takes_arrays_checks_them():
    missing = []
    for room in (auditing, datasets, evaluation, filters, niwaki.attribution):
        for name in room.__all__:
            found = getattr(room, name)
            if not inspect.isfunction(found) or found in CALLS or name in ELSEWHERE:
                continue
            kinds = [str(p.annotation) for p in inspect.signature(found).parameters.values()]
            if any(re.search(r"\bN?D?Array\b", kind) for kind in kinds):
                missing.append(f"{room.__name__}.{name}")
    assert not missing


def test_labels_that_no_output_has_and_cells_that_no_column_has():
    with pytest.raises(DataError, match="label 2"):
        auditing.auc(np.zeros((3, 2)), np.array([0, 1, 2]))
    with pytest.raises(DataError, match="labels has values from -1"):
        auditing.auc(np.zeros((3, 2)), np.array([0, 1, -1]))
    cells = dict(CALLS[auditing.cell_scores])
    cells["positive"] = cells["positive"][:, :2]
    with pytest.raises(DataError, match="numbered up to 3, and positive has 2 columns"):
        auditing.cell_scores(**cells)


def test_pixels_of_another_scale_a_class_that_is_not_there_and_points_that_are_none():
    with pytest.raises(DataError, match="from 0 to 1"):
        auditing.stains(PIXELS * 255)
    with pytest.raises(DataError, match="label = 3"):
        auditing.foreign(PIXELS, TWO, 3)
    with pytest.raises(DataError, match="on = 3: no image has that label; labels are 0, 1"):
        datasets.plant(**{**CALLS[datasets.plant], "on": 3})
    with pytest.raises(DataError, match="points has NaN"):
        auditing.discs([np.array([[float("nan"), 2.0]])], 8, 8, 2.0)
    with pytest.raises(DataError, match="values has infinite values"):
        auditing.bootstrap(np.array([1.0, np.inf]))
    with pytest.raises(DataError, match="both axes"):
        filters.diversity(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="twice"):
        filters.enrichment([("a", 0), ("a", 0)], [("a", 0)], 2, 1)


def test_lists_none_and_half_precision_are_arrays_too():
    @shaped(maps=MAPS, labels=LABELS, weights=Shaped("N", missing=True, high=1))
    def called(maps, labels=None, weights=None):
        return "called"

    half = torch.zeros(2, 3, 4, dtype=torch.bfloat16)
    assert called(half, [0, 1], [0.5, float("nan")]) == "called"
    assert called(half, None) == "called"
    with pytest.raises(DataError, match="labels is of shape"):
        called(half, [0, 1, 2])
    with pytest.raises(DataError, match="weights has values from 2 to 2"):
        called(half, weights=[2.0, float("nan")])
    with pytest.raises(TypeError, match="required positional"):
        called()
    with pytest.raises(TypeError, match="no parameters"):
        shaped(other=MAPS)(called)
