"""How far a greedy search has come, saved after each step and resumed."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from niwaki import pruning
from niwaki.errors import NiwakiError
from niwaki.pruning import Group, Plan, Pruned, Removal, Step, Trajectory

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

    def __init__(self, model: nn.Module, about: Mapping[str, Any], example: Tensor) -> None:
        self.model = copy.deepcopy(model)
        self.rows: list[Step] = []
        self.removed: list[Removed] = []
        self._about = about
        self._shapes = {name: list(p.shape) for name, p in model.named_parameters()}
        self._input_shape = tuple(example.shape[1:])

    @classmethod
    def start_or_resume(
        cls, model: nn.Module, folder: str | Path | None, about: dict[str, Any], example: Tensor
    ) -> Descent:
        """Begin with a network, or go on with what a folder holds.

        Raises
        ------
        NiwakiError
            If the folder holds something else.
        """
        descent = cls(model, about, example)
        path = None if folder is None else Path(folder)
        if path is None or not path.exists() or (path.is_dir() and not any(path.iterdir())):
            return descent
        try:
            saved = json.loads((path / "niwaki.json").read_text(encoding="utf-8"))
            rows = json.loads((path / "trajectory.json").read_text(encoding="utf-8"))
            theirs, removals = saved["car"], saved["settings"]["removals"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise NiwakiError(
                f"{path} holds something else than a greedy search ({error}); choose another folder"
            ) from error
        if theirs != about:
            different = next(k for k in about if theirs.get(k) != about[k])
            raise NiwakiError(
                f"{path} holds a search with other {different}: {theirs.get(different)!r}, now "
                f"{about[different]!r}; choose another folder"
            )
        descent.model = pruning.load(path, model)
        descent.rows = list(Trajectory.from_json(rows))
        descent.removed = [
            Removed(**{**told, "channels": tuple(told["channels"])}) for told in removals
        ]
        return descent

    def original(self, group: Group, unit: int) -> int:
        """Return the number that a unit of the network as it is had in the network as it came."""
        for gone in sorted(r.unit for r in self.removed if r.layer == group.root):
            unit += gone <= unit
        return unit

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
            Plan(tuple((Removal(r.layer, r.channels),) for r in self.removed)),
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

    def save(self, folder: str | Path | None) -> None:
        """Write all down, if there is a folder."""
        if folder is not None:
            self.pruned().save(folder, about={"car": dict(self._about)}, overwrite=True)
