"""What fine-tuning gave: its epochs, and which weights were kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Epoch", "Kept", "Tuned"]

_TELLING = 6  # images: fewer, all of them one way, come by chance more often than one time in 20


@dataclass(frozen=True)
class Epoch:
    """One pass over the data.

    Attributes
    ----------
    epoch : int
        From 1.
    lr : float
        At its end.
    loss : float
        Mean over its samples, as they were met.
    accuracy : float or None
        On the validation data, at its end.
    """

    epoch: int
    lr: float
    loss: float
    accuracy: float | None


@dataclass(frozen=True)
class Kept:
    """Which weights the validation data chose, and by how much; its text says it in a line.

    Attributes
    ----------
    epoch : int
        After which the weights were kept; 0: those at the start, as no epoch did better.
    epochs : int
        Number of epochs that were trained.
    accuracy, before : float
        Accuracy of the weights that were kept and of those at the start, on the validation data.
        As these data chose, the first is too high for a held-out figure.
    samples : int or None
        Number of samples of the validation data; None where a loader does not know.
    """

    epoch: int
    epochs: int
    accuracy: float
    before: float
    samples: int | None

    @property
    def may_be_chance(self) -> bool:
        """Whether a sign test could not tell the gain from chance, however the images differ."""
        return self.samples is not None and 0 < self._gained < _TELLING

    @property
    def _gained(self) -> int:
        return round((self.accuracy - self.before) * (self.samples or 0))

    def __str__(self) -> str:
        images = "the" if self.samples is None else f"{self.samples}"
        where = f"{images} validation images"
        if self.epoch == 0:
            return (
                f"kept the weights as they were: no epoch of {self.epochs} did better than "
                f"{self.before:.1%} on {where}"
            )
        said = (
            f"kept epoch {self.epoch} of {self.epochs}: {self.accuracy:.1%} on {where}, "
            f"{self.before:.1%} before"
        )
        if self.may_be_chance:
            more = "one image" if self._gained == 1 else f"{self._gained} images"
            return f"{said}; {more} more may be chance"
        return said


@dataclass(frozen=True)
class Tuned(Sequence[Epoch]):
    """What happened in fine-tuning: a sequence of epochs.

    Attributes
    ----------
    epochs : tuple of Epoch
        All that were trained, also those after the one that was kept.
    kept : Kept or None
        What the validation data chose; None without, when the last weights stay.
    """

    epochs: tuple[Epoch, ...]
    kept: Kept | None = None

    def __getitem__(self, index: Any) -> Any:
        return self.epochs[index]

    def __len__(self) -> int:
        return len(self.epochs)
