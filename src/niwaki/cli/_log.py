"""Steps of pruning and epochs of fine-tuning for TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from niwaki.errors import NiwakiError

if TYPE_CHECKING:
    from niwaki.pruning import Step

__all__ = ["Log"]

_COSTS = ("macs", "params", "units")


class Log:
    """Writes what each step gave into a folder that TensorBoard reads.

    A run that goes on writes its earlier steps anew; those that stand there already are hidden.

    Parameters
    ----------
    folder : Path or None
        None: nothing is written.

    Raises
    ------
    NiwakiError
        If TensorBoard is not installed.
    """

    def __init__(self, folder: Path | None) -> None:
        self._first: Step | None = None
        self._epochs = 0
        self._writer = None if folder is None else _writer(folder)

    def write(self, step: Step) -> None:
        """Write a step, and the epochs of its fine-tuning."""
        if self._writer is None:
            return
        self._first = self._first or step
        values: dict[str, float | None] = {
            "pruning/accuracy": step.accuracy,
            "pruning/accuracy after fine-tuning": step.accuracy_tuned,
            "pruning/validation": step.validation,
            "pruning/seconds": step.seconds,
        }
        for cost in _COSTS:
            values[f"kept/{cost}"] = getattr(step, cost) / getattr(self._first, cost)
        self._put(values, step.step)
        for epoch in step.epochs:
            self._epochs += 1
            told = {"loss": epoch.loss, "learning rate": epoch.lr, "validation": epoch.accuracy}
            self._put({f"fine-tuning/{name}": v for name, v in told.items()}, self._epochs)
        self._writer.flush()

    def _put(self, values: dict[str, float | None], place: int) -> None:
        assert self._writer is not None
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(name, value, place)


def _writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise NiwakiError(
            "--log needs TensorBoard, which is not installed: pip install 'niwaki[log]'"
        ) from None
    return SummaryWriter(str(folder), purge_step=0)
