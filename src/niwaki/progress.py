"""One progress bar for every loop, shown only to a person at a terminal."""

import sys
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from niwaki.terminal import Terminal, clean

__all__ = ["track"]

T = TypeVar("T")


def track(
    iterable: Iterable[T],
    description: str,
    total: float | None = None,
    show: bool | None = None,
) -> Iterator[T]:
    """Hand on what `iterable` yields and show on stderr how far it is.

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

    Yields
    ------
    T
        The items, in order.
    """
    if show is None:
        show = sys.stderr.isatty()
    if not show:
        yield from iterable
        return
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Terminal(stderr=True)) as progress:
        yield from progress.track(iterable, total=total, description=clean(description))
