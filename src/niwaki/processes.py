"""Several processes that a launcher has started together: refused, until niwaki can use them."""

from __future__ import annotations

import os
import sys

from niwaki.errors import NiwakiError

__all__ = ["check_alone"]

_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


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
    count = max(_count(), _initialised())
    if count > 1:
        raise NiwakiError(
            f"{what} under a launcher with {count} processes: each of them would do the whole "
            "work, and they would get in each other's way. Start it once, without torchrun, "
            "accelerate launch or mpirun"
        )


def _count() -> int:
    sizes = [os.environ.get(name, "") for name in _SIZES]
    ranks = [os.environ.get(name, "") for name in ("RANK", "OMPI_COMM_WORLD_RANK")]
    known = [int(size) for size in sizes if size.isdecimal()]
    return max([1, *known, *(int(rank) + 1 for rank in ranks if rank.isdecimal())])


def _initialised() -> int:
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available():
        return 1
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_initialized() else 1
