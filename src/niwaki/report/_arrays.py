"""Heatmaps as arrays in files."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import h5py
import numpy as np
from torch import Tensor

from niwaki.files import write_atomically

__all__ = ["save_hdf5", "save_npy"]


def save_npy(folder: str | Path, heatmaps: Mapping[str, Tensor]) -> None:
    """Write one file METHOD.npy per method, each an array of the heatmaps' shape.

    Parameters
    ----------
    folder : str or Path
        Where they go.
    heatmaps : mapping of str to Tensor
        Name of the method to heatmaps of shape (N, C, H, W).
    """
    for name, values in heatmaps.items():
        array = values.detach().cpu().numpy()
        write_atomically(
            Path(folder) / f"{name.replace('/', '_')}.npy", partial(np.save, arr=array)
        )


def save_hdf5(
    path: str | Path,
    heatmaps: Mapping[str, Tensor],
    *,
    prediction: Tensor,
    label: Tensor,
) -> None:
    """Write an HDF5 file with a group per method, laid out as CoRelAy and ViRelAy read it.

    Each group has the datasets ``attribution`` (N, C, H, W), ``prediction`` (N, classes) and
    ``label`` (N,); the last two lie in the file once, with a link from each group.

    Parameters
    ----------
    path : str or Path
        Where the file goes.
    heatmaps : mapping of str to Tensor
        Name of the method to heatmaps of shape (N, C, H, W).
    prediction : Tensor
        What the network says, shape (N, classes).
    label : Tensor
        The true classes, shape (N,), or -1 where they are not known.

    Raises
    ------
    ValueError
        For parts of different lengths.
    """
    for name, values in {"label": label, **heatmaps}.items():
        if len(values) != len(prediction):
            raise ValueError(f"{name} has {len(values)} entries for {len(prediction)} predictions")

    def write(aside: Path) -> None:
        with h5py.File(aside, "w") as file:
            file["prediction"] = prediction.detach().cpu().numpy()
            file["label"] = label.detach().cpu().numpy()
            for name, values in heatmaps.items():
                group = file.create_group(name.replace("/", "_"))
                group["attribution"] = values.detach().cpu().numpy()
                group["prediction"] = file["prediction"]
                group["label"] = file["label"]

    write_atomically(path, write)
