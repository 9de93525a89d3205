"""Whether a network's answer for an image is always the same: no chance, no memory, no neighbours.

A number about a network that answers otherwise when it is asked again is a number about nothing.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from niwaki.errors import BatchDependenceWarning, ModelError

__all__ = ["check_steady", "varied"]

_AGAIN = 16  # passes in which numbers that a network draws may show in its output
_SAME = 1e-5  # of the largest output: what rounding makes of the same inputs
_ALONE = {"cpu": 1e-4}  # the same for batches of other sizes, for which there are other kernels
_ALONE_ELSEWHERE = 1e-2


@dataclass(frozen=True)
class _Steady:
    """A network that was found steady: a second look costs no pass.

    Attributes
    ----------
    look : int
        A hash of its settings, so that it is asked again once anything but weights has changed.
    notes : frozenset
        The settings that its own passes change, such as a count of calls, and that do not count.
    alone : bool
        Whether it judges each image alone.
    """

    look: int
    notes: frozenset[Any]
    alone: bool


_KNOWN: WeakKeyDictionary[nn.Module, _Steady] = WeakKeyDictionary()


def check_steady(model: nn.Module, inputs: Tensor) -> None:
    """Refuse a network whose answer for an image depends on chance or on what it was asked before.

    The first time that a network is seen, it is asked a few times about two images that are made
    from the first of the inputs. Its buffers and the generators of random numbers stay as they
    were. A network that fails here is not judged: it fails again where it is used.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode.
    inputs : Tensor
        Shape (N, ...), floating point.

    Raises
    ------
    ModelError
        If it draws random numbers, or changes itself in its forward pass.

    Warns
    -----
    BatchDependenceWarning
        If the answer for an image depends on what else is in the batch.
    """
    if any(module.training for module in model.modules()):
        return  # that is refused for another reason
    settings, known = _settings(model, inputs), _KNOWN.get(model)
    if known is None or _look(settings, known.notes) != known.look:
        alone = _judged(getattr(model, "_orig_mod", model), inputs[:1]) if len(inputs) else None
        if alone is None:
            return
        after = _settings(model, inputs)
        notes = frozenset(k for k in {**settings, **after} if settings.get(k) != after.get(k))
        _KNOWN[model] = known = _Steady(_look(after, notes), notes, alone)
    if not known.alone:
        warnings.warn(
            f"what {type(model).__name__} says of an image depends on what else is in the batch, "
            "also in evaluation mode (such as by batch norms without running statistics, or a mean "
            "over the batch), and so do all numbers about it: they change with the batch size. Let "
            "it judge each image alone",
            BatchDependenceWarning,
            stacklevel=4,
        )


def _judged(network: nn.Module, image: Tensor) -> bool | None:
    """Return whether a network judges each image alone; None where it fails."""
    rows = torch.cat([image, 2 * varied(image)])  # larger: a maximum over both is another one
    try:
        with torch.no_grad(), _restored(network) as changes:
            first, drawn = _ask(network, rows), changes.drawn()
            again = any(
                _differ(_ask(network, rows), first, _SAME) for _ in range(_AGAIN if drawn else 1)
            )
            buffer, alone = changes.buffer(), _ask(network, image)
            source = _source(network, rows) if again and drawn else ""
    except Exception as error:
        if isinstance(error, MemoryError) or "out of memory" in str(error):
            raise
        return None
    if again or buffer:
        raise ModelError(_unsteady(network, source, buffer))
    return not _differ(alone, first[:1], _ALONE.get(image.device.type, _ALONE_ELSEWHERE))


def varied(images: Tensor) -> Tensor:
    """Return images that differ from these and from each other, the same in each call."""
    generator = torch.Generator().manual_seed(0)
    factors = torch.rand(images.shape, generator=generator, dtype=torch.float64) + 0.5
    factors = factors.to(images)
    return torch.where(images == 0, factors - 1, images * factors)


def _ask(network: nn.Module, rows: Tensor) -> Tensor:
    found = network(rows.clone())  # which it may overwrite
    if not isinstance(found, Tensor) or not found.is_floating_point():
        raise TypeError("no tensor")
    return found.reshape(len(rows), -1).clone()


def _differ(found: Tensor, expected: Tensor, share: float) -> bool:
    share = max(share, 8 * torch.finfo(expected.dtype).eps)
    size = float(expected.abs().max())
    return found.shape == expected.shape and float((found - expected).abs().max()) > share * size


def _unsteady(network: nn.Module, source: str, buffer: str) -> str:
    name = type(network).__name__
    if source:
        return (
            f"{name} draws random numbers in its forward pass ({source}), also in evaluation mode: "
            "its outputs and all numbers about it depend on chance. Let it draw only "
            "`if self.training` (dropout: training=self.training)"
        )
    if buffer:
        return (
            f"{name} changes its buffer {buffer!r} in its forward pass, also in evaluation mode, "
            "so that looking at it would change it. Let it do so only `if self.training`, or "
            "switch its observers off"
        )
    return (
        f"{name} returns other outputs when it gets the same inputs again, also in evaluation "
        "mode: it changes in its forward pass, or draws random numbers of its own. Let it do so "
        "only `if self.training`"
    )


def _settings(model: nn.Module, inputs: Tensor) -> dict[Any, Any]:
    """List what decides how a network computes, but for its tensors: settings, hooks, code."""
    found: dict[Any, Any] = {"type": inputs.dtype, "device": inputs.device}
    for number, module in enumerate(model.modules()):
        found[number] = type(module)
        for name, value in vars(module).items():
            if isinstance(value, dict):
                if name not in ("_parameters", "_buffers", "_modules"):
                    found |= {(number, name, key): id(one) for key, one in value.items()}
            elif isinstance(value, (bool, int, float, str)):
                found[number, name] = value
            elif not isinstance(value, Tensor):
                found[number, name] = id(value)
    return found


def _look(settings: Mapping[Any, Any], notes: frozenset[Any]) -> int:
    return hash(frozenset(item for item in settings.items() if item[0] not in notes))


class _Changes:
    """What a network changes: its buffers, and the generators of random numbers."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._buffers = {name: (one, one.clone()) for name, one in network.named_buffers()}
        self._states = _states()

    def drawn(self) -> bool:
        """Whether random numbers were drawn."""
        return any(map(_moved, _states(), self._states))

    def buffer(self) -> str:
        """Return the name of the first buffer that has other values; "" if there is none."""
        now = dict(self._network.named_buffers())
        return next(
            (name for name, (_, was) in self._buffers.items() if not _same(now.get(name), was)), ""
        )

    def undo(self) -> None:
        """Put everything back."""
        now = dict(self._network.named_buffers())
        for name, (one, was) in self._buffers.items():
            if not _same(now.get(name), was):
                one.copy_(was)
                where, _, own = name.rpartition(".")
                self._network.get_submodule(where)._buffers[own] = one
        if self.drawn():
            python, numpy, own, *devices = self._states
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
            torch.set_rng_state(own)
            for number, state in enumerate(devices):
                torch.cuda.set_rng_state(state, number)


@contextmanager
def _restored(network: nn.Module) -> Iterator[_Changes]:
    changes = _Changes(network)
    try:
        yield changes
    finally:
        changes.undo()


def _states() -> tuple[Any, ...]:
    """Return where the generators are that anybody may draw from without having one."""
    used: Any = torch.cuda.is_initialized  # without types of its own
    devices = torch.cuda.get_rng_state_all() if used() else []
    return (random.getstate(), np.random.get_state(), torch.get_rng_state(), *devices)  # noqa: NPY002


def _moved(now: Any, before: Any) -> bool:
    if isinstance(now, Tensor):
        return not torch.equal(now, before)
    return not all(np.array_equal(one, other) for one, other in zip(now, before, strict=True))


def _same(now: Tensor | None, before: Tensor) -> bool:
    if now is None or now.shape != before.shape:
        return False
    return bool(((now == before) | (now.isnan() & before.isnan())).all())


def _source(network: nn.Module, rows: Tensor) -> str:
    """Say which operation draws random numbers."""
    with _Drawing() as drawing:
        _ask(network, rows)
    return drawing.name or "of Python or NumPy"


class _Drawing(TorchFunctionMode):
    """Notes the first operation that draws random numbers."""

    name = ""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        before = torch.get_rng_state()
        result = func(*args, **(kwargs or {}))
        if not self.name and not torch.equal(torch.get_rng_state(), before):
            self.name = repr(getattr(func, "__name__", "an operation"))
        return result
