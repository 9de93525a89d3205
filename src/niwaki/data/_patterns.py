"""Patterns that stand for many files, as shells and WebDataset have them."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from pathlib import Path

from niwaki.errors import DataError

__all__ = ["find_shards"]

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST = 1_000_000  # files


def find_shards(pattern: str, *, some: bool = True) -> list[Path]:
    """List the files that a pattern stands for, in its order, each once.

    Parameters
    ----------
    pattern
        Paths with ``{000..009}`` and ``{a,b}``, which stand for files that must all be there, and
        with ``*``, ``?`` and ``[...]``, which stand for those that are there.
    some
        Whether there must be one at all.

    Raises
    ------
    DataError
        A file that is missing.
    """
    if "://" in pattern or pattern.startswith("pipe:"):
        raise DataError(
            f"the shards {pattern} are not on this machine; download them first: images are read "
            "several times, and not in order"
        )
    found: dict[Path, None] = {}
    missing: list[str] = []
    for name in _expanded(str(Path(pattern).expanduser())):
        if Path(name).is_file():
            found[Path(name)] = None
        elif matching := [Path(p) for p in sorted(glob.glob(name)) if Path(p).is_file()]:
            found.update(dict.fromkeys(matching))
        else:
            missing.append(name)
    if missing and (some or found):
        raise DataError(
            f"{len(missing)} of {len(missing) + len(found)} shards are missing, the first is "
            f"{missing[0]}; webdataset: takes the paths of tar files, such as "
            "'webdataset:shards/train-{000..009}.tar' or 'webdataset:shards/*.tar' (in quotes, "
            "because of the shell)"
        )
    return list(found)


def _expanded(pattern: str) -> Iterator[str]:
    """Yield what the braces in a pattern stand for."""
    for braces in _BRACES.finditer(pattern):
        words = _words(braces[1])
        if words is not None:
            for word in words:
                yield from _expanded(pattern[: braces.start()] + word + pattern[braces.end() :])
            return
    yield pattern


def _words(inner: str) -> list[str] | None:
    """Return what stands between braces one by one; None if it is nothing to be expanded."""
    numbers = _RANGE.fullmatch(inner)
    if numbers is None:
        return inner.split(",") if "," in inner else None
    first, last = int(numbers[1]), int(numbers[2])
    if abs(last - first) >= _MOST:
        raise DataError(f"{{{inner}}} stands for more than {_MOST:,} shards")
    # 08..12 counts 08, 09, 10, ..., as in bash.
    padded = any(len(number) > 1 and number[0] == "0" for number in numbers.groups())
    width = max(map(len, numbers.groups())) if padded else 0
    step = 1 if last >= first else -1
    return [f"{number:0{width}}" for number in range(first, last + step, step)]
