"""One progress bar for every loop, shown only to a person at a terminal."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager, suppress
from typing import TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from niwaki.processes import is_first
from niwaki.terminal import Terminal, clean

__all__ = ["bar", "track"]

T = TypeVar("T")


def track(
    iterable: Iterable[T],
    description: str,
    total: float | None = None,
    show: bool | None = None,
    size: Callable[[T], float] | None = None,
) -> Iterator[T]:
    """Yield what `iterable` yields, and show its progress on stderr.

    Parameters
    ----------
    iterable
        What to loop over.
    description
        Stands before the bar.
    total
        Number of steps; by default the length of `iterable`, where it has one.
    show
        True or False decides; None shows the bar only when stderr is a terminal.
    size
        How many steps an item is; by default 1.

    Yields
    ------
    T
        The items, in order.
    """
    if total is None and isinstance(iterable, Sized):
        with suppress(TypeError):  # a loader of a stream has a length that it does not know
            total = len(iterable)
    with bar(description, total, show) as advance:
        for item in iterable:
            yield item
            advance(1 if size is None else size(item))


@contextmanager
def bar(
    description: str, total: float | None, show: bool | None = None
) -> Iterator[Callable[[float], None]]:
    """Show the progress on stderr of work that reports it by itself.

    Parameters
    ----------
    description
        Stands before the bar.
    total
        When it is done; None where that is not known.
    show
        As for `track`.

    Yields
    ------
    callable
        Takes the number of steps that were done since the last call.
    """
    if show is None:
        show = sys.stderr.isatty() and is_first()
    if not show:
        yield lambda _: None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Terminal(stderr=True)) as progress:
        task = progress.add_task(clean(description), total=total)
        yield lambda done: progress.advance(task, done)
