"""From text to a criterion: a name of the catalogue, or a weighted sum of several."""

from __future__ import annotations

from typing import Any

from niwaki.criteria._catalogue import make, names
from niwaki.criteria._combination import Combination
from niwaki.criteria._criterion import Criterion, Granularity
from niwaki.criteria._rebuilt import ENDING, RebuiltError
from niwaki.errors import UnknownOptionError
from niwaki.options import make_with, split_options

__all__ = ["create"]


def create(
    criterion: str | Criterion, granularity: Granularity = "unit", **options: Any
) -> Criterion:
    """Make the criterion of that name; one that is made already is handed on.

    Parameters
    ----------
    criterion : str or Criterion
        One of `niwaki.criteria.names`, with options as in ``"lrp:max_loss=None"``. Criteria of
        units can be added up, as in ``"lrp + 0.5*weight"`` (see `Combination`), and any of their
        names may end in ``".rebuilt"`` (see `RebuiltError`).
    granularity : {"unit", "weight"}
        What it is to score.
    **options
        The criterion's own.

    Raises
    ------
    ValueError
        For a name that does not exist, or a criterion of the other granularity.
    UnknownOptionError
        For an option that the criterion does not have; one that is made already has none.
    """
    if isinstance(criterion, Criterion):
        if options:
            raise UnknownOptionError(min(options), {f"{criterion} (made already)": ()})
        if criterion.granularity != granularity:
            raise ValueError(
                f"{criterion} scores {criterion.granularity}s, not {granularity}s; of "
                f"{granularity}s: {', '.join(names(granularity))}"
            )
        return criterion
    if ":" in criterion:
        name, told = split_options(criterion)
        return create(name, granularity, **{**told, **options})
    if granularity == "unit" and ("+" in criterion or "*" in criterion):
        return make_with(f"criterion {criterion!r}", Combination, criterion, **options)
    if granularity == "unit" and criterion.endswith(ENDING):
        return RebuiltError(make(criterion.removesuffix(ENDING), **options))
    return make(criterion, granularity, **options)
