"""Several processes count and find what one does, and go on with what others have kept."""

from __future__ import annotations

import numpy as np
import pytest
import shared_jobs as jobs
import torch

from niwaki.errors import DataError

pytestmark = pytest.mark.slow

SOME = [3, *(pytest.param(count, marks=pytest.mark.long) for count in (1, 2, 4))]


def assert_same_index(found, expected):
    tensors, baseline, _ = found
    assert baseline.samples == expected[1].samples
    assert baseline.right == expected[1].right
    assert tensors.keys() == expected[0].keys()
    for name, value in expected[0].items():
        if value.dtype == torch.int64:
            assert torch.equal(tensors[name], value), name
        else:
            assert torch.allclose(tensors[name], value, rtol=1e-6, atol=1e-9), name


@pytest.mark.slow
@pytest.mark.parametrize("count", SOME)
@pytest.mark.parametrize("samples", [41, 13])
def test_counts_are_those_of_one_process(crew, count, samples):
    expected = jobs.car_index(samples)
    for found in crew(count, jobs.car_index, samples):
        assert_same_index(found, expected)


@pytest.mark.parametrize("count", SOME)
def test_no_image_is_counted_twice_by_a_run_that_goes_on(crew, count, tmp_path):
    expected = jobs.car_index(77)
    folder = str(tmp_path / "run")
    for error in crew(2, jobs.car_index, 77, folder, 2):
        assert isinstance(error, DataError), error
    calls = 0
    for found in crew(count, jobs.car_index, 77, folder):
        assert_same_index(found, expected)
        calls += found[2]
    assert 0 < calls < expected[2]  # something had been kept


@pytest.mark.slow
@pytest.mark.parametrize("count", SOME)
@pytest.mark.parametrize("sampled", [False, True])
def test_a_greedy_search_removes_what_one_process_removes(crew, count, sampled):
    *expected, state, _ = jobs.searched(41, None, sampled)
    assert len(expected[2]) == 5
    for found in crew(count, jobs.searched, 41, None, sampled):
        assert [*found[:3]] == expected
        assert all(torch.equal(found[3][name], value) for name, value in state.items())


@pytest.mark.slow
def test_a_greedy_search_goes_on_with_another_number_of_processes(crew, tmp_path):
    expected = jobs.searched(41)
    folder = str(tmp_path / "run")
    crew(3, jobs.searched, 41, folder, False, 2)
    for found in crew(2, jobs.searched, 41, folder):
        assert found[0] == expected[0]
        assert found[4] < expected[4]


@pytest.mark.slow
@pytest.mark.parametrize("count", SOME)
def test_findings_are_those_of_one_process(crew, count, tmp_path):
    rows, accuracy, relevance, labels = jobs.audited(120)
    assert any(p < 1 for _, _, p, _ in rows)
    for found in crew(count, jobs.audited, 120, str(tmp_path / "run")):
        assert found[0] == rows
        assert found[1] == accuracy
        assert np.array_equal(found[2], relevance)
        assert np.array_equal(found[3], labels)


@pytest.mark.parametrize("count", SOME)
def test_curves_are_those_of_one_process(crew, count):
    expected = jobs.curves(21)
    for found in crew(count, jobs.curves, 21):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(found[name], value), name


def test_heatmaps_are_written_once(crew, tmp_path):
    expected = jobs.collected(41, str(tmp_path / "one"))
    for found in crew(3, jobs.collected, 41, str(tmp_path / "three")):
        assert found == expected
