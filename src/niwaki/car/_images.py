"""Images by number, what a forward pass over them keeps, and what its outputs say about each."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.utils.data import DataLoader, Dataset, Subset

from niwaki.data import Data, Place, batches, in_memory
from niwaki.errors import DataError
from niwaki.models import class_logits

#: Two outputs that are closer than this are a near tie: rounding may decide which is larger.
#: Mean margins are compared in steps of it.
TIE = 1e-4


@dataclass(frozen=True)
class Outcome:
    """What a network returns for each image.

    Attributes
    ----------
    right : Tensor
        Whether the largest output is the true class; bool.
    loss : Tensor
        Cross-entropy; float64.
    margin : Tensor
        Output of the true class minus the largest of the others; float64.
    near : Tensor
        Whether the two largest outputs differ by less than `TIE`; bool.
    """

    right: Tensor
    loss: Tensor
    margin: Tensor
    near: Tensor

    def __getitem__(self, images: Tensor) -> Outcome:
        return Outcome(
            self.right[images], self.loss[images], self.margin[images], self.near[images]
        )


def judge(logits: Tensor, labels: Tensor) -> Outcome:
    """Judge outputs by the true classes, shape (N,).

    Outputs have the shape (N, classes), or (N, 1) with the logit of the second of two classes.
    """
    logits = class_logits(logits, "the classification accuracy reduction").double()
    own = labels.unsqueeze(1)
    others = logits.scatter(1, own, -torch.inf).amax(1)
    best = logits.topk(2, dim=1).values
    return Outcome(
        logits.argmax(1) == labels,
        F.cross_entropy(logits, labels, reduction="none"),
        logits.gather(1, own).squeeze(1) - others,
        best[:, 0] - best[:, 1] < TIE,
    )


@dataclass(frozen=True)
class ForwardPass:
    """A pass of the whole network over N images, kept for evaluations that begin in its middle.

    Attributes
    ----------
    inputs, logits : Tensor
        Shapes (N, ...) and (N, classes).
    values : dict
        What the evaluations need of the pass.
    reach : list of dict
        For each group and each value in which its channels are read: which units are not zero
        everywhere; bool of shape (units, N). Empty where that is not known.
    sizes : sequence of int
        Units of each group.
    """

    inputs: Tensor
    logits: Tensor
    values: dict[fx.Node, Any]
    reach: list[dict[fx.Node, Tensor]]
    sizes: Sequence[int]

    def active(self, group: int) -> Tensor:
        """Tell which units of a group can change which images; bool of shape (units, N)."""
        found = list(self.reach[group].values())
        if not found:
            everywhere = (self.sizes[group], len(self.inputs))
            return torch.ones(everywhere, dtype=torch.bool, device=self.inputs.device)
        return found[0] if len(found) == 1 else torch.stack(found).any(0)

    def empty(self, count: int) -> ForwardPass:
        """Make room for a pass over so many images, laid out alike."""
        return ForwardPass(
            _rows_like(self.inputs, count),
            _rows_like(self.logits, count),
            {node: _rows_like(value, count) for node, value in self.values.items()},
            [{n: a.new_empty(len(a), count) for n, a in found.items()} for found in self.reach],
            self.sizes,
        )

    def fill(self, rows: slice, part: ForwardPass) -> None:
        """Put in what a pass over some of the images has kept."""
        self.inputs[rows] = part.inputs
        self.logits[rows] = part.logits
        for node, value in part.values.items():
            self.values[node][rows] = value
        for mine, theirs in zip(self.reach, part.reach, strict=True):
            for node, active in theirs.items():
                mine[node][:, rows] = active


def _rows_like(value: Tensor, count: int) -> Tensor:
    layout = torch.contiguous_format
    if value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last):
        layout = torch.channels_last
    shape = (count, *value.shape[1:])
    return torch.empty(shape, dtype=value.dtype, device=value.device, memory_format=layout)


class ImagePool:
    """Images by number: kept in memory where they fit, read again from the data set otherwise.

    Parameters
    ----------
    data : DataLoader, Dataset or pair of tensors
        A loader is read once, as its order may be random.
    memory : int
        Bytes that the inputs may take.
    place : torch.device or Tensor, optional
        Where batches go, see `niwaki.data.batches`.

    Attributes
    ----------
    labels : Tensor
        Shape (N,), on the device.

    Raises
    ------
    DataError
        For a loader whose inputs do not fit.
    """

    def __init__(self, data: Data, memory: int, place: Place = None) -> None:
        self._place = place
        device = place.device if isinstance(place, Tensor) else place
        self._inputs: Tensor | None = None
        self._dataset: Dataset[Any] | None = None
        if isinstance(data, DataLoader):
            data = _read(data, memory)
        elif isinstance(data, Dataset) and isinstance(data, Sized):
            data = in_memory(data, limit=memory)
        if isinstance(data, Dataset):
            self._dataset = data
            self.labels = torch.cat([labels for _, labels in batches(data, 64, device)])
        else:
            self._inputs, self.labels = next(iter(batches(data, len(data[0]) or 1)))  # checked
            self.labels = self.labels.to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, images: Tensor) -> Tensor:
        """Return some inputs; shape (len(images), ...)."""
        if self._inputs is not None:
            some = self._inputs[images.to(self._inputs.device)]
            return some if self._place is None else some.to(self._place)
        assert self._dataset is not None
        chosen = Subset(self._dataset, images.tolist())
        return next(iter(batches(chosen, len(images), self._place)))[0]

    def forward(self, run: Callable[[Tensor], ForwardPass], size: int) -> ForwardPass:
        """Run a network over all images, so many at a time, and keep all as one pass."""
        whole: ForwardPass | None = None
        for start in range(0, len(self), size):
            part = run(self.read(torch.arange(start, min(start + size, len(self)))))
            whole = part.empty(len(self)) if whole is None else whole
            whole.fill(slice(start, start + size), part)
        assert whole is not None
        return whole


def _read(loader: DataLoader[Any], memory: int) -> tuple[Tensor, Tensor]:
    inputs, labels, size = [], [], 0
    for x, y in batches(loader):
        size += x.numel() * x.element_size()
        if size > memory:
            raise DataError(
                "the search reads images in an order of its own, and this loader's do not fit into "
                "max_memory; pass the Dataset instead of the DataLoader, or allow more"
            )
        inputs.append(x)
        labels.append(y)
    return torch.cat(inputs), torch.cat(labels)
