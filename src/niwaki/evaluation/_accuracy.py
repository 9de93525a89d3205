"""Accuracy over a data set."""

from __future__ import annotations

from torch import nn

from niwaki import models
from niwaki.data import Data, batches, check_labels
from niwaki.propagation import check_logit
from niwaki.ranges import BATCH, checked

__all__ = ["accuracy"]


@checked(batch_size=BATCH)
def accuracy(
    model: nn.Module, data: Data, *, batch_size: int = 128, description: str | None = None
) -> float:
    """Share of samples whose largest output is the true class.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode, returning shape (N, classes), or one column with the logit of the
        second of two classes, which is said where it is above 0.
    data : DataLoader, Dataset or pair of tensors
        Inputs and labels.
    batch_size : int
        For a data set or tensors; a loader has its own.
    description : str, optional
        Title of a progress bar; none if not given.

    Returns
    -------
    float
        From 0 to 1.

    Raises
    ------
    ModelError
        If the network is in training mode, has NaN weights, or returns another shape.
    DataError
        For data that cannot be read, or labels that are not among the outputs.
    """
    models.check(model)
    right = seen = 0
    for inputs, labels in batches(data, batch_size, models.home(model), description):
        if seen == 0:
            check_logit(model, inputs)
        output = models.class_outputs(model, inputs, "accuracy")
        check_labels(labels, output.shape[1], data)
        right += int((output.argmax(1) == labels).sum())
        seen += len(labels)
    return right / seen
