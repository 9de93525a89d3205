"""Masks and scores that would be taken for something else are refused."""

import pytest
import torch
from torch import nn

import niwaki
from niwaki.criteria import Scores
from niwaki.errors import DataError, ModelError
from niwaki.pruning import mask_weights, rebuild, select_weights
from niwaki.report import contact_sheet


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


@pytest.fixture
def data():
    return torch.randn(12, 6), torch.arange(12) % 3


@pytest.mark.parametrize("kind", [torch.float32, torch.int64, torch.uint8], ids=str)
def test_a_mask_of_numbers_is_refused_as_it_would_scale_weights(network, data, kind):
    mask = (torch.rand(8, 6) * 2).to(kind)
    with pytest.raises(ValueError, match="'0' is of type"):
        mask_weights(network, {"0": mask})
    with pytest.raises(ModelError, match="'0' is of type"):
        rebuild(network, network, data, masks={"0": mask})
    kept = mask_weights(network, {"0": mask > 0})[0].weight
    assert torch.equal(kept, network[0].weight * (mask > 0))


def test_scores_of_units_choose_no_weights(network, data):
    with pytest.raises(ValueError, match="one for each unit"):
        select_weights(niwaki.score(network, data, "weight"), 0.5)


def test_scores_with_nan_are_none():
    with pytest.raises(DataError, match=r"'a' have NaN \(1 of 2\)"):
        Scores({"a": torch.tensor([1.0, float("nan")])})


def test_heatmaps_of_another_size_are_not_stretched(tmp_path):
    with pytest.raises(ValueError, match=r"method: heatmaps of \(8, 4\) pixels"):
        contact_sheet(
            tmp_path / "a.png", torch.rand(2, 3, 8, 8), {"method": torch.zeros(2, 1, 8, 4)}
        )
    assert not (tmp_path / "a.png").exists()
