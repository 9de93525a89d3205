"""How well outputs tell classes apart."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["auc"]


def auc(outputs: NDArray[Any], labels: NDArray[Any]) -> float:
    """Area under the ROC curve: the mean over the classes that occur, each against all others.

    Parameters
    ----------
    outputs : ndarray
        Shape (N, classes).
    labels : ndarray
        Shape (N,).

    Returns
    -------
    float
        NaN where only one class occurs.
    """
    from sklearn.metrics import roc_auc_score

    present = sorted(set(labels.tolist()))
    if len(present) < 2:
        return float("nan")
    values = []
    for label in present[-1:] if len(present) == 2 else present:
        others = np.delete(outputs, label, axis=1).max(1)
        values.append(roc_auc_score(labels == label, outputs[:, label] - others))
    return float(np.mean(values))
