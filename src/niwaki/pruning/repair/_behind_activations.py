"""A layer fitted to what the activation behind it makes of its outputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from niwaki.accumulation import Totals
from niwaki.pruning.repair._least_squares import EXACT, TINY, Fit, Regression, aims, spread
from niwaki.pruning.repair._readings import Rows

__all__ = ["within"]

_ROUNDS = 8


def within(
    reading: Iterable[Rows], regression: Regression, found: Fit, offset: Tensor | None
) -> Fit:
    """Fit again where outputs that the activation cuts off need only stay where it cuts them off.

    The error is then the distance from the range of outputs that come to the same. Each round aims
    at the nearest values within the ranges, from a point a little ahead on the way so far (FISTA of
    Beck and Teboulle 2009, in the metric of the regression). Outputs that are met exactly already
    stay as they are, and so do those that would get worse.
    """
    start, variance = regression.start, spread(regression.sums)
    matrix = ahead = found.matrix
    raised = raised_ahead = found.offset
    momentum = 1.0
    for _ in range(_ROUNDS):
        targets = _nearest(reading, ahead, raised_ahead)
        new = regression.weights(targets)
        new_raised = regression.offset(targets, new)
        momentum, before = (1 + (1 + 4 * momentum**2) ** 0.5) / 2, momentum
        ahead = new + (before - 1) / momentum * (new - matrix)
        if new_raised is not None and raised is not None:
            raised_ahead = new_raised + (before - 1) / momentum * (new_raised - raised)
        matrix, raised = new, new_raised
    return _best(reading, variance, (start, offset), found, (matrix, raised))


def _best(
    reading: Iterable[Rows],
    variance: Tensor,
    start: tuple[Tensor, Tensor | None],
    found: Fit,
    refitted: tuple[Tensor, Tensor | None],
) -> Fit:
    """Choose, output by output, so that no error grows and nothing that was exact is given up."""
    before, met, after = (
        _missed(reading, *pair) for pair in (start, (found.matrix, found.offset), refitted)
    )
    matrix, raised = refitted
    worse, exact = after > before, met < EXACT * variance
    matrix = torch.where(worse[..., None], start[0], matrix)
    matrix = torch.where(exact[..., None], found.matrix, matrix)
    if raised is not None and start[1] is not None and found.offset is not None:
        raised = torch.where(worse, start[1].double(), raised)
        raised = torch.where(exact, found.offset, raised)
    after = torch.where(exact, met, torch.where(worse, before, after))
    whole = max(float(variance.sum()), TINY)
    return Fit(matrix, raised, float(before.sum()) / whole, float(after.sum()) / whole)


def _nearest(
    reading: Iterable[Rows], matrix: Tensor, offset: Tensor | None
) -> Mapping[str, Tensor]:
    """Sum up the values within the ranges that are nearest to what weights give."""
    sums = Totals()
    for images, inputs, _, near in _given(reading, matrix, offset):
        sums = sums.update(aims(inputs, near), images)
    return sums.reduced(matrix.device).sums


def _missed(reading: Iterable[Rows], matrix: Tensor, offset: Tensor | None) -> Tensor:
    """Sum up the squared distances from the ranges, for each output."""
    sums = Totals()
    for images, _, given, near in _given(reading, matrix, offset):
        sums = sums.update({"missed": (near - given).double().square().sum(1)}, images)
    return sums.reduced(matrix.device).sums["missed"]


def _given(
    reading: Iterable[Rows], matrix: Tensor, offset: Tensor | None
) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """Yield images, inputs, what weights give, and the nearest values within the ranges.

    In the precision of the network, or single if that is half: a round only has to come closer,
    and double takes twice as long.
    """
    for rows in reading:
        precision = torch.promote_types(rows.inputs.dtype, torch.float32)
        inputs, least, largest = (v.to(precision) for v in (rows.inputs, rows.least, rows.largest))
        given = inputs @ matrix.transpose(1, 2).to(precision)
        if offset is not None:
            given = given + offset[:, None].to(precision)
        yield rows.images, inputs, given, torch.clamp(given, least, largest)
