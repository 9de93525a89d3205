"""Layers that read many more features than there are rows: fitted in the space of the rows."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from test_rebuild import Two, cut
from torch import Tensor, nn

import niwaki
from niwaki.pruning import Schedule, rebuild
from niwaki.pruning.repair import _few_rows, _fitting
from niwaki.pruning.units import _within_layers

NETWORKS = {
    "alone": lambda: Two(nn.Linear(6 * 64, 4), flat=True),
    "norm behind": lambda: Two(nn.Linear(6 * 64, 4, bias=False), flat=True, norm=nn.BatchNorm1d(4)),
    "relu behind": lambda: Two(nn.Linear(6 * 64, 4), flat=True, norm=nn.ReLU()),
    "convolution": lambda: Two(nn.Conv2d(6, 4, 8)),
}


def rebuilt(kind: str, jointly: bool) -> tuple[dict[str, Tensor], tuple[float, float]]:
    """Rebuild a network whose reader has 256 features, from 12 images and their mirror images."""
    torch.manual_seed(0)
    model = NETWORKS[kind]().double().eval()
    x = torch.randn(12, 2, 8, 8, dtype=torch.float64)
    smaller, plan = cut(model, x)
    report = rebuild(smaller, model, (x, torch.zeros(12)), plan, jointly=jointly)
    return smaller.state_dict(), report.errors["reader"]


@pytest.mark.parametrize("jointly", [False, True])
@pytest.mark.parametrize("kind", NETWORKS)
def test_they_become_what_all_features_make_them(
    kind: str, jointly: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    plain = _fitting.Regression

    class Watched(plain):  # type: ignore[misc, valid-type]
        def __init__(self, sums: dict[str, Tensor], *args: object) -> None:
            sizes.append(sums["xx"].shape[-1])
            super().__init__(sums, *args)

    monkeypatch.setattr(_fitting, "Regression", Watched)
    few, errors = rebuilt(kind, jointly)
    monkeypatch.setattr(_few_rows, "_FEWER", 10**9)
    every, wanted = rebuilt(kind, jointly)
    assert sizes == [24, 256]
    assert errors == pytest.approx(wanted, rel=1e-9)
    for name, value in every.items():
        torch.testing.assert_close(few[name], value, rtol=0, atol=1e-9)


def test_layers_with_too_many_weights_are_not_fitted_with_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_fitting, "_MOST_WEIGHTS", 4 * 4 * 64 - 1)
    alone, _ = rebuilt("alone", jointly=False)
    jointly, _ = rebuilt("alone", jointly=True)
    assert all(torch.equal(alone[name], jointly[name]) for name in alone)
    monkeypatch.setattr(_fitting, "_MOST_WEIGHTS", 4 * 4 * 64)
    jointly, _ = rebuilt("alone", jointly=True)
    assert not torch.equal(alone["first.weight"], jointly["first.weight"])


def test_units_that_only_a_very_wide_layer_reads_go_by_the_criterion(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    model = Two(nn.Linear(6 * 64, 4), flat=True).eval()
    with torch.no_grad():  # large, but each can stand in for the other
        model.first.weight[:2] = 3 * model.first.weight[:1]
        model.first.bias[:2] = 3 * model.first.bias[:1]
    few = torch.randn(12, 2, 8, 8), torch.arange(12) % 4

    def gone(criterion: str) -> object:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pruned = niwaki.prune(
                copy.deepcopy(model), few, criterion, keep=0.75, repair=None, schedule=Schedule(1)
            )
        return pruned.plan.to_json()

    assert gone("weight.rebuilt") != gone("weight")
    monkeypatch.setattr(_within_layers, "_WIDEST", 6 * 64 - 1)
    assert gone("weight.rebuilt") == gone("weight")
