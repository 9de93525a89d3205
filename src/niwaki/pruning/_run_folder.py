"""Run folders: each finished step on disk, to go on from after whatever happened."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from niwaki.criteria import Scores
from niwaki.data import Data, batches
from niwaki.errors import NiwakiError
from niwaki.files import new_folder, write_text
from niwaki.pruning._loop import State
from niwaki.pruning._plan import Plan
from niwaki.pruning._surgery import replay
from niwaki.pruning._trajectory import Trajectory

__all__ = ["RunFolder", "digest", "discard"]

FORMAT = 1
_OURS = re.compile(r"step-\d{4}|\.step-\d{4}\.[0-9a-f]{8}")
_KEPT = 2  # steps on disk: the last, and the one before it should the last be torn


@dataclass(frozen=True)
class RunFolder:
    """Where a run writes its states.

    Each step has a folder of its own, written aside and renamed, with the checksums of its files:
    whatever is torn or corrupt is passed over for the step before.

    Attributes
    ----------
    path : Path
        The folder; made with the first step.
    identity : dict
        What a run is recognised by: network, data and settings, as plain data.
    """

    path: Path
    identity: Mapping[str, Any]

    def latest(self, original: nn.Module, example: Tensor) -> State | None:
        """Return the state after the last good step; None if there is none.

        Parameters
        ----------
        original : nn.Module
            The unpruned network; not changed.
        example : Tensor
            Inputs to replay the plan with.

        Raises
        ------
        NiwakiError
            If the folder is none of a run, or of another run; the difference is named.
        """
        _check_ours(self.path)
        for folder in reversed(self._steps()):
            content = _read(folder)
            if content is not None:
                self._check_same(content["identity"])
                return _restore(folder, content, copy.deepcopy(original), example)
        return None

    def write(self, state: State) -> None:
        """Write a state, and let go of those that are no longer needed."""
        number = len(state.rows) - 1 + state.done
        place = self.path / f"step-{number:04}"
        shutil.rmtree(place, ignore_errors=True)  # only a torn one can stand there
        with new_folder(place) as folder:
            save_model(state.model, str(folder / "weights.safetensors"))
            if state.scores is not None:
                state.scores.save(folder / "scores.safetensors")
            content = {
                "format": FORMAT,
                "identity": dict(self.identity),
                "plan": state.plan.to_json(),
                "trajectory": Trajectory(state.rows).to_json(),
                "done": state.done,
                "files": {file.name: _sha256(file.read_bytes()) for file in folder.iterdir()},
            }
            text = json.dumps(content, indent=2)
            write_text(folder / "state.json", f"{_sha256(text.encode())}\n{text}")
        for old in self._steps():
            if not number - _KEPT < _number(old) <= number:
                shutil.rmtree(old, ignore_errors=True)
        for aside in self.path.glob(".step-*"):
            shutil.rmtree(aside, ignore_errors=True)

    def _steps(self) -> list[Path]:
        return sorted(self.path.glob("step-*"), key=_number)

    def _check_same(self, saved: Mapping[str, Any]) -> None:
        mine = json.loads(json.dumps(self.identity))
        different = [n for n in {**saved, **mine} if saved.get(n) != mine.get(n)]
        if different:
            lines = [f"  {n}: there {saved.get(n)!r}, now {mine.get(n)!r}" for n in different]
            raise NiwakiError(
                f"{self.path} holds a run of another {_kind(different)}:\n"
                + "\n".join(lines)
                + "\nChoose another folder, or delete it to start anew"
            )


def discard(folder: str | Path) -> None:
    """Delete a run folder that is no longer needed; one that does not exist is fine.

    Raises
    ------
    NiwakiError
        If it is none.
    """
    _check_ours(Path(folder))
    shutil.rmtree(folder, ignore_errors=True)


def digest(data: Data) -> str:
    """Short hash of the samples of a data set, whatever their order and batches."""
    samples = []
    for inputs, labels in batches(data, 64):
        for x, label in zip(inputs.cpu(), labels.tolist(), strict=True):
            head = f"{tuple(x.shape)}{x.dtype}{label}".encode()
            content = x.contiguous().view(-1).view(torch.uint8).numpy().data
            samples.append(hashlib.sha256(head + content).digest())
    return f"{len(samples)} samples, {_sha256(b''.join(sorted(samples)))[:16]}"


def _check_ours(path: Path) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise NiwakiError(f"{path} is a file; a run needs a folder")
    foreign = [p.name for p in path.iterdir() if not _OURS.fullmatch(p.name)]
    if foreign:
        raise NiwakiError(f"{path} is no folder of a run, it holds {foreign[0]!r}; choose another")


def _kind(different: list[str]) -> str:
    kinds = {"model": "model", "data": "data", "validation": "data", "training": "data"}
    return " and ".join(dict.fromkeys(kinds.get(name, "setting") for name in different))


def _number(step: Path) -> int:
    digits = step.name.removeprefix("step-")
    return int(digits) if digits.isdigit() else -1


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read(folder: Path) -> dict[str, Any] | None:
    """Read what a step wrote; None if any of its files is not as it was written."""
    try:
        checksum, _, text = (folder / "state.json").read_text(encoding="utf-8").partition("\n")
        if checksum != _sha256(text.encode()):
            return None
        content: dict[str, Any] = json.loads(text)
        if content["format"] != FORMAT:
            return None
        for name, expected in content["files"].items():
            if _sha256((folder / name).read_bytes()) != expected:
                return None
    except (OSError, ValueError):
        return None
    return content


def _restore(
    folder: Path, content: Mapping[str, Any], working: nn.Module, example: Tensor
) -> State:
    plan = Plan.from_json(content["plan"])
    replay(working, example, plan)
    load_model(working, str(folder / "weights.safetensors"))
    scores = None
    if "scores.safetensors" in content["files"]:
        scores = Scores.load(folder / "scores.safetensors")
    rows = Trajectory.from_json(content["trajectory"]).steps
    return State(working, plan, rows, scores, bool(content["done"]))
