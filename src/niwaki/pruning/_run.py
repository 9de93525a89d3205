"""How a run is carried out, whatever it does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from niwaki.ranges import BATCH, checked
from niwaki.runs import Folder

__all__ = ["Run"]


@checked(batch_size=BATCH)
@dataclass(frozen=True)
class Run:
    """How a run is carried out: nothing here changes what comes out, but for rounding.

    Attributes
    ----------
    folder : str or Path, optional
        Where each finished part (a step, a contender, a trial) is written. Called again with the
        same folder, model, data and settings, after whatever interruption, the run goes on from
        there and ends as it would have without.
    batch_size : int
        Samples that are computed at once, of data sets and tensors; a loader has its own.
    callback : callable, optional
        Told about each finished part, also about those that were found in the folder.
    observe : callable, optional
        Looks at the network after each step of `niwaki.prune` (0: before anything goes) and returns
        tensors by name, such as heatmaps. They are kept with the step in the folder, and handed on
        in `Pruned.observed`.
    """

    folder: Folder = None
    batch_size: int = 32
    callback: Callable[[Any], object] | None = None
    observe: Callable[[nn.Module], Mapping[str, Tensor]] | None = None

    def tell(self, finished: Any) -> None:
        """Let the callback know of a part that is finished."""
        if self.callback is not None:
            self.callback(finished)
