"""What somebody looks at after each step, kept beside the steps."""

from __future__ import annotations

from torch import Tensor

from niwaki.pruning._loop import State
from niwaki.pruning._run import Run
from niwaki.pruning._trajectory import Trajectory
from niwaki.runs import Run as Kept

__all__ = ["Observed"]


class Observed:
    """What `Run.observe` has seen, by step.

    Parameters
    ----------
    run : Run
        Has the function that looks.
    kept : niwaki.runs.Run
        Where what it returns is kept.
    """

    def __init__(self, run: Run, kept: Kept) -> None:
        self._look, self._kept = run.observe, kept
        self.by_step: dict[int, dict[str, Tensor]] = {}

    def look(self, state: State) -> None:
        """Look at a state; one that was fine-tuned in the end takes the place of its step."""
        if self._look is None or (state.rows[-1].rejected and not state.done):
            return
        tensors = {name: value.detach().cpu() for name, value in self._look(state.model).items()}
        step = Trajectory(state.rows).final.step
        self._kept.write(_name(step), tensors)
        self.by_step[step] = tensors

    def recall(self, state: State) -> None:
        """Read what was seen of the steps up to a state; what is missing is not there."""
        for row in state.rows if self._look is not None else ():
            part = self._kept.read(_name(row.step))
            if part is not None:
                self.by_step[row.step] = part.tensors


def _name(step: int) -> str:
    return f"seen-{step:04}"
