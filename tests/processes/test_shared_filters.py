"""Several processes learn of filters, and draw, what one does."""

from __future__ import annotations

import pytest
import shared_jobs as jobs
import torch

from niwaki.errors import DataError

SOME = [3, *(pytest.param(count, marks=pytest.mark.long) for count in (1, 2, 4))]
SUMMED = ("class_means", "class_relevance", "class_selectivity", "correlation")


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if name.rpartition("/")[2] in SUMMED:  # the order of adding up differs
            assert torch.allclose(found[name], value, rtol=1e-6, atol=1e-9, equal_nan=True), name
        else:
            assert torch.equal(found[name].nan_to_num(-7), value.nan_to_num(-7)), name


@pytest.mark.slow
@pytest.mark.parametrize("count", SOME)
@pytest.mark.parametrize("samples", [41, 13])  # a last batch of one; fewer batches than processes
def test_profiles_are_those_of_one_process(crew, count, samples):
    tensors, classes, _ = jobs.profiled(samples)
    assert not tensors["first/colour"].isnan().all()
    for found in crew(count, jobs.profiled, samples):
        assert_same(found[0], tensors)
        assert found[1] == classes


@pytest.mark.slow
@pytest.mark.parametrize("count", SOME)
def test_no_image_is_learned_from_twice_by_a_run_that_goes_on(crew, count, tmp_path):
    tensors, classes, calls = jobs.profiled(77)
    folder = str(tmp_path / "run")
    for error in crew(2, jobs.profiled, 77, folder, 2):
        assert isinstance(error, DataError), error
    again = 0
    for found in crew(count, jobs.profiled, 77, folder):
        assert_same(found[0], tensors)
        assert found[1] == classes
        again += found[2]
    assert 0 < again < calls  # something had been kept


@pytest.mark.slow
@pytest.mark.parametrize("count", SOME)
def test_pictures_are_those_of_one_process(crew, count, tmp_path):
    expected = jobs.filters_drawn(21, str(tmp_path / "one"))
    for found in crew(count, jobs.filters_drawn, 21, str(tmp_path / "several")):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(found[name].nan_to_num(-7), value.nan_to_num(-7)), name
