"""A folder in which one process works at a time."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from niwaki.errors import NiwakiError
from niwaki.files import is_dead

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows, where only the owner in the file says whether it is held
    fcntl = None

__all__ = ["LOCK", "locked"]

LOCK = "niwaki.lock"
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextmanager
def locked(folder: str | Path) -> Iterator[Callable[[], bool]]:
    """Hold a folder for this process; the operating system lets go of it when the process dies.

    Parameters
    ----------
    folder : str or Path
        Must exist. While it is held it contains ``niwaki.lock``, which names the owner.

    Yields
    ------
    callable
        Whether this process holds it still: not in a child that was forked off, nor when the
        lock was deleted, as a person may who takes the owner for dead.

    Raises
    ------
    NiwakiError
        If another process, or this one, holds it already: says which, where and since when.
    """
    path = Path(folder) / LOCK
    handle = _take(path)
    owner, released = os.getpid(), False

    def is_held() -> bool:
        return not released and os.getpid() == owner and _is_still(handle, path)

    try:
        yield is_held
    finally:
        # Gone before it is released: whoever gets hold of the old file sees that it is none.
        if is_held():
            path.unlink(missing_ok=True)
        released = True
        os.close(handle)


def _take(path: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if _lock(handle):
                if _is_still(handle, path):
                    _sign(handle, path)
                    return handle
            else:
                owner = _read(handle)
                here = owner.get("host") == socket.gethostname()
                if not (here and is_dead(int(owner["pid"]))):
                    raise NiwakiError(_refusal(path, owner))
                if _is_still(handle, path):  # only children of the dead hold it
                    path.unlink(missing_ok=True)
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _lock(handle: int) -> bool:
    """Whether the lock is ours now."""
    if fcntl is not None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                return False
    return os.fstat(handle).st_size == 0  # nobody has signed it


def _is_still(handle: int, path: Path) -> bool:
    """Whether an open file is the one of that path, or was deleted meanwhile."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _sign(handle: int, path: Path) -> None:
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(owner).encode(), 0)
    except OSError:  # the disk is full
        path.unlink(missing_ok=True)
        raise


def _read(handle: int) -> dict[str, Any]:
    found: Any = None
    with contextlib.suppress(ValueError):  # just being written
        found = json.loads(os.pread(handle, 4096, 0))
    return found if isinstance(found, dict) else {}


def _refusal(path: Path, owner: dict[str, Any]) -> str:
    if owner.get("pid") == os.getpid() and owner.get("host") == socket.gethostname():
        who = "this process itself"
    else:
        who = f"process {owner.get('pid', 'unknown')} on {owner.get('host', 'unknown')}"
    age = max(0.0, time.time() - float(owner.get("since", time.time())))
    since = f"{age:.0f} s" if age < 120 else f"{age / 60:.0f} min"
    return (
        f"{path.parent} is in use by {who}, for {since}. Wait for it, or choose another folder; "
        f"if no such process exists, delete {path}"
    )
