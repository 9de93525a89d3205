"""Pruned networks: the result of pruning, saved without a pickle and replayed."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import nn

from niwaki import models
from niwaki.errors import ModelError, WeightsError
from niwaki.files import new_folder, write_json
from niwaki.pruning._plan import Plan
from niwaki.pruning._surgery import replay
from niwaki.pruning._trajectory import Trajectory

__all__ = ["Pruned", "load", "shapes"]

FORMAT = 1
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
}


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
        Of one sample.
    architecture : dict of str to list of int
        Shapes of the parameters before pruning, to recognise a fresh copy by.
    settings : dict
        Criterion, share kept and the like, for the record.
    """

    model: nn.Module
    plan: Plan
    trajectory: Trajectory
    input_shape: tuple[int, ...]
    architecture: dict[str, list[int]] = field(repr=False)
    settings: dict[str, Any] = field(default_factory=dict)

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
            by which the command line rebuilds it.
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
                    **(about or {}),
                },
            )

    def export(self, path: str | Path, *, format: models.Format = "onnx") -> None:
        """Write the network as ONNX or as a program of torch, see `niwaki.models.export`.

        Parameters
        ----------
        path : str or Path
            Where the file shall be.
        format : {"onnx", "program"}
            ONNX needs the extra ``onnx``.
        """
        models.export(self.model, path, self.input_shape, format=format)


def load(folder: str | Path, model: nn.Module) -> nn.Module:
    """Rebuild a saved network from a fresh copy of the architecture.

    Parameters
    ----------
    folder : str or Path
        That `Pruned.save` has written.
    model : nn.Module
        The unpruned architecture, with any weights; it stays as it is.

    Returns
    -------
    nn.Module
        The pruned network in evaluation mode; its outputs are bit for bit those of the saved one.

    Raises
    ------
    ModelError
        If the folder is not one of ours, or the architecture is another.
    WeightsError
        If the weights cannot be read or do not fit.
    """
    folder = Path(folder)
    about, steps = _read(folder, "niwaki.json"), _read(folder, "plan.json")
    found = about.get("format") if isinstance(about, dict) else None
    if found != FORMAT:
        raise ModelError(f"{folder} has the format {found!r}; this version reads {FORMAT}")
    try:
        architecture, shape = dict(about["architecture"]), tuple(map(int, about["input_shape"]))
        dtype, plan = _DTYPES[about["dtype"]], Plan.from_json(steps)
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(folder, error) from error
    _check_architecture(folder, architecture, shapes(model))
    fresh = copy.deepcopy(model).eval().to(dtype)
    example = torch.zeros(2, *shape, dtype=dtype, device=next(fresh.parameters()).device)
    try:
        replay(fresh, example, plan)
    except (AttributeError, LookupError, RuntimeError, AssertionError) as error:
        raise _damaged(folder, error) from error
    models.load_weights(fresh, folder / "weights.safetensors")
    return fresh


def shapes(model: nn.Module) -> dict[str, list[int]]:
    """Return the shape of each parameter, by name."""
    return {name: list(p.shape) for name, p in model.named_parameters()}


def _check_architecture(
    folder: Path, saved: Mapping[str, list[int]], given: Mapping[str, list[int]]
) -> None:
    different = [n for n in {**saved, **given} if saved.get(n) != given.get(n)]
    if different:
        lines = [
            f"  {n}: saved {saved.get(n, 'nothing')}, given {given.get(n, 'nothing')}"
            for n in different[:5]
        ]
        raise WeightsError(
            f"{folder} was pruned from another architecture ({len(different)} parameters differ):\n"
            + "\n".join(lines)
        )


def _damaged(folder: Path, error: Exception) -> ModelError:
    return ModelError(
        f"{folder} is damaged: its niwaki.json or plan.json does not fit the network "
        f"({type(error).__name__}: {error})"
    )


def _read(folder: Path, name: str) -> Any:
    try:
        return json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} is no folder of a pruned network: {error}") from error
