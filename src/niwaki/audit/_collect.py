"""Heatmaps of a whole data set, streamed to HDF5 in the layout that ViRelAy reads, resumable."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from niwaki import models
from niwaki.attribution import create
from niwaki.audit._material import example, tolerant
from niwaki.audit._project import write_label_map, write_project
from niwaki.data import Preprocessing, batches, check_labels
from niwaki.errors import DataError
from niwaki.propagation import per_class
from niwaki.schema import Anything, MapOf, parse_json

__all__ = ["Collection", "collect"]

Array = NDArray[Any]
_FILES = ("attribution.h5", "data.h5")


_ABOUT = MapOf(Anything())


@dataclass(frozen=True)
class Collection:
    """Heatmaps of a data set in a folder.

    Attributes
    ----------
    folder : Path
        Holds ``attribution.h5`` (``attribution`` (N, C, H, W), ``prediction`` (N, classes),
        ``label`` (N,), ``index`` (N,)), ``data.h5`` (``data`` (N, C, H, W) uint8, ``label``),
        ``label-map.json`` and ``project.yaml``, which ViRelAy opens.
    """

    folder: Path

    @property
    def about(self) -> dict[str, Any]:
        """Which method, target, network and data."""
        with h5py.File(self.folder / "attribution.h5") as file:
            told = file.attrs.get("niwaki", "")
            found: dict[str, Any] = parse_json(told, _ABOUT, f"{self.folder} is no collection")
        return found

    def __len__(self) -> int:
        with h5py.File(self.folder / "attribution.h5") as file:
            return len(file["label"])

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Read a part of ``attribution``, ``prediction``, ``label``, ``index`` or ``data``."""
        with h5py.File(self.folder / ("data.h5" if name == "data" else "attribution.h5")) as file:
            if name not in file:
                raise DataError(f"{self.folder} has no {name!r}; it has {sorted(file)}")
            part: Array = file[name][start:stop]
        return part

    def __repr__(self) -> str:
        return f"Collection({len(self)} heatmaps of {self.about['method']} in {self.folder})"


def collect(
    model: nn.Module,
    data: Dataset[Any],
    folder: str | Path,
    *,
    method: str = "lrp.epsilon_plus",
    target: str | int = "predicted",
    batch_size: int = 32,
    preprocessing: Preprocessing | None = None,
    class_names: Sequence[str] | None = None,
    overwrite: bool = False,
    **options: Any,
) -> Collection:
    """Explain every image of a data set and write the heatmaps as they come.

    A run that was cut off goes on where it stopped when it is started again with the same network,
    data and method; the files get their names when all images are done.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode, returning shape (N, classes). Never changed.
    data : Dataset
        Of pairs (input, label), in a fixed order.
    folder : str or Path
        Where the files go.
    method : str
        One of `niwaki.attribution.names`.
    target : {"predicted", "true"} or int
        The class that is explained.
    batch_size : int
        Images in a batch.
    preprocessing : Preprocessing, optional
        Turns inputs back into pixels; default: the data set's own.
    class_names : sequence of str, optional
        Default: the data set's own.
    overwrite : bool
        Replace a finished collection.
    **options
        Of the method.

    Raises
    ------
    DataError
        A finished collection that may not be replaced, an unfinished one of something else, data
        without labels or pixels.
    ModelError
        A network that is not ready.
    """
    models.check(model)
    home = Path(folder)
    if target not in ("predicted", "true") and not isinstance(target, int):
        raise ValueError(f"target {target!r} is neither 'predicted', 'true' nor a class")
    known = preprocessing or getattr(data, "preprocessing", None)
    if known is None:
        raise DataError("how inputs become pixels is not known of these data; pass preprocessing=")
    if (home / _FILES[0]).exists() and not overwrite:
        raise DataError(f"{home} holds a collection already; choose another, or overwrite=True")
    total = len(data)  # type: ignore[arg-type]
    about = {
        "method": method,
        "options": {name: repr(value) for name, value in options.items()},
        "target": target,
        "fingerprint": models.fingerprint(model),
        "samples": total,
    }
    home.mkdir(parents=True, exist_ok=True)
    parts = [home / f"{name}.part" for name in _FILES]
    done = _resume(parts, about)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    model = per_class(model, example(data, range(total), device))
    explainer = tolerant(create(method, model, **options))
    rest = Subset(data, range(done, total))
    if done < total:
        for batch, truth in batches(rest, batch_size, device, f"explaining by {method}"):
            with torch.no_grad():
                said = model(batch)
            check_labels(truth, said.shape[1], data)
            chosen: Any = {"predicted": said.argmax(1), "true": truth}.get(str(target), target)
            heat = explainer.attribute(batch, chosen).detach()
            pixels = (known.denormalise(batch) * 255).round().to(torch.uint8)
            _append(parts, about, total, done, heat, said, truth, pixels)
            done += len(batch)
    for part, name in zip(parts, _FILES, strict=True):
        os.replace(part, home / name)
    names = list(class_names or getattr(data, "classes", []))
    with h5py.File(home / _FILES[0]) as file:
        names += [str(output) for output in range(len(names), file["prediction"].shape[1])]
    write_label_map(home, names)
    write_project(home, method=method, target=str(target), model=type(model).__name__)
    return Collection(home)


def _resume(parts: list[Path], about: dict[str, Any]) -> int:
    """Return how many images an unfinished run has written: those that both files have."""
    if not all(part.exists() for part in parts):
        for part in parts:
            part.unlink(missing_ok=True)
        return 0
    try:
        with h5py.File(parts[0]) as one, h5py.File(parts[1]) as two:
            same = parse_json(one.attrs["niwaki"], _ABOUT, "it is damaged") == about
            done = min(int(one.attrs["done"]), int(two.attrs["done"]))
    except (OSError, KeyError, ValueError):  # cut off while it was written: nothing to go on with
        for part in parts:
            part.unlink()
        return 0
    if not same:
        raise DataError(
            f"{parts[0]} is an unfinished collection of another network, data set or method; "
            "finish that one, or delete it"
        )
    return done


def _append(
    parts: list[Path],
    about: dict[str, Any],
    total: int,
    done: int,
    heat: Tensor,
    said: Tensor,
    truth: Tensor,
    pixels: Tensor,
) -> None:
    """Write a batch; the count of images is written last, when all else is on disk."""
    index = torch.arange(done, done + len(truth))
    columns = (
        {"attribution": heat, "prediction": said, "label": truth, "index": index},
        {"data": pixels, "label": truth},
    )
    for part, values in zip(parts, columns, strict=True):
        with h5py.File(part, "a") as file:
            for name, value in values.items():
                array = value.cpu().numpy()
                if name not in file:
                    chunk = (min(len(array), 16), *array.shape[1:])
                    file.create_dataset(name, (total, *array.shape[1:]), array.dtype, chunks=chunk)
                file[name][done : done + len(array)] = array
            file.attrs["niwaki"] = json.dumps(about)
            file.flush()
            file.attrs["done"] = done + len(truth)
