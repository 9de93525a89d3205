"""Where a command works until its output stands: the folder OUT.run beside the output OUT."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from json import dumps
from pathlib import Path
from typing import Any

from niwaki.errors import DataError, NiwakiError
from niwaki.files import clear_leftovers, replace_folder, seal, sibling, told_plainly
from niwaki.processes import check_joined, held_by_first
from niwaki.runs._lock import LOCK, locked

__all__ = ["Workplace", "clear_beside", "is_finished", "workplace"]

_RUN = re.compile(r"[0-9a-f]{16}")
_RESULT = "result"
_MOVING = "moving"  # there from the moment that the result is complete


class Workplace:
    """The runs of a command, one folder for each identity, and its output, which appears whole.

    Another option makes another run: nothing has to be refused, and nothing is lost. All runs are
    deleted when the output is complete.

    Use `workplace` to get one.

    Attributes
    ----------
    out : Path
        The output.
    path : Path
        The folder beside it, ``OUT.run``.
    """

    def __init__(self, out: Path, *, overwrite: bool) -> None:
        self.out = out
        self.path = _beside(out)
        self._overwrite = overwrite

    def run(self, identity: Any) -> Path:
        """Return the folder of the run of an identity; see `open_run`, which asks for it."""
        return self.path / sha256(dumps(identity, sort_keys=True).encode()).hexdigest()[:16]

    @contextmanager
    def result(self) -> Iterator[Path]:
        """Give a folder to write the output into; when the block succeeds, it becomes the output.

        Raises
        ------
        NiwakiError
            If a folder stands there that niwaki did not write, or one that may not be replaced.
        """
        aside = self.path / _RESULT
        shutil.rmtree(aside, ignore_errors=True)
        try:
            with told_plainly(self.out):
                aside.mkdir()
                yield aside
                seal(aside)
                (self.path / _MOVING).touch()
            replace_folder(aside, self.out, overwrite=self._overwrite)
        except BaseException:
            (self.path / _MOVING).unlink(missing_ok=True)
            shutil.rmtree(aside, ignore_errors=True)
            raise
        done = sibling(self.path)
        self.path.rename(done)
        shutil.rmtree(done, ignore_errors=True)


@contextmanager
def workplace(out: str | Path, *, overwrite: bool = False) -> Iterator[Workplace]:
    """Work on an output, alone; resume what an interrupted command has finished.

    Where processes work together, the first holds it.

    Parameters
    ----------
    out : str or Path
        The folder that will be written. Whether it may be is found out at once.
    overwrite : bool
        Whether it may replace a folder that niwaki wrote.

    Raises
    ------
    NiwakiError
        If another process works on it, it cannot be written, or ``OUT.run`` holds something else.
    """
    target = Path(out).resolve()
    check_joined(f"writing {out}")
    with held_by_first(lambda: _held(target, overwrite)) as place:
        yield place or Workplace(target, overwrite=overwrite)


@contextmanager
def _held(target: Path, overwrite: bool) -> Iterator[Workplace]:
    path = _beside(target)
    clear_beside(target)
    _check_ours(path)
    made = [place for place in (path, *path.parents) if not place.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"{error.strerror} ({error.filename})"
        raise NiwakiError(f"{target} cannot be written: {reason}") from None
    try:
        with locked(path):
            finished = is_finished(target)
            clear_leftovers(path)
            (path / _MOVING).unlink(missing_ok=True)
            shutil.rmtree(path / _RESULT, ignore_errors=True)
            yield Workplace(target, overwrite=overwrite or finished)
    finally:
        for place in made if path in made else [path, *made]:
            try:
                place.rmdir()
            except OSError:  # there is something in it, or it is gone
                if place.exists():
                    break


def clear_beside(out: str | Path) -> None:
    """Clear away what killed commands left beside an output; put back what they had moved away."""
    target = Path(out).resolve()
    clear_leftovers(target.parent, target.name)
    clear_leftovers(target.parent, _beside(target).name)


def is_finished(out: str | Path) -> bool:
    """Whether an output is the work of a command that was killed before it could say so."""
    path = _beside(Path(out).resolve())
    return (path / _MOVING).exists() and not (path / _RESULT).exists() and Path(out).exists()


def _beside(out: Path) -> Path:
    return out.with_name(f"{out.name}.run")


def _check_ours(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise DataError(f"{path} is a file, and what is finished is kept there: move it away")
    for name in sorted(os.listdir(path)) if path.exists() else ():
        ours = name in (LOCK, _RESULT, _MOVING) or _RUN.fullmatch(name)
        if not ours and not name.startswith("."):
            raise DataError(
                f"{path} holds {name!r}, which is none of a command's: what is finished is kept "
                "there, so move it away, or choose another output"
            )
