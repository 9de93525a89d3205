"""Heatmaps as arrays in files."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

import h5py
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from niwaki.files import write_atomically
from niwaki.ranges import NATURAL, checked

__all__ = ["HeatmapFiles", "save_hdf5", "save_npy"]


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
        The outputs of the network, shape (N, classes).
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


class HeatmapFiles:
    """Heatmaps that are written as they come, so that none of them stays in memory.

    Parameters
    ----------
    folder : Path
        Where the files go; METHOD.npy or heatmaps.hdf5, laid out as `save_npy` and `save_hdf5` do.
    format : {"npy", "hdf5"}
        Which.
    count : int
        Number of all images that will come.
    """

    @checked(count=NATURAL)
    def __init__(self, folder: Path, format: Literal["npy", "hdf5"], count: int) -> None:
        self._folder, self._count, self._done = folder, count, 0
        self._hdf5 = h5py.File(folder / "heatmaps.hdf5", "w") if format == "hdf5" else None
        self._open: dict[str, BinaryIO] = {}

    def __enter__(self) -> HeatmapFiles:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (*self._open.values(), *([self._hdf5] if self._hdf5 is not None else [])):
            file.close()

    def write(self, heatmaps: Mapping[str, Tensor], prediction: Tensor, label: Tensor) -> None:
        """Add a batch: by method shape (B, C, H, W), (B, classes), and (B,)."""
        arrays = {name: values.detach().cpu().numpy() for name, values in heatmaps.items()}
        if self._hdf5 is None:
            for name, array in arrays.items():
                self._append(name, array)
        else:
            self._put("prediction", prediction.detach().cpu().numpy())
            self._put("label", label.detach().cpu().numpy())
            for name, array in arrays.items():
                self._put(f"{name}/attribution", array)
                for shared in ("prediction", "label"):
                    if shared not in self._hdf5[name]:
                        self._hdf5[name][shared] = self._hdf5[shared]
        self._done += len(label)

    def _append(self, name: str, array: NDArray[Any]) -> None:
        if name not in self._open:
            self._open[name] = (self._folder / f"{name}.npy").open("wb")
            header = np.lib.format.header_data_from_array_1_0(array)
            header["shape"] = (self._count, *array.shape[1:])
            header["fortran_order"] = False
            np.lib.format.write_array_header_1_0(self._open[name], header)
        self._open[name].write(np.ascontiguousarray(array).tobytes())

    def _put(self, name: str, array: NDArray[Any]) -> None:
        assert self._hdf5 is not None
        if name not in self._hdf5:
            self._hdf5.create_dataset(name, (self._count, *array.shape[1:]), array.dtype)
        self._hdf5[name][self._done : self._done + len(array)] = array
