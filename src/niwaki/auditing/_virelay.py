"""Heatmaps of a whole data set as a project of ViRelAy (Anders et al. 2021), batch by batch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from niwaki import models
from niwaki.arrays import Array
from niwaki.attribution import ClassChoice, check_choice, told_apart
from niwaki.auditing._explaining import (
    batch_names,
    class_names_of,
    explaining,
    preprocessing_of,
    read_batch,
)
from niwaki.auditing._material import Material
from niwaki.auditing._spray import Strategies
from niwaki.contexts import undisturbed
from niwaki.errors import DataError
from niwaki.files import write_atomically, write_json, write_text
from niwaki.processes import decided
from niwaki.ranges import BATCH, checked
from niwaki.runs import (
    Folder,
    Run,
    Workplace,
    described,
    digest,
    discard,
    each_once,
    identified,
    open_run,
)
from niwaki.schema import Anything, MapOf, parse_json
from niwaki.stages import stage

_ATTRIBUTION, _DATA, _UNFINISHED = "attribution.h5", "data.h5", "unfinished"
_COLUMNS = {
    _DATA: ("data", "label"),
    _ATTRIBUTION: ("attribution", "prediction", "label", "index"),
}


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
        with _opened(self.folder / _ATTRIBUTION) as file:
            told = file.attrs.get("niwaki", "")
            found: dict[str, Any] = parse_json(told, _ABOUT, f"{self.folder} is no collection")
        return found

    def __len__(self) -> int:
        with _opened(self.folder / _ATTRIBUTION) as file:
            return len(file["label"])

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Read a part of ``attribution``, ``prediction``, ``label``, ``index`` or ``data``."""
        with _opened(self.folder / (_DATA if name == "data" else _ATTRIBUTION)) as file:
            if name not in file:
                raise DataError(f"{self.folder} has no {name!r}; it has {sorted(file)}")
            part: Array = file[name][start:stop]
        return part

    def __repr__(self) -> str:
        return f"Collection({len(self)} heatmaps of {self.about['method']} in {self.folder})"


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """Open a file of a collection; its checksums are looked at as it is read."""
    try:
        with h5py.File(path) as file:
            yield file
    except DataError:
        raise
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise DataError(f"{path} is missing or damaged: {error}") from error


@undisturbed
@stage("collecting heatmaps")
@checked(batch_size=BATCH)
def collect(
    model: nn.Module,
    data: Dataset[Any],
    folder: str | Path,
    *,
    method: str = "lrp.epsilon_plus",
    target: ClassChoice = "predicted",
    batch_size: int = 32,
    overwrite: bool = False,
    run: Folder = None,
    **options: Any,
) -> Collection:
    """Explain every image of a data set and write the heatmaps as they come.

    An interrupted run resumes where it stopped when it is started again with the same network, data
    and method. The files get their names when all images are done.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode, returning shape (N, classes). Never changed.
    data : Dataset
        A data set of pairs (input, label), in a fixed order. How inputs become pixels is an
        attribute of it or of the `niwaki.data.Described` around it, and so are the names of
        classes.
    folder : str or Path
        Where the files go.
    method : str
        One of `niwaki.attribution.names`.
    target : {"predicted", "true"} or int
        The class that is explained.
    batch_size : int
        Images in a batch.
    overwrite : bool
        Replace a finished collection.
    run : str or Path, optional
        Where finished batches are kept until all are; default: ``unfinished`` in `folder`.
    **options
        Options of the method.

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
    check_choice(target)
    known = preprocessing_of(data)
    unfinished = home / _UNFINISHED if run is None else run
    if not overwrite:
        decided(lambda: _check_new(home, run))
    about = {
        "method": method,
        "options": described(options),
        "target": target,
        "fingerprint": models.fingerprint(model),
        "samples": len(data),  # type: ignore[arg-type]
    }

    def identity() -> dict[str, Any]:
        return {
            "model": identified(model),
            "data": digest(data, ordered=True),
            "preprocessing": repr(known),
            "class_names": class_names_of(data, 0),
            "batch_size": batch_size,
            "method": told_apart(method),
            "options": about["options"],
            "target": target,
        }

    _, explain = explaining(model, data, method, target, options)

    place, names = models.home(model), batch_names(data, batch_size)

    def computed(number: int) -> dict[str, Tensor]:
        batch, truth = read_batch(data, number, batch_size, place)
        output, heat = explain(batch, truth)
        return {
            "attribution": heat,
            "prediction": output,
            "label": truth,
            "data": (known.denormalise(batch) * 255).round().to(torch.uint8),
        }

    with open_run(unfinished, identity) as kept:
        for _ in each_once(kept, names, computed, f"explaining by {method}"):
            pass

        def finish() -> None:
            _write(home, about, names, kept)
            with h5py.File(home / _ATTRIBUTION) as file:
                classes = class_names_of(data, file["prediction"].shape[1])
            _write_label_map(home, classes)
            write_project(home, method=method, target=str(target), model=type(model).__name__)
            kept.drop(*kept.parts)

        decided(finish)
    if not isinstance(unfinished, Workplace):
        decided(lambda: discard(unfinished))
    return Collection(home)


def _check_new(home: Path, run: Folder) -> None:
    if (home / _ATTRIBUTION).exists():
        if run is None:
            discard(home / _UNFINISHED)  # of a call that was killed when all was written
        raise DataError(f"{home} holds a collection already; choose another, or overwrite=True")


def _write(home: Path, about: dict[str, Any], parts: list[str], kept: Run) -> None:
    """Write both files, batch by batch; the heatmaps last, as they say that all is there."""
    (home / _ATTRIBUTION).unlink(missing_ok=True)
    for name, columns in _COLUMNS.items():

        def fill(path: Path, columns: Sequence[str] = columns) -> None:
            with h5py.File(path, "w", libver="latest") as file:
                file.attrs["niwaki"] = json.dumps(about)
                done = 0
                for part in parts:
                    done += _append(file, kept, part, columns, done, about["samples"])
                if "index" in columns:
                    file["index"] = range(about["samples"])

        write_atomically(home / name, fill)


def _append(
    file: h5py.File, kept: Run, name: str, columns: Sequence[str], done: int, total: int
) -> int:
    part = kept.read(name)
    if part is None:
        raise DataError(f"a batch was damaged while it was written to {file.filename}; run again")
    for column in columns:
        if column == "index":
            continue
        array = part.tensors[column].numpy()
        if column not in file:
            chunks = (min(len(array), 16), *array.shape[1:])
            shape = (total, *array.shape[1:])
            file.create_dataset(column, shape, array.dtype, chunks=chunks, fletcher32=True)
        file[column][done : done + len(array)] = array
    return len(part.tensors["label"])


def _write_label_map(folder: Path, names: Sequence[str]) -> None:
    """Write ``label-map.json``: index, key and name of each class."""
    rows = [
        {"index": index, "word_net_id": f"{index:08d}", "name": name}
        for index, name in enumerate(names)
    ]
    write_json(folder / "label-map.json", rows)


def write_project(
    folder: Path, *, method: str, target: str, model: str, name: str = "audit"
) -> None:
    """Write ``project.yaml``; it names ``analysis.h5`` if the folder has it."""
    strategy = "true_label" if target == "true" else "predicted_label"
    quoted = {key: json.dumps(value) for key, value in (("name", name), ("model", model))}
    lines = [
        "project:",
        f"  name: {quoted['name']}",
        f"  model: {quoted['model']}",
        "  label_map: label-map.json",
        "  dataset:",
        f"    name: {quoted['name']}",
        "    type: hdf5",
        "    path: data.h5",
        "  attributions:",
        f"    attribution_method: {json.dumps(method)}",
        f"    attribution_strategy: {strategy}",
        "    sources:",
        "      - attribution.h5",
    ]
    if (folder / "analysis.h5").exists():
        lines += [
            "  analyses:",
            "    - analysis_method: spectral",
            "      sources:",
            "        - analysis.h5",
        ]
    write_text(folder / "project.yaml", "\n".join([*lines, ""]))


def write_analysis(folder: Path, material: Material, strategies: Sequence[Strategies]) -> None:
    """Write ``analysis.h5``: for each class its images, embeddings and clusterings.

    A group per class, named as in the label map, with ``index`` (n,), ``embedding/spectral-KIND``
    (n, k) with the attribute ``eigenvalue``, ``embedding/tsne-KIND`` (n, 2) and
    ``cluster/spectral-KIND`` (n,), for each kind of features.
    """

    def write(aside: Path) -> None:
        with h5py.File(aside, "w") as file:
            for found in strategies:
                group = file.require_group(f"{found.label:08d}")
                if "index" not in group:
                    group["index"] = material.indices[found.positions]
                kind = found.features
                group[f"embedding/spectral-{kind}"] = found.spectral
                group[f"embedding/spectral-{kind}"].attrs["eigenvalue"] = found.eigenvalues
                group[f"embedding/tsne-{kind}"] = found.plane
                group[f"embedding/tsne-{kind}"].attrs["embedding"] = f"spectral-{kind}"
                group[f"cluster/spectral-{kind}"] = found.assigned

    write_atomically(folder / "analysis.h5", write)
