"""Layer widths by a criterion; within layers, the units that a rebuilt network can do without."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from niwaki.accumulation import Totals
from niwaki.criteria._catalogue import make, register_made
from niwaki.criteria._criterion import ByLayer, Criterion
from niwaki.data import Data
from niwaki.propagation import Layer
from niwaki.ranges import SEED, checked

__all__ = ["ENDING", "RebuiltError"]

#: After the name of a criterion, such as ``"taylor.rebuilt"``.
ENDING = ".rebuilt"


class RebuiltError(Criterion):
    """Layer widths by another criterion; within layers, the units that the others can stand in for.

    Another criterion ranks all units and so decides how many of them each layer loses; its scores
    are those that `niwaki.score` returns. `niwaki.prune` then asks which units these are: one after
    another, that whose removal leaves the smallest error in the layers that read it once these
    have been fitted to the remaining ones. This is OSSCAR's greedy elimination, by second
    derivatives of the squared error. What counts is not what a unit contributes but what no other
    can replace, so this choice belongs to ``repair="rebuild"``.

    Parameters
    ----------
    base : str or Criterion
        One of `niwaki.criteria.names`, or one that is made already. As text,
        ``"taylor.rebuilt"`` is the same as ``RebuiltError("taylor")``, and options are those of
        the base: ``"lrp.rebuilt:reduce=signed"``.

    References
    ----------
    Meng et al. (2024), "OSSCAR: one-shot structured pruning in vision and language models with
    combinatorial optimization".

    Examples
    --------
    >>> niwaki.prune(model, references, niwaki.criteria.RebuiltError("taylor"), keep=0.5)
    """

    def __init__(self, base: str | Criterion = "lrp") -> None:
        self.base = make(base) if isinstance(base, str) else base
        if isinstance(self.base, RebuiltError):
            raise ValueError(f"{self.base.name!r} chooses within layers already")
        super().__init__(normalise=self.base.normalise)
        self.name = f"{self.base.name}{ENDING}"

    def prepared(self, model: nn.Module, data: Data, batch_size: int) -> Criterion:
        """See `Criterion.prepared`."""
        ready = RebuiltError(self.base.prepared(model, data, batch_size))
        ready.name = self.name
        return ready

    @property
    def draws(self) -> bool:
        """See `Criterion.draws`."""
        return self.base.draws

    @checked(seed=SEED)
    def seeded(self, seed: int) -> Criterion:
        """See `Criterion.seeded`."""
        twin = copy.copy(self)
        twin.base = self.base.seeded(seed)
        return twin

    def network(self, model: nn.Module, inputs: Tensor) -> nn.Module:
        """See `Criterion.network`."""
        return self.base.network(model, inputs) if self.base.needs_data else model

    def batch(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
        """See `Criterion.batch`."""
        return self.base.batch(model, inputs, labels) if self.base.needs_data else {}

    def scores(self, totals: Totals, layers: Sequence[Layer], model: nn.Module) -> ByLayer:
        """Return the scores of the base."""
        return self.base.scores(totals, layers, model)

    def check_comparable(self, scores: Mapping[str, Tensor]) -> None:
        """See `Criterion.check_comparable`."""
        self.base.check_comparable(scores)

    def fallbacks(self) -> list[Criterion]:
        """List those of the base, each with the same choice within layers."""
        return [RebuiltError(other) for other in self.base.fallbacks()]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base!r})"


register_made(
    f"lrp{ENDING}",
    lambda **options: RebuiltError(make("lrp", **options)),
    "Layer widths by `lrp`; within layers, the units that rebuilding best makes up for (OSSCAR).",
)
