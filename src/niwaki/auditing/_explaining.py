"""Which images are explained, and how: the sample, its description, and the batches kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from niwaki import models
from niwaki.arrays import Array
from niwaki.attribution import ClassChoice, Propagating, chosen_classes, create
from niwaki.data import Place, Preprocessing, batches, check_labels, known_of, labels_of
from niwaki.errors import DataError
from niwaki.propagation import per_class
from niwaki.runs import Folder, each_once, open_run

# From inputs and labels of a batch to the network's outputs and heatmaps.
Explain = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def sample(data: Any, limit: int | None, seed: int) -> list[int]:
    """Draw positions of a data set: as many of each class as possible, in the data's order."""
    total = len(data)
    if limit is None or total <= limit:
        return list(range(total))
    rng = np.random.default_rng(seed)
    labels = np.asarray(labels_of(data))
    turn = np.zeros(total, dtype=int)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        turn[members] = rng.permutation(len(members))
    order = np.lexsort((rng.random(total), turn))
    return sorted(order[:limit].tolist())


def preprocessing_of(data: Any) -> Preprocessing:
    """Return the preprocessing that turns a data set's pixels into inputs."""
    known: Preprocessing | None = known_of(data, "preprocessing")
    if known is None:
        raise DataError(
            "how pixels become inputs is not known of these data, and an audit needs both; say it "
            "by niwaki.data.Described(data, preprocessing=...)"
        )
    return known


def class_names_of(data: Any, outputs: int) -> tuple[str, ...]:
    """Return a name for each output: a data set's names as far as it has any, and numbers."""
    names = list(known_of(data, "classes") or ())
    return (*names, *(str(output) for output in range(len(names), outputs)))


def names_of(data: Any) -> tuple[str, ...]:
    """Return the file of each image of a data set below the folder of all, if there are files."""
    paths = known_of(data, "paths")
    if paths is None or not len(paths):
        return ()
    files = [Path(file) for file in paths]
    top = Path(os.path.commonpath([file.parent for file in files]))
    return tuple(file.relative_to(top).as_posix() for file in files)


def groups_of(data: Any, what: str = "groups") -> Array | None:
    """Return the group, or the centre, of each image of a data set, if that is known."""
    known = known_of(data, what)
    return None if known is None else np.asarray(known)


def explaining(
    model: nn.Module, data: Dataset[Any], method: str, target: ClassChoice, options: dict[str, Any]
) -> tuple[nn.Module, Explain]:
    """Return a network with an output for each class, and what explains a batch of a data set.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode.
    data : Dataset
        The images; the first two are run to see what the network returns.
    method : str
        One of `niwaki.attribution.names`.
    target : {"predicted", "true"}, int or None
        The class that is explained, see `niwaki.attribution.chosen_classes`.
    options : dict
        Options of the method.
    """
    few = Subset(data, range(min(2, len(data))))  # type: ignore[arg-type]
    first, _ = next(batches(few, 2, models.home(model)))
    judged = per_class(model, first)
    explainer = create(method, judged, **options)
    if isinstance(explainer, Propagating):
        # Among many images a few have an output of almost nothing, of which stabilizers take a
        # share that would be an error for a single heatmap.
        explainer.max_loss = None

    def explain(batch: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        said = models.class_outputs(judged, batch, "an audit")
        check_labels(truth, said.shape[1], data)
        chosen = chosen_classes(said, truth, target)
        return said, explainer.attribute(batch, chosen).detach()

    return judged, explain


def kept_batches(
    data: Dataset[Any],
    compute: Callable[[Tensor, Tensor], Mapping[str, Tensor]],
    identity: Callable[[], dict[str, Any]],
    folder: Folder,
    *,
    batch_size: int,
    place: Place = None,
    description: str | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Yield what is computed from each batch, with its labels; finished batches are read again.

    Parameters
    ----------
    data : Dataset
        A data set of pairs (input, label).
    compute : callable
        From inputs and labels to tensors by name.
    identity : callable
        Describes the run, so that no other run resumes with its batches.
    folder : str or Path, optional
        Keeps finished batches.
    batch_size, place, description
        As for `niwaki.data.batches`.
    """

    def computed(number: int) -> dict[str, Tensor]:
        batch, truth = read_batch(data, number, batch_size, place)
        return {**compute(batch, truth), "labels": truth}

    names = batch_names(data, batch_size)
    with open_run(folder, identity) as kept:
        yield from each_once(kept, names, computed, description)


def batch_names(data: Dataset[Any], batch_size: int) -> list[str]:
    """Name the batches of a data set, as parts of a run."""
    samples = len(data)  # type: ignore[arg-type]
    return [f"batch-{number:05}" for number in range(-(-samples // batch_size))]


def read_batch(
    data: Dataset[Any], number: int, batch_size: int, place: Place
) -> tuple[Tensor, Tensor]:
    """Read the inputs and labels of one batch of a data set."""
    samples = range(len(data))  # type: ignore[arg-type]
    some = samples[number * batch_size :][:batch_size]
    return next(batches(Subset(data, some), batch_size, place))
