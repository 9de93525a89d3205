"""Where a command's time goes: its stages, and how much of each several processes would share.

Nothing is measured unless somebody asks for it by `recorded`. Then a `Ledger` is kept, and may ask
for less work than there is: the command takes so many images or steps as `allowed` says.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TypeVar

__all__ = [
    "Ledger",
    "Stage",
    "allowed",
    "handed_out",
    "is_recorded",
    "recorded",
    "sent",
    "shared",
    "stage",
    "turn",
]

T = TypeVar("T")
REST = "everything else"


@dataclass
class Stage:
    """What one stage took, over all times that it ran.

    Attributes
    ----------
    seconds : float
        All of it, without the stages within.
    busy : float
        Seconds in which a processor worked for it, on each of its processors, with what its own
        workers did.
    shared : float
        Those of the seconds that several processes would share among them.
    loops, turns : float
        How often there was something to share, and into how many parts it falls altogether.
    sent, messages : float
        Bytes that each of several processes would tell the others, and how often.
    """

    seconds: float = 0.0
    busy: float = 0.0
    shared: float = 0.0
    loops: float = 0
    turns: float = 0
    sent: float = 0
    messages: float = 0


@dataclass
class Ledger:
    """What a command has done.

    Attributes
    ----------
    limits : mapping of str to float
        How much it may do, of what `allowed` is asked for.
    counts : dict of str to int
        How much there is of each.
    done : dict of str to int
        How much it did.
    stages : dict of str to Stage
        By name.
    """

    limits: Mapping[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    done: dict[str, int] = field(default_factory=dict)
    stages: dict[str, Stage] = field(default_factory=lambda: {REST: Stage()})
    _names: list[str] = field(default_factory=lambda: [REST])
    _within: int = 0
    _since: float = 0.0
    _worked: float = 0.0

    @property
    def current(self) -> Stage:
        """The stage that runs."""
        return self.stages.setdefault(self._names[-1], Stage())

    def settle(self) -> None:
        """Charge the time since the last call to the stage that runs."""
        now, worked = time.perf_counter(), processor_seconds()
        passed, self._since = now - self._since, now
        self.current.seconds += passed
        self.current.busy += worked - self._worked
        self._worked = worked
        if self._within:
            self.current.shared += passed

    @contextmanager
    def running(self, name: str | None) -> Iterator[None]:
        """Charge a block to a stage; None: to the one that runs, as time that is shared."""
        self.settle()
        if name is None:
            self._within += 1
        else:
            self._names.append(name)
        try:
            yield
        finally:
            self.settle()
            if name is None:
                self._within -= 1
            else:
                self._names.pop()


def processor_seconds() -> float:
    """Return how long processors have worked for this process and its children that have ended."""
    return sum(os.times()[:4])


_ledger: ContextVar[Ledger | None] = ContextVar("ledger", default=None)


@contextmanager
def recorded(limits: Mapping[str, float] | None = None) -> Iterator[Ledger]:
    """Keep a ledger of what is done within a block.

    Parameters
    ----------
    limits
        See `Ledger`.
    """
    kept = Ledger(limits or {}, _since=time.perf_counter(), _worked=processor_seconds())
    token = _ledger.set(kept)
    try:
        yield kept
    finally:
        kept.settle()
        _ledger.reset(token)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Give a block, or as a decorator a function, a name in the ledger."""
    kept = _ledger.get()
    if kept is None:
        yield
        return
    with kept.running(name):
        yield


@contextmanager
def shared() -> Iterator[None]:
    """Say that several processes would share the work within a block."""
    kept = _ledger.get()
    if kept is None:
        yield
        return
    with kept.running(None):
        yield


def handed_out(parts: Iterable[T]) -> Iterator[T]:
    """Hand on the parts of a loop that several processes would share, and count them."""
    for number, part in enumerate(parts):
        turn(number)
        yield part


def turn(number: int) -> None:
    """Note that a part of a loop is somebody's turn; each loop begins with the number 0."""
    kept = _ledger.get()
    if kept is not None:
        kept.current.loops += number == 0
        kept.current.turns += 1


def sent(size: int) -> None:
    """Note that several processes would tell each other so many bytes."""
    kept = _ledger.get()
    if kept is not None:
        kept.current.sent += size
        kept.current.messages += 1


def is_recorded() -> bool:
    """Whether somebody keeps a ledger."""
    return _ledger.get() is not None


def allowed(what: str, count: int, of: int = 1) -> int:
    """Return how much a command may do of something: all there is, unless a ledger says less.

    Parameters
    ----------
    what
        Such as images or steps.
    count
        How much there is.
    of
        The unit of the limit, such as the size of a batch.
    """
    kept = _ledger.get()
    if kept is None:
        return count
    kept.counts[what] = count
    limit = kept.limits.get(what)
    kept.done[what] = count if limit is None else min(count, max(1, round(limit * of)))
    return kept.done[what]
