"""Tests of significance against brute force, enumeration and what they promise under the null."""

from itertools import product

import numpy as np
import pytest

from niwaki.auditing import bootstrap, group_test, holm, shift_test, sign_test
from niwaki.auditing._statistics import DRAWS, enough_draws


def rng():
    return np.random.default_rng(0)


def test_shift_test_counts_what_lies_in_the_zone():
    maps = rng().random((6, 8, 10))
    zone = np.zeros((8, 10))
    zone[1:3, 2:7] = 1
    share, expected, _ = shift_test(maps, zone, rng(), 99)
    assert share == pytest.approx(np.mean([(m * zone).sum() / m.sum() for m in maps]))
    assert expected == pytest.approx(zone.mean())


def test_shift_test_agrees_with_all_shifts_of_one_map():
    values, zone = rng().random((1, 5, 5)), np.zeros((5, 5))
    zone[0, 0] = 1
    observed = values[0, 0, 0]
    exact = np.mean(
        [np.roll(values[0], s, (0, 1))[0, 0] >= observed for s in product(range(5), repeat=2)]
    )
    _, _, p = shift_test(values, zone, rng(), 20000)
    assert p == pytest.approx(exact, abs=0.02)


def test_shift_test_finds_a_place_and_keeps_its_level_without_one():
    zone = np.zeros((16, 16))
    zone[6:10, 6:10] = 1
    ps = []
    for seed in range(200):
        draw = np.random.default_rng(seed)
        spots = np.zeros((20, 16, 16))
        spots[np.arange(20), draw.integers(0, 16, 20), draw.integers(0, 16, 20)] = 1
        ps.append(shift_test(spots, zone, draw, 199)[2])
    assert np.mean(np.array(ps) <= 0.05) <= 0.08
    spots = np.zeros((20, 16, 16))
    spots[:, 8, 8] = 1
    assert shift_test(spots, zone, rng(), 999)[2] == pytest.approx(0.001)


def test_shift_test_takes_a_zone_for_each_map():
    maps = rng().random((4, 6, 6))
    zones = rng().random((4, 6, 6)) > 0.7
    share, _, _ = shift_test(maps, zones.astype(float), rng(), 9)
    sums = maps.sum((1, 2))
    assert share == pytest.approx(((maps * zones).sum((1, 2)) / sums).mean())


def test_sign_test_agrees_with_all_signs():
    values = np.array([0.5, 1.2, -0.3, 0.8, 2.0, 0.1, -0.2, 0.9])
    sums = np.array([np.dot(s, values) for s in product((-1, 1), repeat=8)])
    exact = (sums >= values.sum() - 1e-12).mean()
    assert sign_test(values, rng(), 40000) == pytest.approx(exact, abs=0.01)
    assert sign_test(np.array([]), rng()) == 1.0


def test_group_test_finds_a_group_and_no_group_is_no_finding():
    values = np.r_[np.ones(10), np.zeros(30)] + rng().normal(0, 0.1, 40)
    members = np.arange(40) < 10
    assert group_test(values, members, rng(), 999) == pytest.approx(0.001)
    assert group_test(-values, members, rng(), 999) > 0.9
    assert group_test(values, np.zeros(40, bool), rng()) == 1.0


@pytest.mark.parametrize("scale", [1e-13, 1.0, 1e8])
def test_the_unit_of_what_is_exchanged_makes_no_difference(scale):
    values = np.random.default_rng(7).choice([0.1, 0.3, 0.7, 0.123], 40)
    members = np.arange(40) % 4 == 0
    expected = group_test(values, members, rng(), 999)
    assert 0.01 < expected < 0.99
    assert group_test(values * scale, members, rng(), 999) == expected
    assert sign_test(values * scale - 0.3 * scale, rng(), 999) == sign_test(
        values - 0.3, rng(), 999
    )


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.5]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_bootstrap_interval_holds_the_mean_as_often_as_it_says():
    inside = 0
    for seed in range(200):
        values = np.random.default_rng(seed).normal(3, 1, 40)
        found = bootstrap(values, seed, 400)
        assert found.low <= found.mean <= found.high
        inside += found.low <= 3 <= found.high
    assert 0.88 <= inside / 200 <= 0.99
    assert bootstrap(np.array([1.0, np.nan, 3.0])).count == 2
    assert np.isnan(bootstrap(np.array([np.nan])).mean)


def test_empty_maps_lie_nowhere():
    zone = np.zeros((8, 8))
    zone[:2] = 1
    share, expected, p = shift_test(np.zeros((5, 8, 8)), zone, np.random.default_rng(0))
    assert (share, expected, p) == (0.0, 0.25, 1.0)


def test_many_questions_get_as_many_draws_as_their_correction_needs():
    assert enough_draws(2) == DRAWS
    for classes, regions in ((30, 0), (100, 2)):
        smallest = 1 / (1 + enough_draws(classes, regions))
        assert smallest * classes * (15 + regions) < 0.05
    values = np.full(30, 1.0)
    assert sign_test(values, rng(), 12000) == pytest.approx(1 / 12001)
