"""The states of a pruning run as parts of a run folder: the last one, and the one before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from niwaki.criteria import Scores
from niwaki.errors import DataError, ModelError
from niwaki.models import deep_copy
from niwaki.pruning._bundles import Run
from niwaki.pruning._loop import State
from niwaki.pruning._plan import Plan
from niwaki.pruning._trajectory import Trajectory
from niwaki.pruning.steps import Structure
from niwaki.pruning.units._surgery import replay
from niwaki.runs import Part
from niwaki.runs import Run as Kept
from niwaki.schema import Anything, Either, ListOf, Record, Text, Truth, Whole, check

__all__ = ["Observed", "keep_state", "latest_state", "restore", "tensors_of"]

_KEPT = 2  # the last state, and the one before it should the last be damaged
_STEP = "step-"
_MODEL, _SCORES = "model/", "scores/"


def keep_state(run: Kept, state: State) -> None:
    """Keep a state, and let go of those that are no longer needed."""
    tensors = {f"{_MODEL}{name}": value for name, value in tensors_of(state.model).items()}
    about: dict[str, Any] = {
        "plan": state.plan.to_json(),
        "trajectory": Trajectory(state.rows).to_json(),
        "done": state.done,
    }
    if state.scores is not None:
        tensors |= {f"{_SCORES}{layer}": value for layer, value in state.scores.items()}
        scores = state.scores
        about["scores"] = [scores.criterion, scores.samples, scores.fingerprint]
    run.write(f"{_STEP}{len(state.rows) - 1 + state.done:04}", tensors, **about)
    run.drop(*_steps(run)[:-_KEPT])


def latest_state(run: Kept, original: nn.Module, example: Tensor) -> State | None:
    """Return the state after the last good step; None if there is none."""
    for name in reversed(_steps(run)):
        part = run.read(name)
        if part is not None:
            return _restore(part, deep_copy(original), example)
    return None


def _steps(run: Kept) -> list[str]:
    return [name for name in run.parts if name.startswith(_STEP)]


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return all that a network keeps, as tensors."""
    state = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ModelError(
                f"{name} of {type(model).__name__} is no tensor: such a network cannot be written "
                "to a run folder; leave folder= out"
            )
    return dict(state)


def restore(model: nn.Module, example: Tensor, plan: Plan, tensors: Mapping[str, Tensor]) -> None:
    """Apply a plan to a copy of the network, and fill it with the tensors that were kept.

    Raises
    ------
    DataError
        If they do not fit the network.
    """
    try:
        replay(model, example, plan)
        model.load_state_dict(dict(tensors))
    # Of a plan that does not fit, torch and torch-pruning can raise anything.
    except Exception as error:
        raise DataError(
            f"what the run has kept does not fit the network ({type(error).__name__}: {error}); "
            "delete its folder, or choose another"
        ) from error


_FORM = Record(
    {"plan": Plan.FORM, "trajectory": ListOf(Anything(), shortest=1), "done": Truth()},
    {"scores": ListOf(Either(Text(), Whole()), 3, 3)},
)


def _restore(part: Part, working: nn.Module, example: Tensor) -> State:
    check(part.about, _FORM, "the run")
    plan = Plan.from_json(part.about["plan"])
    restore(working, example, plan, _within(part, _MODEL))
    scores = None
    if "scores" in part.about:
        scores = Scores(_within(part, _SCORES), *part.about["scores"])
    rows = Trajectory.from_json(part.about["trajectory"]).steps
    return State(Structure(working, example), plan, rows, scores, bool(part.about["done"]))


def _within(part: Part, prefix: str) -> dict[str, Tensor]:
    found = part.tensors.items()
    return {name.removeprefix(prefix): v for name, v in found if name.startswith(prefix)}


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
