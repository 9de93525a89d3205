"""How far a greedy search has come, saved after each step and resumed."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from torch import Tensor, nn

from niwaki import pruning
from niwaki.pruning import Plan, Pruned, Removal, Step, Trajectory
from niwaki.runs import Run
from niwaki.schema import Anything, ListOf, Record, check, rebuild

__all__ = ["Descent", "Removed"]


@dataclass(frozen=True)
class Removed:
    """A unit that goes, and how it was found.

    Attributes
    ----------
    layer : str
        That numbers it.
    channels : tuple of int
        The layer's channels that it is made of, in the network that the step before has left.
    unit : int
        Its number in the layer of the network as it came.
    taken : dict of str to tuple of int
        The channels that every layer loses with it, in the network that the step before has left.
    accuracy : float
        Without it, on the images that were looked at.
    near_ties : int
        Of these images, those that rounding may decide.
    evaluated, pairs : int
        Pairs of a unit and an image that went through the network, of how many.
    certainty : float
        Probability that it is the right one; 1 for an exact search.
    """

    layer: str
    channels: tuple[int, ...]
    unit: int
    taken: dict[str, tuple[int, ...]]
    accuracy: float
    near_ties: int
    evaluated: int
    pairs: int
    certainty: float


class Descent:
    """The network, its plan and its trajectory as they stand.

    Attributes
    ----------
    model : nn.Module
        Ours, smaller after each step.
    rows : list of Step
        The trajectory.
    removed : list of Removed
        What is gone, in order.
    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        self.model = copy.deepcopy(model)
        self.rows: list[Step] = []
        self.removed: list[Removed] = []
        self._shapes = {name: list(p.shape) for name, p in model.named_parameters()}
        self._input_shape = tuple(example.shape[1:])

    @classmethod
    def start_or_resume(cls, model: nn.Module, kept: Run, example: Tensor) -> Descent:
        """Begin with a network, or go on with what a run has kept of it."""
        descent = cls(model, example)
        part = kept.read(_LAST)
        if part is not None:
            check(part.about, _FORM, "the search")
            gone = [rebuild(Removed, told) for told in part.about["removed"]]
            pruning.restore(descent.model, example, plan_of(gone), part.tensors)
            descent.rows = list(Trajectory.from_json(part.about["trajectory"]))
            descent.removed = gone
        return descent

    def original(self, layer: str, channel: int) -> int:
        """Return the number that a channel had in the network as it came."""
        for removed in reversed(self.removed):
            for gone in sorted(removed.taken.get(layer, ())):
                channel += gone <= channel
        return channel

    def add(self, removed: Removed) -> None:
        """Note a removal."""
        self.removed.append(removed)

    def pruned(self) -> Pruned:
        """Return the network as it stands and how it came about."""
        evaluated, pairs = (
            sum(getattr(r, n) for r in self.removed) for n in ("evaluated", "pairs")
        )
        return Pruned(
            self.model,
            plan_of(self.removed),
            Trajectory(tuple(self.rows)),
            self._input_shape,
            self._shapes,
            {
                "criterion": "car",
                "greedy": True,
                "evaluated": evaluated / pairs if pairs else 0.0,
                "removals": [asdict(r) for r in self.removed],
            },
        )

    def keep(self, kept: Run) -> None:
        """Let a run keep how far it has come."""
        kept.write(
            _LAST,
            pruning.tensors_of(self.model),
            trajectory=Trajectory(tuple(self.rows)).to_json(),
            removed=[asdict(removed) for removed in self.removed],
        )


def plan_of(removed: Sequence[Removed]) -> Plan:
    """Return what is gone, a step for each unit."""
    return Plan(tuple((Removal(r.layer, r.channels),) for r in removed))


_LAST = "last"
_FORM = Record({"trajectory": ListOf(Anything()), "removed": ListOf(Anything())})
