"""Several processes find what one finds: sums, scores, plans and rebuilt weights."""

from __future__ import annotations

import pytest
import shared_jobs as jobs
import torch
from closeness import assert_close
from torch.utils.data import DataLoader, TensorDataset

import niwaki
from niwaki.errors import DataError, LostRelevanceError, NiwakiError

COUNTS = (1, 2, 3, 4)
SOME = [3, *(pytest.param(count, marks=pytest.mark.long) for count in (1, 2, 4))]
# By name, as many samples as batches of 8 leave uneven shares of: a last batch of one, and fewer
# batches than processes.
SIZES = {"last of one": 41, "fewer than processes": 13}


@pytest.mark.slow
@pytest.mark.parametrize("count", COUNTS)
def test_sums_are_those_of_one_process(crew, count):
    values = [torch.rand(3, generator=torch.Generator().manual_seed(n)) for n in range(5)]
    for found in crew(count, jobs.sums, values):
        assert int(found["samples"]) == 5
        assert torch.allclose(found["all"], torch.stack(values).double().sum(0), rtol=1e-12)
        assert torch.equal(found["first"], values[0].double())


@pytest.mark.parametrize("count", COUNTS)
def test_sums_are_the_same_bit_by_bit(crew, count):
    chance = torch.Generator().manual_seed(0)
    values = list(torch.randn(40, 6, 5, generator=chance, dtype=torch.float64))
    values = [v * 10.0 ** torch.randint(-8, 9, v.shape, generator=chance) for v in values]
    expected = jobs.sums(values)
    assert not torch.equal(torch.stack(values).sum(0), expected["all"])
    for found in crew(count, jobs.sums, values):
        assert torch.equal(found["all"], expected["all"])
        assert torch.equal(found["first"], expected["first"])


@pytest.mark.parametrize("odd", [float("inf"), float("nan")])
def test_sums_that_are_not_finite_are_none_anywhere(crew, odd):
    values = [torch.full((3,), 1.0 + number) for number in range(5)]
    values[3][1] = odd
    for found in crew(3, jobs.sums, values):
        assert found["all"].isfinite().tolist() == [True, False, True]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("samples", SIZES.values(), ids=SIZES)
def test_batches_are_shared_without_a_rest(crew, count, samples):
    inputs, labels = jobs.images(samples)
    given = {"tensors": (inputs, labels), "loader": DataLoader(TensorDataset(inputs, labels), 8)}
    for data in given.values():
        parts = crew(count, jobs.numbers_seen, data, 8)
        seen = sorted(number for part in parts for number in part)
        assert seen == sorted(inputs[:, 0, 0, 0].tolist())
        assert len(parts[0]) - len(parts[-1]) <= 8


def test_a_loader_that_shuffles_is_refused(crew):
    loader = DataLoader(TensorDataset(*jobs.images(20)), 4, shuffle=True)
    for error in crew(2, jobs.numbers_seen, loader, 8):
        assert isinstance(error, DataError)
        assert "pass the data set itself" in str(error)


@pytest.mark.parametrize("number", [0, 2])
def test_an_error_of_one_is_an_error_of_all(crew, number):
    for error in crew(3, jobs.fails_in, number):
        assert isinstance(error, LostRelevanceError)
        assert str(error) == "lost here"
        assert error.share == 0.7


def test_the_first_decides_and_refuses_for_all(crew):
    assert crew(3, jobs.decides) == [(7, "refused by process 0")] * 3


def test_one_may_work_alone(crew):
    expected = niwaki.evaluation.accuracy(jobs.network(), jobs.images(20))
    assert crew(3, jobs.accuracy_alone, 20) == [None, expected, None]


def test_another_network_is_refused_by_its_first_difference(crew):
    for error in crew(3, jobs.other_network):
        assert isinstance(error, NiwakiError)
        assert "process 2 has another network than process 0" in str(error)
        assert "'first'" in str(error)


@pytest.mark.parametrize("count", SOME)
@pytest.mark.parametrize("samples", [41, pytest.param(13, marks=pytest.mark.long)])
@pytest.mark.parametrize("criterion", niwaki.criteria.names())
def test_scores_are_those_of_one_process(crew, criterion, samples, count):
    expected = jobs.scores(criterion, samples, 8)
    for found in crew(count, jobs.scores, criterion, samples, 8):
        assert_close(found, expected)


@pytest.mark.parametrize("count", SOME)
@pytest.mark.parametrize("criterion", niwaki.criteria.names("weight"))
def test_scores_of_weights_are_those_of_one_process(crew, criterion, count):
    expected = jobs.weight_scores(criterion, 41, 8)
    for found in crew(count, jobs.weight_scores, criterion, 41, 8):
        assert_close(found, expected)


@pytest.mark.parametrize("samples", SIZES.values(), ids=SIZES)
def test_accuracies_are_those_of_one_process(crew, samples):
    expected = jobs.accuracies(samples, 8)
    for count in COUNTS:
        for share, counts in crew(count, jobs.accuracies, samples, 8):
            assert share == expected[0]
            assert torch.equal(counts, expected[1])


WAYS = {
    "rebuilt": {},
    "rebuilt jointly": {"repair": "rebuild_jointly", "criterion": "weight"},
    "recalibrated": {"repair": "recalibrate", "criterion": "taylor"},
    "compensated": {"repair": "compensate", "criterion": "weight"},
    "patterns": {"repair": None, "criterion": "pattern_attribution"},
    "car": {"repair": None, "criterion": "car"},
}


@pytest.mark.slow
@pytest.mark.parametrize("count", SOME)
@pytest.mark.parametrize("way", WAYS)
def test_plans_and_weights_are_those_of_one_process(crew, way, count):
    expected = jobs.pruned(60, WAYS[way])
    for found in crew(count, jobs.pruned, 60, WAYS[way]):
        assert found["plan"] == expected["plan"]
        assert found["rows"] == expected["rows"]
        assert_close(found["weights"], expected["weights"])


@pytest.mark.slow
def test_few_rows_and_large_images_are_rebuilt_as_in_one_process(crew):
    every, some = (jobs.rebuilt(60, kept) for kept in (2**27, 2**17))
    assert not torch.allclose(every["2.weight"], some["2.weight"])  # fewer samples count
    for kept, expected in ((2**27, every), (2**17, some)):
        for found in crew(3, jobs.rebuilt, 60, kept):
            assert_close(found, expected)


@pytest.mark.parametrize("count", SOME)
def test_fine_tuning_learns_what_one_process_learns(crew, count):
    expected = jobs.tuned(55, norms=False)
    for found in crew(count, jobs.tuned, 55, False):
        assert_close(found, expected, 2e-4)


def test_batch_norms_are_the_same_everywhere(crew):
    first, *others = crew(3, jobs.tuned, 55, True)
    for found in others:
        assert_close(found, first, 0)


@pytest.mark.slow
@pytest.mark.parametrize("count", SOME)
def test_masks_are_those_of_one_process(crew, count, tmp_path):
    expected = jobs.sparse(60)
    for found in crew(count, jobs.sparse, 60, str(tmp_path / "run")):
        assert_close(found, expected)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(crew, tmp_path):
    expected = jobs.pruned(60, {})
    crew(3, jobs.pruned, 60, {}, str(tmp_path / "run"))
    record = (tmp_path / "run" / "niwaki-run.json").read_text()
    for found in crew(2, jobs.pruned, 60, {}, str(tmp_path / "run")):
        assert found["plan"] == expected["plan"]
        assert_close(found["weights"], expected["weights"])
    assert (tmp_path / "run" / "niwaki-run.json").read_text() == record  # it had been finished
