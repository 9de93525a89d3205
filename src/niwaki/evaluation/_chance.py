"""Whether a network is better than guessing: if not, its labels are probably not its outputs."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from niwaki import models
from niwaki.data import Data, batches
from niwaki.errors import NearChanceWarning

__all__ = ["near_chance", "warn_near_chance"]

# At an accuracy above this no two classes or more can be near chance, if they are about as many.
_CLEAR = 0.6


def near_chance(predicted: NDArray[np.integer], labels: NDArray[np.integer]) -> str | None:
    """Say in a sentence that predictions are hardly better than guessing.

    The mean over the C classes that occur of the share that is predicted right is 1 / C by
    guessing, however many images each has. It counts as chance up to twice that, or up to a tenth
    of the way from there to 1 where this is less.

    Parameters
    ----------
    predicted, labels : ndarray
        Shape (N,).

    Returns
    -------
    str or None
        None where they are better, and for a single class.
    """
    classes = np.unique(labels)
    if len(classes) < 2:
        return None
    recall = float(np.mean([(predicted[labels == c] == c).mean() for c in classes]))
    chance = 1 / len(classes)
    if recall > min(chance + 0.1 * (1 - chance), 2 * chance):
        return None
    return (
        f"the network names {recall:.1%} of the images right (mean over {len(classes)} classes; "
        f"guessing: {chance:.1%}). Before anything else, check that the labels are the numbers of "
        "its outputs (classes=, outputs=, on the command line --outputs), that its weights are "
        "those of these classes, and that the images are prepared as it was trained"
    )


def warn_near_chance(model: nn.Module, data: Data | None, found: float | None, what: str) -> None:
    """Warn if a network whose accuracy was measured is hardly better than guessing.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode, returning shape (N, classes).
    data : DataLoader, Dataset or pair of tensors, optional
        That it was measured on.
    found : float, optional
        The accuracy.
    what : str
        Stands before the sentence, such as "before pruning".
    """
    if data is None or found is None or found > _CLEAR:
        return
    pairs = [
        (models.class_outputs(model, x, "accuracy").argmax(1).cpu(), y.cpu())
        for x, y in batches(data, place=models.home(model))
    ]
    predicted, labels = (torch.cat(parts).numpy() for parts in zip(*pairs, strict=True))
    if said := near_chance(predicted, labels):
        warnings.warn(f"{what}, {said}", NearChanceWarning, stacklevel=3)
