"""Sums do not depend on the order in which they are added up: against exact fractions."""

import math
from fractions import Fraction

import pytest
import torch

from niwaki.accumulation import Totals


def parts(count=40, seed=0):
    """Numbers of many sizes and both signs, which nearly cancel."""
    chance = torch.Generator().manual_seed(seed)
    values = torch.randn(count, 5, 7, generator=chance, dtype=torch.float64)
    values *= 10.0 ** torch.randint(-8, 9, values.shape, generator=chance)
    return torch.cat([values, -values[: count // 2] * (1 + 1e-12)])


def added(values, order):
    totals = Totals()
    for place in order:
        totals = totals.update({"x": values[place]}, 1)
    return totals


def test_sums_are_the_doubles_next_to_the_exact_ones():
    values = parts()
    found = added(values, range(len(values)))
    exact = [sum(map(Fraction, column)) for column in values.flatten(1).T.tolist()]
    assert found.sums["x"].flatten().tolist() == [float(value) for value in exact]
    assert found.samples == len(values)


@pytest.mark.parametrize("seed", range(5))
def test_the_order_and_the_halves_do_not_matter(seed):
    values = parts(seed=seed)
    expected = added(values, range(len(values))).sums["x"]
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed)).tolist()
    assert torch.equal(added(values, order).sums["x"], expected)
    halves = added(values, order[:13]).merge(added(values, order[13:]))
    assert torch.equal(halves.sums["x"], expected)
    plain = torch.stack([values[place] for place in order]).sum(0)
    assert not torch.equal(plain, expected)  # the numbers are such that it would matter


def test_sums_of_many_numbers_are_added_in_parts():
    one, other = torch.rand(700_001), torch.rand(700_001)
    found = Totals().update({"x": one}, 1).update({"x": other}, 1)
    assert torch.equal(found.sums["x"], one.double() + other.double())


@pytest.mark.parametrize("odd", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_stays_so(odd):
    found = added(torch.tensor([[1.0], [odd], [2.0]]).double(), range(3)).sums["x"]
    assert torch.equal(found.isnan(), torch.tensor([math.isnan(odd)]))
    assert math.isnan(odd) or float(found) == odd
