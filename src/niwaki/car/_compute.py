"""The loop over images that makes the index, interrupted and resumed at will."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from niwaki import models
from niwaki.accumulation import Totals
from niwaki.car._evaluator import Evaluator
from niwaki.car._groups import copy_of, device_of, examples, removable
from niwaki.car._index import CarIndex
from niwaki.car._measure import index_of, measure
from niwaki.car._memory import parse_bytes
from niwaki.data import Data, batches
from niwaki.errors import DataError
from niwaki.files import write_atomically

__all__ = ["index"]


def index(
    model: nn.Module,
    data: Data,
    *,
    layers: Sequence[str] | None = None,
    batch_size: int = 64,
    max_memory: int | str = "2GB",
    folder: str | Path | None = None,
    description: str | None = None,
) -> CarIndex:
    """Compute the classification accuracy reduction of every unit, exactly.

    The reduction (CAR) of a unit is the network's accuracy minus the accuracy of the network from
    which the unit is physically gone, with its batch norm and the inputs behind it, and with all
    that is coupled to it (Abbasi-Asl & Yu 2017). What lies before a unit is computed once, what
    it contributes to the next layer is subtracted there, images that do not activate it are
    skipped, and the rest of the network runs for many units and images at once. The counts equal
    those of physical removal but for images whose two largest outputs differ by less than 1e-4,
    which are reported.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode, returning shape (N, classes). It stays as it is.
    data : DataLoader, Dataset or pair of tensors
        Images with their labels.
    layers : sequence of str, optional
        Only units of these layers or of layers within modules of these names; default: all hidden
        convolutions and linear layers.
    batch_size : int
        Images that are looked at together, fewer where memory asks for it; a loader has its own.
    max_memory : int or str
        Bytes to stay below, beside the network and the data themselves; such as ``"500MB"``.
    folder : str or Path, optional
        Keeps the counts after each batch (``partial.safetensors``); the same call goes on from
        there.
    description : str, optional
        Title of a progress bar; none if not given.

    Returns
    -------
    CarIndex
        Layer name to the reductions of its units, in total and by class.

    Raises
    ------
    ValueError
        For options out of range.
    ModelError, DataError, NothingToPruneError
        For a network or data that cannot be worked with; a folder that holds counts of others.

    Examples
    --------
    >>> index = niwaki.car.index(model, (images, labels))
    >>> index["conv1"].car
    >>> index.ranking()[:5]
    """
    memory = parse_bytes(max_memory)
    own = copy_of(model)
    example = examples(own, data)
    groups = removable(own, example, layers)
    evaluator = Evaluator(own, example, groups, memory)
    size = evaluator.images(batch_size)
    fingerprint = models.fingerprint(model)
    partial = _Partial(folder, {"fingerprint": fingerprint, "layers": [g.root for g in groups]})
    for inputs, labels in batches(data, size, device_of(model), description):
        for start in range(0, len(inputs), size):
            rows = slice(start, start + size)
            fresh, told = partial.unseen(inputs[rows], labels[rows])
            if len(fresh):
                partial.add(fresh, told, measure(evaluator, fresh, told))
    partial.check()
    paths = dict(zip((g.root for g in groups), evaluator.paths, strict=True))
    return index_of(partial.totals, groups, paths, fingerprint)


class _Partial:
    """The sums so far, of which images, and where they are kept."""

    def __init__(self, folder: str | Path | None, about: dict[str, object]) -> None:
        self._file = None if folder is None else Path(folder) / "partial.safetensors"
        self._about = about
        self._inputs, self._labels = hashlib.sha256(), hashlib.sha256()
        self._read = 0
        self._expected: str | None = None
        self.totals = Totals()
        if self._file is not None and self._file.exists():
            self._load(self._file)

    def unseen(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images that the sums lack, after a look at those that they have."""
        old = min(len(inputs), max(0, self.totals.samples - self._read))
        self._note(inputs[:old], labels[:old])
        if old < len(inputs):
            self.check()
        return inputs[old:], labels[old:]

    def add(self, inputs: Tensor, labels: Tensor, sums: dict[str, Tensor]) -> None:
        """Add the sums of some images, and write all down."""
        self._note(inputs, labels)
        self.totals = self.totals.update(sums, len(inputs))
        if self._file is not None:
            about = {**self._about, "images": self._digest()}
            state = {name: value.contiguous() for name, value in self.totals.state_dict().items()}
            head = {"niwaki.car": json.dumps(about)}
            write_atomically(self._file, lambda file: save_file(state, file, metadata=head))

    def check(self) -> None:
        """Refuse sums that a run over other images has left."""
        if self._expected is None:
            return
        if self._expected != self._digest():
            raise self._foreign("other images")
        self._expected = None

    def _load(self, file: Path) -> None:
        try:
            with safe_open(file, framework="pt") as opened:
                about = json.loads((opened.metadata() or {})["niwaki.car"])
                state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            self._expected = str(about.pop("images"))
            self.totals = Totals.from_state_dict(state)
        except (OSError, SafetensorError, LookupError, ValueError) as error:
            raise DataError(f"{file} holds no counts: {type(error).__name__}: {error}") from error
        if about != self._about:
            raise self._foreign("another network, or other layers")

    def _foreign(self, what: str) -> DataError:
        return DataError(
            f"{self._file} holds the counts of {what}; choose another folder, or delete the file"
        )

    def _note(self, inputs: Tensor, labels: Tensor) -> None:
        self._read += len(inputs)
        if self._file is not None:
            for seen, tensor in ((self._inputs, inputs), (self._labels, labels)):
                plain = tensor.detach().cpu().contiguous().view(-1)
                seen.update(plain.view(torch.uint8).numpy().data)

    def _digest(self) -> str:
        return self._inputs.hexdigest()[:32] + self._labels.hexdigest()[:32]
