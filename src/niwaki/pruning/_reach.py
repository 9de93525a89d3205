"""Whether a target can be reached, and which layers keep their units whatever is asked for."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

from niwaki.errors import KeptWarning, NiwakiError, NothingToPruneError
from niwaki.pruning._bundles import LayerLimits
from niwaki.pruning._loop import Job
from niwaki.pruning.units._budget import ROUNDING
from niwaki.pruning.units._coupling import Group
from niwaki.pruning.units._structure import Structure

__all__ = ["check_reach"]


def check_reach(job: Job, whole: Structure) -> dict[str, str]:
    """Refuse a target that cannot be met, before any work is done; return which layers stay."""
    layers = [layer.name for layer in whole.hidden]
    coupling = whole.coupling(layers, job.limits.ignore)
    if coupling.kept:
        warnings.warn(_what_stays(coupling.kept), KeptWarning, stacklevel=4)
    groups = coupling.groups
    lowest = job.limits.lowest(groups)
    least = job.limits.min_units
    if all(len(group) <= left for group, left in zip(groups, lowest, strict=True)):
        raise NothingToPruneError(
            f"{type(whole.model).__name__} has nothing to prune: no hidden layer has more than "
            f"{least} unit(s) that may go{_more(job.limits)}. Convolutions and linear layers "
            "must be modules (nn.Conv2d, nn.Linear) for channels to be removed"
            + _because(coupling.kept)
        )
    remains = _cost_of(lowest, job, whole, groups)
    # A floor stops where it stops: then the target is only the furthest that is tried.
    if remains > job.keep * job.total + ROUNDING and job.schedule.floor is None:
        raise NiwakiError(
            f"keep = {job.keep:.3g} of the {job.of} cannot be reached: with {least} unit(s) left "
            f"everywhere{_more(job.limits)}, {remains / job.total:.3g} remain"
            + _because(coupling.kept)
        )
    return coupling.kept


def _what_stays(kept: Mapping[str, str]) -> str:
    """Name the layers that keep units, those with the same reason together."""
    reasons: dict[str, list[str]] = {}
    for layer, reason in kept.items():
        reasons.setdefault(reason, []).append(layer)
    rows = []
    for reason, layers in list(reasons.items())[:8]:
        more = f" and {len(layers) - 4} more" if len(layers) > 4 else ""
        rows.append(f"  {', '.join(layers[:4])}{more}: {reason}")
    if len(reasons) > 8:
        rows.append(f"  and {len(reasons) - 8} other reasons")
    return f"{len(kept)} layers keep units, whatever their scores:\n" + "\n".join(rows)


def _because(kept: Mapping[str, str]) -> str:
    return f". {_what_stays(kept)}" if kept else ""


def _cost_of(units: Sequence[int], job: Job, whole: Structure, groups: Sequence[Group]) -> float:
    """Count what the network costs when each group has so many units left."""
    budget = job.budget(whole, groups)
    for index, (group, left) in enumerate(zip(groups, units, strict=True)):
        for unit in range(len(group) - left):
            budget.remove(index, unit)
    return budget.total()


def _more(limits: LayerLimits) -> str:
    parts = [f"multiples of {limits.multiple}"] if limits.multiple > 1 else []
    parts += ["the ceilings"] if limits.channels else []
    return f" and {' and '.join(parts)} respected" if parts else ""
