"""Pruned networks: the result of pruning, saved without a pickle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_model
from torch import Tensor, nn

from niwaki import models
from niwaki.display import html_table
from niwaki.files import new_folder, write_json
from niwaki.pruning._plan import Plan
from niwaki.pruning._saved import FORMAT, probe
from niwaki.pruning._trajectory import Trajectory

__all__ = ["Pruned"]


@dataclass(frozen=True)
class Pruned:
    """A pruned network and how it came about.

    Attributes
    ----------
    model : nn.Module
        The smaller network, in evaluation mode.
    plan : Plan
        What was removed.
    trajectory : Trajectory
        One row per step.
    input_shape : tuple of int
        Shape of one sample.
    architecture : dict of str to list of int
        Shapes of the parameters before pruning, to recognise a fresh copy by.
    settings : dict
        Criterion, share kept and the like, for the record.
    observed : dict of int to dict of str to Tensor
        What `Run.observe` has seen, by step; an undone step is left out.
    """

    model: nn.Module
    plan: Plan
    trajectory: Trajectory
    input_shape: tuple[int, ...]
    architecture: dict[str, list[int]] = field(repr=False)
    settings: dict[str, Any] = field(default_factory=dict)
    observed: dict[int, dict[str, Tensor]] = field(default_factory=dict, repr=False)

    def save(
        self, folder: str | Path, *, about: Mapping[str, Any] | None = None, overwrite: bool = False
    ) -> None:
        """Write weights (safetensors), plan and trajectory (JSON) into a new folder.

        Parameters
        ----------
        folder : str or Path
            Appears complete or not at all.
        about : mapping, optional
            More to remember, such as the architecture's name (``{"model": "torchvision:vgg16"}``),
            by which it is rebuilt. Networks of torchvision, timm and the zoo, and classes that
            take no arguments, are recognised without.
        overwrite : bool
            Whether a folder that exists is replaced.

        Raises
        ------
        NiwakiError
            If the folder exists and may not be replaced.
        """
        with new_folder(folder, overwrite=overwrite) as path:
            save_model(self.model, str(path / "weights.safetensors"))
            write_json(path / "plan.json", self.plan.to_json())
            write_json(path / "trajectory.json", self.trajectory.to_json())
            write_json(
                path / "niwaki.json",
                {
                    "format": FORMAT,
                    "input_shape": list(self.input_shape),
                    "dtype": str(next(self.model.parameters()).dtype).removeprefix("torch."),
                    "architecture": self.architecture,
                    "settings": self.settings,
                    "outputs": probe(self.model, self.input_shape),
                    **self._about(about or {}),
                },
            )

    def _about(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """Add where the code lies that builds the architecture."""
        if "builder" in about or about.get("model", "") is None:
            return dict(about)
        random = about.get("random", False)
        origin = (
            models.Origin.of(about["model"], about.get("classes"), random=random)
            if "model" in about
            else models.recognise(self.model, self.architecture)
        )
        return {**about, **(origin.to_json() if origin else {})}

    def export(self, path: str | Path, *, format: models.Format = "onnx") -> None:
        """Write the network as ONNX or as a program of torch, see `niwaki.models.export`.

        Parameters
        ----------
        path : str or Path
            Path of the file.
        format : {"onnx", "program"}
            ONNX needs the extra ``onnx``.
        """
        models.export(self.model, path, self.input_shape, format=format)

    def __repr__(self) -> str:
        by = self.settings.get("criterion", "hand")
        rows = [f"Pruned({type(self.model).__name__} by {by}, {len(self.plan.steps)} steps:"]
        if not self.trajectory.steps:  # a folder may hold none
            return f"{rows[0]} not measured)"
        first, last = self.trajectory[0], self.trajectory.final
        for what, name in (("units", "units"), ("params", "parameters"), ("macs", "MACs")):
            before, now = getattr(first, what), getattr(last, what)
            rows.append(f"  {now:,} of {before:,} {name} ({now / before:.1%})")
        if last.accuracy is not None and first.accuracy is not None:
            now = last.accuracy if last.accuracy_tuned is None else last.accuracy_tuned
            rows.append(f"  accuracy {now:.2%}, before {first.accuracy:.2%}")
        return "\n".join(rows) + ")"

    def _repr_html_(self) -> str:
        return html_table(self.trajectory.rows(), repr(self).partition(":")[0] + ")")
