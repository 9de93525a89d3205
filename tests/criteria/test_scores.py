"""Scores as data: ranks and correlations against scipy, files, normalisation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from scipy import stats

from niwaki.criteria import Scores
from niwaki.errors import DataError

# Few different values, so that ties are common.
values = st.lists(st.integers(-3, 3).map(lambda i: i / 4), min_size=2, max_size=9)


def scores_of(*layers, **about):
    named = {f"layer{i}": torch.tensor(v, dtype=torch.float64) for i, v in enumerate(layers)}
    return Scores(named, **about)


@settings(max_examples=50, deadline=None)
@given(values, values)
def test_ranks_are_those_of_scipy(first, second):
    ranks = scores_of(first, second).ranks()
    assert ranks.tolist() == (stats.rankdata(first + second) - 1).tolist()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=3, max_size=20))
def test_rank_correlation_is_that_of_scipy(pairs):
    first, second = (list(map(float, column)) for column in zip(*pairs, strict=True))
    if len(set(first)) == 1 or len(set(second)) == 1:
        return  # not defined
    expected = stats.spearmanr(first, second).statistic
    found = scores_of(first).rank_correlation(scores_of(second))
    assert found == pytest.approx(expected, abs=1e-12)


def test_overlap_is_the_share_of_lowest_units_in_common():
    one, two = scores_of([1, 2, 3], [4, 5]), scores_of([5, 1, 2], [9, 0])
    assert one.overlap(two, 2) == 0.5  # {0, 1} and {4, 1}
    assert one.overlap(two, 3) == pytest.approx(2 / 3)  # {0, 1, 2} and {4, 1, 2}
    assert one.overlap(one, 4) == 1
    for count in (0, 6):
        with pytest.raises(ValueError, match="between 1 and 5"):
            one.overlap(two, count)


@pytest.mark.parametrize(
    ("how", "size"), [("none", 1.0), ("sum", 7.0), ("mean", 3.5), ("l2", 5.0), ("max", 4.0)]
)
def test_normalised_divides_each_layer(how, size):
    found = scores_of([3, -4], [0, 0], criterion="lrp", samples=3).normalised(how)
    assert found["layer0"].tolist() == pytest.approx([3 / size, -4 / size])
    assert found["layer1"].tolist() == [0, 0]
    assert (found.criterion, found.samples) == ("lrp", 3)


def test_an_unknown_normalisation_names_the_known_ones():
    with pytest.raises(ValueError, match="none, sum, mean, l2, max"):
        scores_of([1]).normalised("l1")


def test_saved_scores_come_back(tmp_path):
    # The order is not the alphabet's.
    named = {"z.conv": torch.rand(3).double(), "a": torch.rand(5).double()[::2]}
    scores = Scores(named, "taylor", 12, "abcdef")
    scores.save(tmp_path / "deep" / "scores.safetensors")
    again = Scores.load(tmp_path / "deep" / "scores.safetensors")
    assert list(again) == list(scores)
    assert all(torch.equal(again[name], scores[name]) for name in scores)
    assert (again.criterion, again.samples, again.fingerprint) == ("taylor", 12, "abcdef")
    assert repr(again) == repr(scores) == "Scores(taylor: 6 units in 2 layers, 12 samples)"
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["scores.safetensors"]


def test_a_file_without_scores_is_refused(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "weights.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    for name in ("weights", "text", "missing"):
        with pytest.raises(DataError, match="holds no scores"):
            Scores.load(tmp_path / f"{name}.safetensors")


def test_scores_of_different_networks_are_not_compared():
    one, two = scores_of([1, 2], [3]), scores_of([1, 2], [3, 4])
    for compare in (one.rank_correlation, lambda other: one.overlap(other, 1)):
        with pytest.raises(ValueError, match="'layer1' has 1 and 2 units"):
            compare(two)
