"""Several criteria at once: a weighted sum of the ranks that they give."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from niwaki.accumulation import Totals
from niwaki.criteria._catalogue import make
from niwaki.criteria._criterion import ByLayer, Criterion
from niwaki.criteria._rebuilt import RebuiltError
from niwaki.criteria._scores import Scores
from niwaki.data import Data
from niwaki.errors import ModelError
from niwaki.propagation import Layer
from niwaki.ranges import SEED, checked

__all__ = ["Combination"]


class Combination(Criterion):
    """A weighted sum of ranks: criteria of different units and scales on equal terms.

    Each criterion scores all units, makes its layers comparable in its own way, and ranks the units
    of all layers together, from 0 for the lowest to 1 for the highest; ties share their mean rank.
    A unit's score is the sum of its ranks, each times its criterion's weight. Layers that one of
    the criteria does not score are left out.

    Parameters
    ----------
    parts : str or mapping of str or Criterion to float
        The criteria and their weights: ``"lrp + 0.5*weight"``, or ``{"lrp": 1, "weight": 0.5}``.
    normalise : str, optional
        How the sum is normalised, see `Scores.normalised`; default ``"none"``.

    Raises
    ------
    ValueError
        For a criterion that does not exist, text that is no sum, no criterion at all, or a weight
        that is not above zero.
    """

    def __init__(
        self, parts: str | Mapping[str | Criterion, float], *, normalise: str | None = None
    ) -> None:
        super().__init__(normalise=normalise)
        weights = _read(parts) if isinstance(parts, str) else dict(parts)
        if not weights:
            raise ValueError("a combination needs at least one criterion")
        for part, weight in weights.items():
            if not (math.isfinite(weight) and weight > 0):
                raise ValueError(f"the weight of {part} in a combination is {weight}, not above 0")
        self.parts = [
            (part if isinstance(part, Criterion) else make(part), float(weight))
            for part, weight in weights.items()
        ]
        for part, _ in self.parts:
            if isinstance(part, RebuiltError):
                raise ValueError(
                    f"{part.name!r} chooses within layers and has no scores of its own to combine; "
                    "combine others, and take RebuiltError(Combination(...))"
                )
        self.name = " + ".join(_shown(part.name, weight) for part, weight in self.parts)

    def prepared(self, model: nn.Module, data: Data, batch_size: int) -> Criterion:
        """See `Criterion.prepared`."""
        ready = copy.copy(self)
        ready.parts = [(p.prepared(model, data, batch_size), weight) for p, weight in self.parts]
        return ready

    @property
    def draws(self) -> bool:
        """See `Criterion.draws`."""
        return any(part.draws for part, _ in self.parts)

    @checked(seed=SEED)
    def seeded(self, seed: int) -> Criterion:
        """See `Criterion.seeded`."""
        twin = copy.copy(self)
        twin.parts = [(part.seeded(seed), weight) for part, weight in self.parts]
        return twin

    def batch(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
        """See `Criterion.batch`."""
        return {
            f"{number}/{name}": value
            for number, (part, _) in enumerate(self.parts)
            if part.needs_data
            for name, value in part.batch(model, inputs, labels).items()
        }

    def scores(self, totals: Totals, layers: Sequence[Layer], model: nn.Module) -> ByLayer:
        """See `Criterion.scores`."""
        found = []
        for number, (part, _) in enumerate(self.parts):
            mine = Totals(_with_prefix(totals.sums, f"{number}/"), totals.samples)
            values = part.scores(mine, layers, model)
            scores = Scores({n: v.detach().double().cpu() for n, v in values.items()}, part.name)
            if not torch.isfinite(scores.flat()).all():
                raise ModelError(f"{part} gives NaN or infinite scores")
            found.append(scores.normalised(part.normalise))
        common = [layer.name for layer in layers if all(layer.name in s for s in found)]
        if not common:
            raise ModelError(f"there is no layer that all of {self.name!r} have a score for")
        ranks = sum(
            weight * _unit_interval(Scores({name: scores[name] for name in common}).ranks())
            for scores, (_, weight) in zip(found, self.parts, strict=True)
        )
        assert isinstance(ranks, Tensor)
        sizes = [len(found[0][name]) for name in common]
        return dict(zip(common, torch.split(ranks, sizes), strict=True))


def _read(text: str) -> dict[str | Criterion, float]:
    """Read ``"lrp + 0.5*weight"``."""
    weights: dict[str | Criterion, float] = {}
    for term in text.split("+"):
        factor, times, name = term.rpartition("*")
        name = name.strip()
        try:
            weight = float(factor) if times else 1.0
        except ValueError:
            weight = math.nan
        if math.isnan(weight) or not name or name in weights:
            raise ValueError(
                f"{text!r} is no sum of criteria, see {term.strip()!r}: write names, each once and "
                "perhaps with a factor in front, as in 'lrp + 0.5*weight'"
            )
        weights[name] = weight
    return weights


def _shown(name: str, weight: float) -> str:
    return name if weight == 1 else f"{weight:g}*{name}"


def _with_prefix(sums: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in sums.items() if k.startswith(prefix)}


def _unit_interval(ranks: Tensor) -> Tensor:
    return ranks / max(len(ranks) - 1, 1)
