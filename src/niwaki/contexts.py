"""What a caller's context does to numbers, and how niwaki stays out of it and leaves it alone.

Within ``torch.autocast`` a network computes in half precision, and torch keeps halved copies of
weights that no longer follow when these change. Within ``torch.inference_mode`` no derivative can
be taken of what is made. Neither is meant for what niwaki computes: relevance and the effects of
single filters are small differences of large numbers.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import wraps
from inspect import isgenerator
from typing import Any, ParamSpec, TypeVar

__all__ = ["seeded", "undisturbed"]

P = ParamSpec("P")
R = TypeVar("R")
_DEVICES = ("cpu", "cuda", "mps", "xpu")


def undisturbed(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function compute the same within `torch.autocast` or `torch.inference_mode` as outside.

    The caller's contexts are left while it runs, and are as before when it returns. A generator
    leaves them anew for each value.
    """

    @wraps(function)
    def plainly(*args: P.args, **kwargs: P.kwargs) -> R:
        with _left():
            found = function(*args, **kwargs)
        return _each(found) if isgenerator(found) else found  # type: ignore[return-value]

    return plainly


def _each(steps: Generator[Any, Any, Any]) -> Iterator[Any]:
    with closing(steps):
        while True:
            with _left():
                try:
                    value = next(steps)
                except StopIteration:
                    return
            yield value


@contextmanager
def seeded(seed: int, gpus: Sequence[int] = ()) -> Iterator[None]:
    """Seed the generators that anybody may draw from; afterwards they are as they were before.

    Parameters
    ----------
    seed : int
        For torch, NumPy and Python.
    gpus : sequence of int
        The devices whose generators count as well.
    """
    import numpy as np
    import torch

    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(gpus):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def _left() -> Iterator[None]:
    import torch  # which the command line's help does without

    with ExitStack() as left:
        if torch.is_inference_mode_enabled():
            left.enter_context(torch.inference_mode(False))
            left.enter_context(torch.no_grad())  # as it was, without the mode
        for device in _DEVICES:
            if torch.is_autocast_enabled(device):
                left.enter_context(torch.autocast(device, enabled=False))
        yield
