"""What the machine offers a process: memory, and whether others share the work."""

from __future__ import annotations

import os
import re
import sys
from math import isfinite
from pathlib import Path

from niwaki import processes
from niwaki.errors import NiwakiError

__all__ = ["check_alone", "parse_bytes", "peak_memory", "physical", "shown"]


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_LEAST = 2**20
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def parse_bytes(size: int | str, what: str = "max_memory =") -> int:
    """Read a number of bytes such as 2_000_000, "500MB" or "2GB" (powers of 1024).

    Raises
    ------
    NiwakiError
        For anything else, and for less than 1 MB or more than 1024 TB: in less, the work is cut
        into so many pieces that it does not end.
    """
    found = 0.0
    if isinstance(size, int) and not isinstance(size, bool):
        found = size
    elif match := re.fullmatch(r"\s*([0-9.]+)\s*([KMGT]?)i?B?\s*", str(size), re.IGNORECASE):
        try:
            found = float(match[1]) * _UNITS[match[2].upper()]
        except ValueError:
            found = 0
    if not (isfinite(found) and _LEAST <= found <= 2**50):
        raise NiwakiError(
            f"{what} {size!r}: give a number of bytes, or such as '500MB' or '2GB', and no less "
            "than '1MB'"
        )
    return int(found)


def physical() -> int:
    """Return the bytes of memory that this process may use at the most."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in _LIMITS:
        try:
            found = min(found, int(Path(limit).read_text()))
        except (OSError, ValueError):  # no limit, or another system
            continue
    return found


def peak_memory() -> int:
    """Return the most bytes of memory that this process has had so far."""
    try:
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        return 2**10 * int(found[1]) if found else 0
    except OSError:  # another system; what it counts includes the moment before Python started
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else 2**10 * most


def shown(size: float) -> str:
    """Return a number of bytes as a person reads it."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:,.3g} TB"


def check_alone(what: str) -> None:
    """Refuse to do in each of several processes what is one piece of work.

    Parameters
    ----------
    what
        The work, for the message.

    Raises
    ------
    NiwakiError
        Under ``torchrun``, ``accelerate launch`` or ``mpirun`` with more than one process.
    """
    count = max(processes.launched(), processes.size())
    if count > 1 and not processes.is_alone():
        raise NiwakiError(
            f"{what} under a launcher with {count} processes: each of them would do the whole "
            "work, and they would get in each other's way. Start it once, without torchrun, "
            "accelerate launch or mpirun"
        )
