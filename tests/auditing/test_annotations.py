"""Judging against annotations, by hand and against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from niwaki.auditing import auc, cell_scores, discs, mass_accuracy, rank_accuracy


def test_relevance_is_pooled_per_cell():
    relevance = np.arange(32, dtype=float).reshape(2, 4, 4)
    instances = np.zeros((2, 4, 4), int)
    instances[0, 0, :2] = 1
    instances[0, 3, 3] = 2
    instances[1, 1, 1] = 2
    positive = np.array([[True, False], [True, False]])
    found = cell_scores(relevance, instances, positive)
    assert found.relevance.tolist() == [0.5, 15, 21]
    assert found.positive.tolist() == [True, False, False]  # the fourth cell is nowhere
    assert found.image.tolist() == [0, 0, 1]
    assert cell_scores(relevance, instances, positive, "sum").relevance.tolist() == [1, 15, 21]
    assert cell_scores(relevance, instances, positive, "max").relevance.tolist() == [1, 15, 21]
    with pytest.raises(ValueError, match="median"):
        cell_scores(relevance, instances, positive, "median")


def test_cell_auc_agrees_with_scikit_learn_and_its_interval_holds_it():
    rng = np.random.default_rng(0)
    instances = np.tile(np.arange(16).reshape(4, 4) + 1, (40, 1, 1))
    positive = rng.random((40, 16)) < 0.4
    relevance = rng.normal(size=(40, 4, 4)).round(1) + positive.reshape(40, 4, 4)
    found = cell_scores(relevance, instances, positive)
    pooled = found.pooled(draws=200)
    assert pooled.mean == pytest.approx(roc_auc_score(positive.ravel(), relevance.ravel()))
    assert pooled.low < pooled.mean < pooled.high
    assert pooled.count == 40
    each = [roc_auc_score(p, r.ravel()) for p, r in zip(positive, relevance, strict=True)]
    assert found.per_image().mean == pytest.approx(np.mean(each))


def test_images_with_one_kind_of_cell_are_left_out_of_the_mean_per_image():
    instances = np.array([[[1, 2]], [[1, 2]]])
    positive = np.array([[True, False], [True, True]])
    found = cell_scores(np.array([[[1.0, 0.0]], [[1.0, 2.0]]]), instances, positive)
    assert found.per_image().count == 1
    assert found.per_image().mean == 1


def test_discs_belong_to_the_nearest_point():
    found = discs([np.array([[2.0, 2.0], [2.0, 5.0]]), np.zeros((0, 2))], 6, 8, 2.0)
    assert found[0, 2, 2] == 1
    assert found[0, 2, 5] == 2
    assert found[0, 2, 3] == 1
    assert found[0, 2, 4] == 2
    assert found[0, 5, 0] == 0
    assert not found[1].any()


def test_mass_and_rank_accuracy_by_hand():
    relevance = np.array([[[3.0, 1.0], [-5.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]])
    masks = np.array([[[True, False], [True, False]], [[False, False], [False, False]]])
    mass = mass_accuracy(relevance, masks)
    assert (mass.mean, mass.count) == (0.75, 1)  # the second image has no mask
    assert rank_accuracy(relevance, masks).mean == 0.5


def test_auc_is_the_mean_over_classes():
    rng = np.random.default_rng(0)
    outputs, labels = rng.normal(size=(90, 3)), rng.integers(0, 3, 90)
    outputs[np.arange(90), labels] += 1
    parts = []
    for label in range(3):
        others = np.delete(outputs, label, 1).max(1)
        parts.append(roc_auc_score(labels == label, outputs[:, label] - others))
    assert auc(outputs, labels) == pytest.approx(np.mean(parts))
    assert np.isnan(auc(outputs[:2], np.array([1, 1])))
    two = outputs[:, :2], labels % 2
    assert auc(*two) == pytest.approx(roc_auc_score(two[1], two[0][:, 1] - two[0][:, 0]))
