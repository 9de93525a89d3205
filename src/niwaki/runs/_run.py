"""A run: the finished parts of a piece of work, kept in a folder from which it can be resumed."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from niwaki.errors import DataError, NiwakiError
from niwaki.files import clear_leftovers, read_layers, write_layers, write_text
from niwaki.hashing import sha256_of
from niwaki.processes import check_joined, decided, held_by_first, size
from niwaki.runs._lock import LOCK, locked
from niwaki.runs._workplace import Workplace
from niwaki.schema import Anything, MapOf, Record, Text, Whole, parse_json

__all__ = ["Folder", "Part", "Run", "discard", "open_run", "within"]

FORMAT = 1
RECORD = "niwaki-run.json"
_SHARE = 0.05  # of the time, for parts that are written again and again as they grow
_PART = re.compile(r"[A-Za-z0-9_+~.-]*\.[0-9a-f]{8}\.safetensors")

#: Where a run is kept; a workplace has a folder for each identity, None keeps nothing.
Folder: TypeAlias = str | Path | Workplace | None
Identity: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """A finished part of a run.

    Attributes
    ----------
    tensors : dict of str to Tensor
        On the CPU.
    about : dict
        Plain data.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)


class Run:
    """The finished parts of a piece of work, by name.

    Each part is a file of its own. One record, ``niwaki-run.json``, lists the parts with their
    checksums and says what the run is of; a part exists from the moment that the record names it,
    so that a kill leaves either all of a part or nothing. What is damaged counts as not finished.
    Only who holds the folder changes anything in it.

    Use `open_run` to get one.
    """

    def __init__(
        self, path: Path | None, identity: Identity, is_held: Callable[[], bool] = lambda: True
    ) -> None:
        self._path = path
        self._is_held = is_held
        self._identity = json.loads(json.dumps(identity))
        self._files: dict[str, dict[str, str]] = {}
        self._begun, self._spent = time.monotonic(), 0.0
        if path is not None:
            self._files = self._known(path)

    @property
    def parts(self) -> list[str]:
        """Names of the finished parts, in the order in which they were finished first."""
        return list(self._files)

    def read(self, name: str) -> Part | None:
        """Return a part, or None where it is not finished or damaged."""
        listed = self._files.get(name)
        if self._path is None or listed is None:
            return None
        file = self._path / listed["file"]
        try:
            if sha256_of(file) == listed["sha256"]:
                return read_layers(file, lambda tensors, /, **about: Part(tensors, about), "part")
        except (OSError, DataError):
            pass
        if self._is_held():  # else the file may be gone because another owner has replaced it
            self.drop(name)
        return None

    def once(self, name: str, compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return the tensors of a part; compute and keep them where it is not finished."""
        part = self.read(name)
        if part is None:
            part = Part({k: value.detach().cpu() for k, value in compute().items()})
            self.write(name, part.tensors)
        return part.tensors

    def write(self, name: str, tensors: Mapping[str, Tensor] | None = None, **about: Any) -> None:
        """Keep a finished part; an earlier one of this name is replaced."""
        if self._path is None:
            return
        self._check_held()
        self._path.mkdir(parents=True, exist_ok=True)
        file = self._path / f"{_file_name(name)}.{secrets.token_hex(4)}.safetensors"
        before = self._files.get(name)
        try:
            write_layers(file, tensors or {}, **about)
            self._record({**self._files, name: {"file": file.name, "sha256": sha256_of(file)}})
        except BaseException:
            file.unlink(missing_ok=True)
            raise
        if before is not None:
            (self._path / before["file"]).unlink(missing_ok=True)

    def write_rarely(
        self, name: str, tensors: Callable[[], Mapping[str, Tensor]], **about: Any
    ) -> None:
        """Keep a part as it grows, as often as this takes no more than a small share of the time.

        `tensors` is only called where they are written.
        """
        began = time.monotonic()
        if self._path is not None and self._spent <= _SHARE * (began - self._begun):
            self.write(name, tensors(), **about)
            self._spent += time.monotonic() - began

    def drop(self, *names: str) -> None:
        """Forget parts that are no longer needed."""
        gone = [self._files[name]["file"] for name in names if name in self._files]
        if self._path is not None and gone:
            self._check_held()
            self._record({k: v for k, v in self._files.items() if k not in names})
            for file in gone:
                (self._path / file).unlink(missing_ok=True)

    def _check_held(self) -> None:
        if not self._is_held():
            raise NiwakiError(
                f"{self._path} is not held by this process any more, so nothing in it is changed: "
                f"{LOCK} in it was deleted while the run was open, or the run was closed"
            )

    def _record(self, files: dict[str, dict[str, str]]) -> None:
        assert self._path is not None
        text = json.dumps({"format": FORMAT, "identity": self._identity, "parts": files}, indent=1)
        write_text(self._path / RECORD, f"{sha256(text.encode()).hexdigest()}\n{text}\n")
        self._files = files

    def _known(self, path: Path) -> dict[str, dict[str, str]]:
        """Read the record, check that it is ours, and clear away what it does not name."""
        record = _read_record(path)
        files: dict[str, dict[str, str]] = {}
        if record is not None:
            _check_same(path, record["identity"], self._identity)
            entries = record["parts"].items()
            # A name with a folder in it is none that we gave.
            files = {name: entry for name, entry in entries if _PART.fullmatch(entry["file"])}
        named = {entry["file"] for entry in files.values()}
        for file in path.iterdir():
            if _PART.fullmatch(file.name) and file.name not in named:
                file.unlink()
        return files


class SharedRun(Run):
    """A run of several processes: the first keeps it, and tells the others what it reads."""

    def __init__(self, first: Run | None) -> None:
        super().__init__(None, {})
        self._first = first

    @property
    def parts(self) -> list[str]:
        """See `Run.parts`."""
        return decided(lambda: self._kept.parts)

    def read(self, name: str) -> Part | None:
        """See `Run.read`."""
        return decided(lambda: self._kept.read(name))

    def write(self, name: str, tensors: Mapping[str, Tensor] | None = None, **about: Any) -> None:
        """See `Run.write`; what the first process has is written."""
        decided(lambda: self._kept.write(name, tensors, **about))

    def write_rarely(
        self, name: str, tensors: Callable[[], Mapping[str, Tensor]], **about: Any
    ) -> None:
        """See `Run.write_rarely`."""
        decided(lambda: self._kept.write_rarely(name, tensors, **about))

    def drop(self, *names: str) -> None:
        """See `Run.drop`."""
        decided(lambda: self._kept.drop(*names))

    @property
    def _kept(self) -> Run:
        assert self._first is not None  # only the first process asks
        return self._first


@contextmanager
def open_run(folder: Folder, identity: Callable[[], Identity]) -> Iterator[Run]:
    """Begin or resume a run in a folder, for this process alone.

    Where processes work together, the first opens the folder and writes; all of them see what it
    reads, and have to ask for the same in the same order.

    Parameters
    ----------
    folder : str, Path, Workplace or None
        It may be missing or empty, or that of a run; a workplace chooses one by the identity.
        None: nothing is kept. A folder in which nothing was finished is deleted at the end.
    identity : callable
        Gives what the run is recognised by, as plain data by name: the model, the data, the
        settings. Only called where there is a folder.

    Yields
    ------
    Run

    Raises
    ------
    DataError
        If the folder holds something else, or a run of another identity, whose differences are
        named.
    NiwakiError
        If another process works in it, or a launcher has started several that have not joined.
    """
    if folder is None:
        yield Run(None, {})
        return
    check_joined("keeping a run")
    with held_by_first(lambda: _opened(folder, lambda: _versioned(identity()))) as run:
        yield run if run is not None and size() == 1 else SharedRun(run)


def _versioned(identity: Identity) -> dict[str, Any]:
    """Add the version: another one may compute something else."""
    import niwaki  # which imports this file

    return {"niwaki": niwaki.__version__, **identity}


@contextmanager
def _opened(folder: str | Path | Workplace, identity: Callable[[], Identity]) -> Iterator[Run]:
    known = identity() if isinstance(folder, Workplace) else None
    path = folder.run(known) if isinstance(folder, Workplace) else Path(folder)
    check_ours(path)
    made = [place for place in (path, *path.parents) if not place.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        with locked(path) as is_held:
            clear_leftovers(path)
            yield Run(path, identity() if known is None else known, is_held)
    finally:
        _take_back(made)


def within(folder: Folder, name: str) -> Folder:
    """Return the folder of one of several runs; a workplace has room for all."""
    return folder if folder is None or isinstance(folder, Workplace) else Path(folder) / name


def check_ours(path: Path) -> None:
    """Refuse what is no folder of a run, before anything is written."""
    if not path.exists():
        return
    if not path.is_dir():
        raise DataError(f"{path} is a file; a run needs a folder")
    for entry in sorted(path.iterdir()):
        ours = entry.name in (RECORD, LOCK) or _PART.fullmatch(entry.name)
        if not ours and not entry.name.startswith("."):
            raise DataError(
                f"{path} is no folder of a run, it holds {entry.name!r}; choose another"
            )


def discard(folder: str | Path) -> None:
    """Delete the folder of a run that is no longer needed; one that does not exist is fine.

    Raises
    ------
    DataError
        If it is none.
    NiwakiError
        If a process works in it.
    """
    path = Path(folder)
    check_ours(path)
    if path.exists():
        with locked(path):
            (path / RECORD).unlink(missing_ok=True)  # first: what it does not name is nothing
            clear_leftovers(path)
            for file in path.iterdir():
                if _PART.fullmatch(file.name):
                    file.unlink()
        _take_back([path])


def _take_back(folders: list[Path]) -> None:
    """Delete folders in which nothing is, from the innermost."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:  # there is something in it
            return


def _read_record(path: Path) -> dict[str, Any] | None:
    """Read the record; None if it is missing, damaged or of another version."""
    try:
        checksum, _, text = (path / RECORD).read_text(encoding="utf-8").partition("\n")
        if checksum != sha256(text.removesuffix("\n").encode()).hexdigest():
            return None
        record: dict[str, Any] = parse_json(text, _RECORD, f"{path / RECORD} is damaged")
    except (OSError, ValueError):
        return None
    return record if record["format"] == FORMAT else None


_NAME = Text(longest=255)
_RECORD = Record(
    {
        "format": Whole(),
        "identity": MapOf(Anything()),
        "parts": MapOf(Record({"file": _NAME, "sha256": _NAME})),
    }
)


_NOTHING = object()


def _check_same(path: Path, saved: Identity, now: Identity) -> None:
    # What is left out is not None, but whatever the default is.
    there, here = ({n: repr(one[n]) for n in one} for one in (saved, now))
    different = [n for n in {**there, **here} if n not in here or saved.get(n, _NOTHING) != now[n]]
    if different:
        left_out = "left out"
        lines = [
            f"  {n}: there {there.get(n, left_out)}, now {here.get(n, left_out)}" for n in different
        ]
        raise DataError(
            f"{path} holds a run of another {_kind(different)}:\n"
            + "\n".join(lines)
            + "\nChoose another folder, or delete it to start anew"
        )


def _kind(different: list[str]) -> str:
    kinds = {
        "model": "model",
        "niwaki": "version of niwaki",
        **dict.fromkeys(("data", "test", "validation", "training"), "data"),
    }
    return " and ".join(dict.fromkeys(kinds.get(name, "setting") for name in different))


def _file_name(name: str) -> str:
    """Turn the name of a part into that of a file; the record knows what it was."""
    return re.sub(r"[^A-Za-z0-9_+~.-]", "_", name).lstrip(".")[:80]
