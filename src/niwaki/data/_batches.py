"""The one loop over data, which checks what it hands on."""

from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from niwaki.data._classes import named_data, number_classes
from niwaki.data._images import Images
from niwaki.data._tensors import as_tensor
from niwaki.errors import DataError
from niwaki.progress import track
from niwaki.ranges import BATCH, checked

__all__ = ["Data", "Place", "as_dataset", "batches", "check_labels", "count"]

Data: TypeAlias = DataLoader[Any] | Dataset[Any] | tuple[Tensor, Tensor]
Place: TypeAlias = torch.device | str | Tensor | None


@checked(batch_size=BATCH)
def batches(
    data: Data,
    batch_size: int = 32,
    place: Place = None,
    description: str | None = None,
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
        floating-point numbers, labels that are not integers.
    """
    if batch_size < 1:
        raise DataError(f"batch_size={batch_size}; it must be at least 1")
    loader: DataLoader[Any]
    if isinstance(data, DataLoader):
        loader = data
    else:
        dataset = as_dataset(data)
        if isinstance(dataset, Sized) and len(dataset) == 0:
            raise DataError("there are no data: the length is 0")
        # Its own generator: a loader draws a seed for its workers from the global one otherwise.
        loader = DataLoader(dataset, batch_size=batch_size, generator=torch.Generator())
    return _checked(_shown(loader, description), place)


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


def _shown(loader: DataLoader[Any], description: str | None) -> Iterable[Any]:
    if description is None:
        return loader
    return track(loader, description, count(loader), size=_samples)


def _samples(batch: Any) -> int:
    """Count the samples of a batch; what is none is refused where it is looked at."""
    return len(batch[1]) if _is_pair(batch) and isinstance(batch[1], Sized) else 1


def _checked(loader: Iterable[Any], place: Place) -> Iterator[tuple[Tensor, Tensor]]:
    seen = 0
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
        seen += len(inputs)
        moved = inputs if place is None else inputs.to(place)
        yield moved, labels.to(device=device, dtype=torch.int64)
    if seen == 0:
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
