"""Several processes at one piece of work: who takes which part, and how their parts come together.

Processes are those of the group of `torch.distributed` that is initialised. Without one there is a
single process, which takes all parts: the same functions serve, and do nothing. All of them have to
be called by every process, in the same order.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import (
    AbstractContextManager,
    ExitStack,
    contextmanager,
    nullcontext,
    redirect_stdout,
)
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from niwaki import stages
from niwaki.errors import LostProcessError, NiwakiError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = [
    "add_up",
    "agreed",
    "alone",
    "check_same",
    "decided",
    "gathered",
    "goes_on_alone",
    "check_joined",
    "held_by_first",
    "is_alone",
    "is_first",
    "is_mine",
    "joined",
    "launched",
    "local_rank",
    "may_speak",
    "rank",
    "size",
    "summed",
]

T = TypeVar("T")
_PATIENCE = timedelta(hours=6)  # the first process may write or read for long, all by itself
_TO_JOIN = timedelta(minutes=10)  # on a cluster not all start at once
_MOMENT = 2.0  # seconds
_alone: ContextVar[bool] = ContextVar("alone", default=False)
_store: Any = None  # of the group that `joined` has made


def size() -> int:
    """Return how many processes there are."""
    distributed = _distributed()
    return 1 if distributed is None else int(distributed.get_world_size())


def rank() -> int:
    """Return the number of this process, from 0 on."""
    distributed = _distributed()
    return 0 if distributed is None else int(distributed.get_rank())


def is_first() -> bool:
    """Whether this is the process that writes."""
    return rank() == 0


def is_mine(number: int) -> bool:
    """Whether a part falls to this process: they take turns."""
    stages.turn(number)
    return number % size() == rank()


@contextmanager
def alone() -> Iterator[None]:
    """Let this process work by itself within a `with` block, whatever the others do.

    Examples
    --------
    >>> if torch.distributed.get_rank() == 0:
    ...     with niwaki.processes.alone():
    ...         print(niwaki.evaluation.accuracy(model, test_set))
    """
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def goes_on_alone() -> bool:
    """Whether this process is the first, which goes on by itself; the others are done.

    What it calls from then on, until it ends, waits for no other.
    """
    if is_first():
        _alone.set(True)
        return True
    return False


def is_alone() -> bool:
    """Whether this process works by itself, see `alone`."""
    return _alone.get()


def check_joined(what: str) -> None:
    """Refuse work that processes of a launcher would do without knowing of each other.

    Parameters
    ----------
    what
        The work, for the message.
    """
    if launched() > 1 and size() == 1 and not is_alone():
        raise NiwakiError(
            f"{what} under a launcher with {launched()} processes that do not know of each other: "
            "they would get in each other's way. Call torch.distributed.init_process_group first, "
            "or start it once, without torchrun, accelerate launch or mpirun"
        )


def gathered(value: T) -> list[T]:
    """Return what each process has, in the order of their ranks; it has to be picklable."""
    if size() == 1:
        if stages.is_recorded():
            stages.sent(len(pickle.dumps(value)))
        return [value]
    found: list[Any] = [None] * size()
    with _connected() as distributed:
        distributed.all_gather_object(found, value)
    return found


def decided(compute: Callable[[], T]) -> T:
    """Let the first process compute something, alone, and return it in all; so do its errors.

    What follows from floating-point numbers, as the order of units by their scores does, is decided
    in one place: machines of other kinds round in other ways.
    """
    if size() == 1:
        return compute()
    told: list[Any] = [None, None]
    if is_first():
        try:
            with alone():
                told = [compute(), None]
        except Exception as error:
            told = [None, _portable(error)]
            _broadcast(told)
            raise
    _broadcast(told)
    if told[1] is not None:
        raise told[1]
    value: T = told[0]
    return value


@contextmanager
def agreed() -> Iterator[None]:
    """Let an error of one process within the block be one of all, so that none waits for it."""
    if size() == 1:
        with nullcontext() if is_alone() else stages.shared():
            yield
        return
    mine: Exception | None = None
    try:
        yield
    except LostProcessError:  # nobody is left to be told
        raise
    except Exception as error:
        mine = error
    errors = gathered(None if mine is None else _portable(mine))
    first = next((n for n, error in enumerate(errors) if error is not None), None)
    if mine is not None and first == rank():
        raise mine
    if first is not None and (theirs := errors[first]) is not None:
        raise theirs


@contextmanager
def held_by_first(context: Callable[[], AbstractContextManager[T]]) -> Iterator[T | None]:
    """Enter a context in the first process alone, before any goes on; the others get None."""
    with ExitStack() as stack:
        with agreed():
            held = stack.enter_context(context()) if is_first() else None
        yield held


def summed(
    tensors: Mapping[str, Tensor],
    device: torch.device | None = None,
    rests: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return the sums over all processes of named tensors, in double precision.

    A process may lack a name. The sums are bit by bit the same everywhere, and for however many
    processes.

    Parameters
    ----------
    tensors
        Those of this process, by name.
    device
        Where the sums are then; default: where the tensors are.
    rests
        What is to be added to some of these tensors, and is too small for a double to hold.
    """
    import torch

    from niwaki.exact import buckets

    double = torch.float64
    if size() == 1:
        stages.sent(16 * sum(value.numel() for value in tensors.values()))
        return {name: value.detach().to(double) for name, value in tensors.items()}
    shapes: dict[str, Any] = {}
    for other in gathered({name: value.shape for name, value in tensors.items()}):
        for name, shape in other.items():
            if shapes.setdefault(name, shape) != shape:
                raise NiwakiError(
                    f"{name!r} has the shape {tuple(shape)} in one process and "
                    f"{tuple(shapes[name])} in another: they do not do the same work"
                )
    place = device or next((value.device for value in tensors.values()), torch.device("cpu"))
    found: dict[str, Tensor] = {}
    for names in buckets({name: shape.numel() for name, shape in shapes.items()}):
        whole, rest = (
            [
                given[n].detach().to("cpu", double).flatten()
                if n in given
                else torch.zeros(shapes[n].numel(), dtype=double)
                for n in names
            ]
            for given in (tensors, rests or {})
        )
        flat = _added_exactly(torch.cat(whole), torch.cat(rest), [len(part) for part in whole])
        for name, part in zip(names, torch.split(flat, [len(p) for p in whole]), strict=True):
            found[name] = part.view(shapes[name]).to(place)
    return found


def _added_exactly(values: Tensor, rests: Tensor, lengths: list[int]) -> Tensor:
    """Add up parts of so many values over all processes, in whole numbers."""
    import torch

    from niwaki.exact import as_counts, from_counts, room_for, units

    parts = torch.split(values.abs(), lengths)
    largest = torch.stack([part.amax() if len(part) else part.sum() for part in parts])
    largest = largest.nan_to_num(nan=torch.inf)
    with _connected() as distributed:
        distributed.all_reduce(largest, distributed.ReduceOp.MAX)
        if not bool(largest.isfinite().all()):  # there is no unit for these
            distributed.all_reduce(values)
            return values
        room = room_for(size())
        unit = units(largest, lengths, room)
        counts = as_counts(values, rests, unit, room)
        distributed.all_reduce(counts)
    return from_counts(counts, unit, room)


def add_up(tensor: Tensor) -> None:
    """Replace a tensor by the sum over all processes, where it lies and as precise as it is."""
    if size() == 1:
        stages.sent(tensor.numel() * tensor.element_size())
        return
    with _connected() as distributed:
        distributed.all_reduce(tensor)


def check_same(what: str, marks: Sequence[tuple[str, str]]) -> None:
    """Refuse to go on where processes do not have the same, part by part.

    Parameters
    ----------
    what
        Names it in the message.
    marks
        The parts by name, each with its hash.

    Raises
    ------
    NiwakiError
        Naming the first difference.
    """
    everywhere = gathered(list(marks))
    for number, other in enumerate(everywhere):
        if other == everywhere[0]:
            continue
        ours, theirs = dict(everywhere[0]), dict(other)
        names = [n for n in {**ours, **theirs} if ours.get(n) != theirs.get(n)]
        where = f"the first difference is in {names[0]!r}" if names else "their order differs"
        raise NiwakiError(
            f"process {number} has another {what} than process 0: {where}. Build it in each "
            "process from the same file, or from the same seed"
        )


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes that a launcher has started, until the block ends; only the first prints.

    Raises
    ------
    NiwakiError
        If the launcher does not say how they find each other.
    LostProcessError
        If they do not all join within ten minutes.
    """
    global _store  # noqa: PLW0603 - a process joins once
    if launched() == 1:
        try:
            yield
        finally:
            _alone.set(False)
        return
    missing = [n for n in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if not _given(n)]
    if missing:
        raise NiwakiError(
            f"{launched()} processes were started, but not how they find each other: "
            f"{', '.join(missing)} is not set. Start them by torchrun or accelerate launch"
        )
    # When a process has ended, torch would warn of it with its own stack beside our one line.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    import torch
    from torch import distributed
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    # Who ends before all have joined does not break a connection: nobody waits for it longer.
    try:
        kept, number, count = next(iter(rendezvous("env://", timeout=_TO_JOIN)))
        # torchrun keeps its store when it starts all again: addresses of the dead are still in it.
        _store = PrefixStore(f"start {_given('TORCHELASTIC_RESTART_COUNT')}", kept)
        distributed.init_process_group(
            backend, store=_store, rank=number, world_size=count, timeout=_TO_JOIN
        )
    except RuntimeError as error:  # of gloo, NCCL and the store
        raise LostProcessError(
            f"process {_given('RANK')} of {launched()} cannot reach the others, of which one may "
            f"have ended: {str(error).strip().partition(chr(10))[0]}"
        ) from error
    kept.set_timeout(_PATIENCE)
    _set_timeout()(_PATIENCE)
    try:
        with ExitStack() as stack:
            if number:
                nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
                stack.enter_context(redirect_stdout(nowhere))
            yield
    finally:
        _alone.set(False)
        distributed.destroy_process_group()


def _set_timeout() -> Any:
    """Return what changes the patience of a group; in older torch it has no public name."""
    from torch import distributed

    public = getattr(distributed, "set_timeout", None)
    return public or distributed.distributed_c10d._set_pg_timeout


def launched() -> int:
    """Return how many processes a launcher says that it has started."""
    sizes = [_given(name) for name in ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")]
    ranks = [_given(name) for name in ("RANK", "OMPI_COMM_WORLD_RANK")]
    known = [int(size) for size in sizes if size.isdecimal()]
    return max([1, *known, *(int(rank) + 1 for rank in ranks if rank.isdecimal())])


def local_rank() -> int | None:
    """Return the number of this process on its machine; None where there is no launcher."""
    number = _given("LOCAL_RANK")
    return int(number) if number.isdecimal() and launched() > 1 else None


def may_speak() -> bool:
    """Whether this process tells of an error: the first one that asks, so that one line appears.

    The others wait a little, as a launcher ends all processes when the first one has ended.
    """
    if launched() == 1 or _is_first_to_ask():
        return True
    time.sleep(_MOMENT)
    return False


def _is_first_to_ask() -> bool:
    if _store is None:
        return _given("RANK") in ("", "0")
    try:
        return int(_store.add("an error was told", 1)) == 1
    except RuntimeError:  # whoever kept the store is gone, and has told of it
        return False


def _given(name: str) -> str:
    return os.environ.get(name, "")


def _distributed() -> Any:
    """Return `torch.distributed` where there are several processes; torch is not imported."""
    torch = sys.modules.get("torch")
    if torch is None or _alone.get() or not torch.distributed.is_available():
        return None
    return torch.distributed if torch.distributed.is_initialized() else None


@contextmanager
def _connected() -> Iterator[Any]:
    try:
        yield _distributed()
    except RuntimeError as error:  # of gloo and NCCL
        raise LostProcessError(
            "the connection to another process is lost, which has ended or cannot be reached; what "
            "is finished is kept: start the same command again, and it resumes from there"
        ) from error


def _broadcast(told: list[Any]) -> None:
    with _connected() as distributed:
        distributed.broadcast_object_list(told, src=0)


def _portable(error: Exception) -> Exception:
    """Return an error that another process can read, if need be its text alone."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        kind = NiwakiError if isinstance(error, NiwakiError) else RuntimeError
        return kind(str(error))
