"""Networks with single weights at zero: the result of unstructured pruning, saved and read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from niwaki.errors import ModelError
from niwaki.files import new_folder, write_json
from niwaki.pruning._plan import Plan
from niwaki.pruning._pruned import Pruned
from niwaki.pruning._trajectory import Trajectory
from niwaki.pruning.weights._masks import masked

__all__ = ["PrunedWeights", "WeightStep", "WeightTrajectory", "load_masks"]

_MASKS = "masks.safetensors"


@dataclass(frozen=True)
class WeightStep:
    """The network after one step.

    Attributes
    ----------
    step : int
        0 is the unpruned network.
    weights : dict of str to int
        Number of weights of each layer.
    left : dict of str to int
        How many of them are left.
    accuracy : float or None
        On the evaluation data, from 0 to 1; None where there are none.
    seconds : float
        How long the step took.
    """

    step: int
    weights: dict[str, int] = field(repr=False)
    left: dict[str, int] = field(repr=False)
    accuracy: float | None
    seconds: float

    @property
    def sparsity(self) -> float:
        """Share of the weights that were removed, over all layers."""
        return 1 - sum(self.left.values()) / sum(self.weights.values())

    def sparsities(self) -> dict[str, float]:
        """Share of the weights that were removed, by layer."""
        return {layer: 1 - self.left[layer] / count for layer, count in self.weights.items()}


@dataclass(frozen=True)
class WeightTrajectory(Sequence[WeightStep]):
    """One row per step; prints as a table, the last step's layers below."""

    steps: tuple[WeightStep, ...] = ()

    def __getitem__(self, index: Any) -> Any:
        return self.steps[index]

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[WeightStep]:
        return iter(self.steps)

    def to_json(self) -> list[dict[str, Any]]:
        """Return plain lists and dicts."""
        return [asdict(step) for step in self.steps]

    @classmethod
    def from_json(cls, steps: Sequence[Mapping[str, Any]]) -> WeightTrajectory:
        """Rebuild from `to_json`."""
        return cls(tuple(WeightStep(**step) for step in steps))

    def __str__(self) -> str:
        rows = [f"{'step':>4} {'weights':>12} {'sparsity':>9} {'accuracy':>9}"]
        rows += [
            f"{s.step:>4} {sum(s.left.values()):>12,} {s.sparsity:>9.1%} "
            + (f"{s.accuracy:>9.2%}" if s.accuracy is not None else "")
            for s in self.steps
        ]
        if self.steps:
            last = self.steps[-1]
            rows += [f"  {layer:32} {gone:>7.1%} gone" for layer, gone in last.sparsities().items()]
        return "\n".join(rows)


@dataclass(frozen=True)
class PrunedWeights:
    """A network with weights at zero, and how it came about.

    Attributes
    ----------
    model : nn.Module
        A network with the shapes it came with, in evaluation mode and without masks.
    gone : dict of str to Tensor
        For each layer, in its weight's shape, the step in which each weight went (uint8); 0 for
        those that are left. The masks of every step follow from it.
    trajectory : WeightTrajectory
        One row per step, with the sparsity of each layer.
    input_shape : tuple of int
        Shape of one sample.
    architecture : dict of str to list of int
        Shapes of the parameters.
    settings : dict
        Criterion, share kept and the like, for the record.
    plan : Plan
        Units that went before: what makes of the architecture the shapes that it came with.
    """

    model: nn.Module
    gone: dict[str, Tensor] = field(repr=False)
    trajectory: WeightTrajectory = field(repr=False)
    input_shape: tuple[int, ...]
    architecture: dict[str, list[int]] = field(repr=False)
    settings: dict[str, Any] = field(default_factory=dict)
    plan: Plan = field(default_factory=Plan, repr=False)

    @property
    def sparsity(self) -> float:
        """Share of the weights that were removed."""
        return float(self.trajectory[-1].sparsity)

    def masks(self, step: int | None = None) -> dict[str, Tensor]:
        """Return the masks after a step, by default the last: True where a weight is left."""
        if step is None:
            return {layer: at == 0 for layer, at in self.gone.items()}
        if not 0 <= step < len(self.trajectory):
            raise ValueError(f"step = {step}: there are the steps 0 to {len(self.trajectory) - 1}")
        return {layer: (at == 0) | (at > step) for layer, at in self.gone.items()}

    def masked(self) -> nn.Module:
        """Return a copy under masks of `torch.nn.utils.prune`, for fine-tuning.

        Removed weights stay so while it is trained; `torch.nn.utils.prune.remove` makes the
        masks permanent afterwards.
        """
        return masked(self.model, self.masks())

    def save(
        self, folder: str | Path, *, about: Mapping[str, Any] | None = None, overwrite: bool = False
    ) -> None:
        """Write a folder that `niwaki.load` reads, with the masks of all steps beside the weights.

        Parameters
        ----------
        folder : str or Path
            Appears complete or not at all.
        about : mapping, optional
            See `Pruned.save`.
        overwrite : bool
            Whether a folder that exists is replaced.

        Raises
        ------
        NiwakiError
            If the folder exists and may not be replaced.
        """
        plain = Pruned(
            self.model, self.plan, Trajectory(), self.input_shape, self.architecture, self.settings
        )
        with new_folder(folder, overwrite=overwrite) as path:
            plain.save(path, about=about)
            write_json(path / "trajectory.json", self.trajectory.to_json())
            save_file({name: at.contiguous() for name, at in self.gone.items()}, path / _MASKS)


def load_masks(folder: str | Path, step: int | None = None) -> dict[str, Tensor]:
    """Read the masks that `PrunedWeights.save` has written.

    Parameters
    ----------
    folder : str or Path
        Folder of the saved network.
    step : int, optional
        The masks after this step; default: the last.

    Returns
    -------
    dict of str to Tensor
        Layer name to a mask in the weight's shape, True where a weight is left.

    Raises
    ------
    ModelError
        If the folder holds no masks.
    """
    try:
        gone = load_file(Path(folder) / _MASKS)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder} is no folder of a network with masks: {error}") from error
    return {
        name: (at == 0) if step is None else (at == 0) | (at > step) for name, at in gone.items()
    }
