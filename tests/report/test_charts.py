"""Axes of charts: round ticks around whatever the values are."""

from itertools import pairwise

import pytest

from niwaki.report._chart import Axis, Chart, Line, Point

VALUES = {
    "usual": [0.2, 0.7, 0.4],
    "equal": [3.0, 3.0],
    "zero": [0.0, 0.0],
    "rounded zeros": [3e-15, -2e-16, 1e-14],
    "rounded": [0.1 + 0.2, 0.3],
    "small": [2e-11, 7e-11],
    "large": [2e12, 7e12],
    "negative": [-7.0, -7.0],
    "none": [],
}


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_ticks_reach_around_values(values):
    points = tuple(Point(float(place), value, "") for place, value in enumerate(values))
    drawn = Chart("title", Axis("x"), Axis("y"), (Line("line", points),)).drawn()
    ticks = [float(text) for _, text in drawn["y_ticks"]]
    places = [place for place, _ in drawn["y_ticks"]]
    assert 3 <= len(ticks) <= 8
    assert len(set(ticks)) == len(ticks)
    assert places == sorted(places, reverse=True)
    assert len(set(places)) == len(places)
    steps = [after - before for before, after in pairwise(ticks)]
    assert steps == pytest.approx([steps[0]] * len(steps), rel=1e-3)
    if values:
        nearly = 1e-12 + 1e-9 * max(map(abs, values))
        assert ticks[0] <= min(values) + nearly
        assert max(values) <= ticks[-1] + nearly
        assert all(
            drawn["inner"][1] <= y <= drawn["inner"][3] for _, y, _ in drawn["lines"][0]["points"]
        )


@pytest.mark.parametrize("last", [1, 2, 3, 19])
def test_what_is_counted_has_whole_ticks(last):
    points = tuple(Point(float(place), 0.1 * place, "") for place in range(last + 1))
    drawn = Chart("title", Axis("layers"), Axis("y"), (Line("line", points),)).drawn()
    assert all(float(text).is_integer() for _, text in drawn["x_ticks"])
    assert len(drawn["x_ticks"]) >= 2
