"""Whether heatmaps sum to what they should: the change of the output from a baseline."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from niwaki.errors import CompletenessWarning, PropagationError

__all__ = ["check_sums"]

#: A sum that misses more than this share of the change is warned of.
TOLERANCE = 1e-3


def check_sums(
    heatmaps: Tensor, ends: Tensor, method: str, advice: str, *, refuse: bool = False
) -> None:
    """Warn of heatmaps that do not sum to the change of the output.

    Parameters
    ----------
    heatmaps : Tensor
        Shape (N, ...).
    ends : Tensor
        The output explained, at the baseline and at the input, in double precision, shape (N, 2).
    method, advice : str
        What made them, and what to do, for the message.
    refuse : bool
        Whether that is an error.

    Raises
    ------
    PropagationError
        If so.
    """
    change = ends[:, 1] - ends[:, 0]
    flat = heatmaps.double().flatten(1)
    missing = (flat.sum(1) - change).abs()
    size = ends.abs().amax(1).maximum(flat.norm(dim=1))
    bad = missing > TOLERANCE * change.abs() + 100 * torch.finfo(heatmaps.dtype).eps * size
    if not bad.any():
        return
    worst = int((missing / change.abs()).where(bad, -1.0).argmax())
    said = (
        f"{int(bad.sum())} of {len(bad)} heatmaps of {method} do not sum to the change of the "
        f"output from the baseline: sample {worst} misses {float(missing[worst]):.2g} of "
        f"{float(change[worst]):.2g}. {advice}"
    )
    if refuse:
        raise PropagationError(said)
    warnings.warn(said, CompletenessWarning, stacklevel=4)
