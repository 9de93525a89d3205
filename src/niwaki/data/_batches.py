"""The one loop over data, which checks what it hands on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from itertools import islice
from math import prod
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Sampler,
    SequentialSampler,
    TensorDataset,
)

from niwaki import processes, stages
from niwaki.data._classes import named_data, number_classes
from niwaki.data._images import Images
from niwaki.errors import DataError
from niwaki.progress import track
from niwaki.ranges import BATCH, NATURAL, checked


def as_tensor(values: Any, what: str = "the inputs") -> Tensor:
    """Return a tensor for a tensor, a NumPy array, or a list of equal tensors, arrays or numbers.

    Parameters
    ----------
    values
        A list is stacked: its items become the samples.
    what
        Names them in messages.

    Raises
    ------
    DataError
        For anything else, and items of different shapes.
    """
    if isinstance(values, Tensor):
        return values
    if isinstance(values, np.ndarray):
        return _of_array(values, what)
    if not isinstance(values, list):
        raise DataError(f"{what} are {_kind(values)}; {_way_out(values)}")
    if all(isinstance(value, (int, float)) for value in values):
        return torch.tensor(values)
    for value in values:
        if not isinstance(value, (Tensor, np.ndarray, np.generic)):
            raise DataError(f"{what} are a list with {_kind(value)}; {_way_out(value)}")
    parts = [torch.as_tensor(value) for value in values]
    shapes = {tuple(part.shape) for part in parts}
    if len(shapes) > 1:
        raise DataError(
            f"{what} are a list of tensors of different shapes, such as "
            f"{' and '.join(map(str, sorted(shapes)[:2]))}: bring them to one size, or pass them "
            "one by one"
        )
    return torch.stack(parts)


def _of_array(values: np.ndarray[Any, Any], what: str) -> Tensor:
    try:
        return torch.from_numpy(np.ascontiguousarray(values)).reshape(values.shape)
    except TypeError:
        raise DataError(
            f"{what} are an array of {values.dtype}, for which there is no tensor: convert it to "
            "numbers, such as values.astype('float32')"
        ) from None


def _kind(value: Any) -> str:
    return f"a {type(value).__module__.partition('.')[0]} {type(value).__name__}".replace(
        "a builtins ", "a "
    )


def _way_out(value: Any) -> str:
    if hasattr(value, "convert"):  # an image of Pillow
        return (
            "turn images into a batch: torch.stack([preprocessing(image) for image in images]) "
            "with a niwaki.data.Preprocessing"
        )
    if isinstance(value, (tuple, dict)):
        return (
            "pass one tensor of shape (N, ...). For a network of several inputs, wrap it in a "
            "module whose forward takes the one to explain and holds the others"
        )
    return "pass one tensor of shape (N, ...)"


@stages.stage("reading images")
@checked(limit=NATURAL)
def in_memory(
    data: Dataset[Any], *, limit: int = 2**30, description: str | None = None
) -> Dataset[Any] | tuple[Tensor, Tensor]:
    """Decode a data set once, if it is small enough, for jobs that read it many times.

    Parameters
    ----------
    data
        A data set of pairs (input, label).
    limit
        Largest size of all inputs together, in bytes.
    description
        Title of a progress bar; None shows none.

    Returns
    -------
    Dataset or pair of Tensor
        The inputs and labels, or the data set itself where it is larger or its size unknown.
    """
    if not isinstance(data, Sized) or len(data) == 0:
        return data
    first, _ = next(iter(batches(data, 1)))
    if len(data) * prod(first.shape) * first.element_size() > limit:
        return data
    parts = list(batches(data, 64, description=description))
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


Data: TypeAlias = DataLoader[Any] | Dataset[Any] | tuple[Tensor, Tensor]
Place: TypeAlias = torch.device | str | Tensor | None


@checked(batch_size=BATCH)
def batches(
    data: Data,
    batch_size: int = 32,
    place: Place = None,
    description: str | None = None,
    *,
    shared: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Go once through data, in its own order, batch by batch.

    Parameters
    ----------
    data
        A DataLoader, which is iterated as it is; a Dataset of pairs (input, label); or a pair of
        tensors, inputs of shape (N, ...) and labels of shape (N,). NumPy arrays, and lists of
        tensors of one shape, will do for tensors.
    batch_size
        Samples in a batch; a DataLoader has its own.
    place
        Where the batches go: a device; or a tensor whose device and type of number the inputs get,
        such as `niwaki.models.home` of a network. None leaves them as they are.
    description
        Title of a progress bar, which counts samples; None shows none.
    shared
        Whether processes that work together (see `niwaki.processes`) take turns, batch by batch:
        each gets its own part, which may be nothing. A batch is the same as it is for a single
        process, and so are the numbers that come of it.

    Yields
    ------
    inputs : Tensor
        Shape (B, ...), floating point, finite.
    labels : Tensor
        Shape (B,), int64. Zeros and ones as floats, also in a column, as a binary cross-entropy
        takes them, become class numbers.

    Raises
    ------
    DataError
        No data, no pairs, inputs and labels of different length, inputs that are not finite
        floating-point numbers, labels that are not integers. A loader that several processes are
        to share, and that shuffles: it is another order in each.
    """
    loader: DataLoader[Any]
    if isinstance(data, DataLoader):
        loader = data
    else:
        dataset = as_dataset(data)
        if isinstance(dataset, Sized) and len(dataset) == 0:
            raise DataError("there are no data: the length is 0")
        # Its own generator: a loader draws a seed for its workers from the global one otherwise.
        loader = DataLoader(dataset, batch_size=batch_size, generator=torch.Generator())
    _check_again(loader)
    total = None if description is None else count(loader)
    if not shared or processes.size() == 1:
        whole = _checked(_shown(loader, description, total), place)
        return stages.handed_out(whole) if shared else whole
    total = None if total is None else total // processes.size()
    first = processes.rank() * (loader.batch_size or 1)
    return _checked(_shown(_part(loader), description, total), place, first)


def _check_again(loader: DataLoader[Any]) -> None:
    """Refuse what can be gone through only once: whoever looks at it twice misses samples."""
    data = loader.dataset
    samplers = (loader.sampler, loader.batch_sampler)
    parts: list[Any] = [part for part in samplers if isinstance(part, Iterator)]
    if isinstance(data, IterableDataset) and not loader.num_workers and iter(data) is iter(data):
        parts.append(data)
    if parts:
        raise DataError(
            f"{_kind(parts[0])} goes on where it has stopped each time that it is gone through, so "
            "that samples would be missing without a word: let its __iter__ begin anew, or pass "
            "a data set that holds the samples, or tensors"
        )


def _part(loader: DataLoader[Any]) -> Iterable[Any]:
    """Return this process's own batches, by turns; of a data set, no others are read."""
    if isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
        return islice(loader, processes.rank(), None, processes.size())
    if not isinstance(loader.sampler, SequentialSampler):
        raise DataError(
            f"{processes.size()} processes are to share a DataLoader whose sampler is a "
            f"{type(loader.sampler).__name__}, which is another order, or another part, in each: "
            "pass the data set itself, or a loader that goes through it in order"
        )
    return DataLoader(
        loader.dataset,
        batch_sampler=_Turns(loader.batch_sampler),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
        generator=torch.Generator(),
    )


class _Turns(Sampler[list[int]]):
    """The batches of this process, by the numbers of their samples."""

    def __init__(self, every: Iterable[list[int]]) -> None:
        self._every = every

    def __iter__(self) -> Iterator[list[int]]:
        return islice(self._every, processes.rank(), None, processes.size())


def count(data: Data) -> int | None:
    """Return the number of samples that `batches` yields, or None where it cannot be known."""
    if not isinstance(data, DataLoader):
        dataset = as_dataset(data)
        return len(dataset) if isinstance(dataset, Sized) else None
    # Without a batch size the loader's batch sampler decides, which counts batches only.
    if data.batch_size is None or not isinstance(data.sampler, Sized):
        return None
    samples = len(data.sampler)
    return samples - samples % data.batch_size if data.drop_last else samples


def generators(data: Any) -> list[torch.Generator]:
    """Return the generators of its own that a loader draws from."""
    if not isinstance(data, DataLoader):
        return []
    places = (data, data.sampler, data.batch_sampler, getattr(data.batch_sampler, "sampler", None))
    found = [getattr(place, "generator", None) for place in places]
    return [generator for generator in found if isinstance(generator, torch.Generator)]


def check_labels(labels: Tensor, outputs: int, of: object = None) -> None:
    """Refuse labels that are no outputs of the network, or that are not known to be the right ones.

    Parameters
    ----------
    labels
        Shape (N,).
    outputs
        How many the network has.
    of
        The data that they are from. If these are `Images` that number their classes only by
        position, there must be as many classes as outputs.

    Raises
    ------
    DataError
        The first label that is no index of an output, or both numbers and the names.
    """
    images = named_data(of)
    if isinstance(images, Images) and images.labelled and images.by_position:
        numbered = number_classes(images.classes, outputs)
        if numbered != images.outputs:
            raise DataError(
                f"the classes are numbers, and some are missing: {', '.join(images.classes)}; open "
                f"the images with outputs={numbered}"
            )
    wrong = ((labels < 0) | (labels >= outputs)).nonzero()
    if len(wrong) == 0:
        return
    position = int(wrong[0, 0])
    label = int(labels[position])
    hint = "map the classes to the right outputs"
    if outputs == 2 and label > 1:
        hint += " (a network with a single output tells two classes apart, 0 and 1)"
    if label == -1:  # what images without labels have
        hint = "these data have no labels, give some"
    raise DataError(
        f"label {label} (sample {position} of the batch) is no output of the network, which has "
        f"{outputs}: 0 to {outputs - 1}; {hint}"
    )


def as_dataset(data: Dataset[Any] | tuple[Tensor, Tensor]) -> Dataset[Any]:
    """Return a Dataset for a Dataset or a pair of tensors (inputs, labels)."""
    if isinstance(data, Dataset):
        return data
    if not _is_pair(data):
        raise DataError(
            f"{_describe(data)} is no data; pass a DataLoader, a Dataset, or a pair of tensors "
            "(inputs, labels)"
        )
    inputs, labels = as_tensor(data[0]), as_tensor(data[1], "the labels")
    labels = _class_numbers(labels)
    _check_pair(inputs, labels)
    return TensorDataset(inputs, labels)


def _shown(loader: Iterable[Any], description: str | None, total: int | None) -> Iterable[Any]:
    if description is None:
        return loader
    return track(loader, description, total, size=_samples)


def _samples(batch: Any) -> int:
    """Count the samples of a batch; anything else is refused where it is checked."""
    return len(batch[1]) if _is_pair(batch) and isinstance(batch[1], Sized) else 1


def _checked(
    loader: Iterable[Any], place: Place, first: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Check batches, which come with the number of their first sample if they are a part of all."""
    seen, turns = first or 0, 1 if first is None else processes.size()
    empty = True
    device = place.device if isinstance(place, Tensor) else place
    for batch in loader:
        if not _is_pair(batch):
            raise DataError(
                f"a batch is {_describe(batch)}; it must be a pair of tensors (inputs, labels)"
            )
        inputs = as_tensor(batch[0])
        labels = _class_numbers(as_tensor(batch[1], "the labels"))
        _check_pair(inputs, labels)
        _check_inputs(inputs, seen)
        seen, empty = seen + turns * len(inputs), False
        inputs = inputs.detach()
        moved = inputs if place is None else inputs.to(place)
        yield moved, labels.to(device=device, dtype=torch.int64)
    if empty and not first:  # a part may be empty, but not that of the first process
        raise DataError("there are no data: not one batch came")


def _class_numbers(labels: Tensor) -> Tensor:
    """Return labels as they are, or those of a binary cross-entropy as class numbers.

    There, labels are zeros and ones as floats, often in a column.
    """
    column = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    binary = column.is_floating_point() and bool(((column == 0) | (column == 1)).all())
    return column.long() if binary else column


def _check_pair(inputs: Tensor, labels: Tensor) -> None:
    if labels.is_floating_point():
        raise DataError(
            f"labels are {labels.dtype}, such as {float(labels.flatten()[0]):g}: accuracies and "
            "criteria need the index of a class for each input. What a regression says can be "
            "explained, without labels, by niwaki.explain; to prune it, sort its values into "
            "classes and give it an output for each"
        )
    if labels.is_complex() or labels.dtype == torch.bool or labels.ndim != 1:
        raise DataError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}; they must be integers of "
            "shape (N,), the index of a class for each input"
        )
    if inputs.ndim == 0 or len(inputs) != len(labels):
        raise DataError(
            f"inputs of shape {tuple(inputs.shape)} and {len(labels)} labels do not match; there "
            "must be one label for each input"
        )


def _check_inputs(inputs: Tensor, before: int) -> None:
    if not inputs.is_floating_point():
        raise DataError(f"inputs are {inputs.dtype}; convert and normalise them to floats")
    finite = inputs.isfinite().flatten(1).all(1) if inputs.ndim > 1 else inputs.isfinite()
    if not bool(finite.all()):
        position = before + int((~finite).nonzero()[0, 0])
        raise DataError(f"input {position} has NaN or infinite values; check its preprocessing")


def _is_pair(value: object) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2


def _describe(batch: object) -> str:
    if isinstance(batch, (tuple, list)):
        return f"a {type(batch).__name__} of {len(batch)}"
    return f"a {type(batch).__name__}"
